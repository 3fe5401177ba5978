"""Run a study undisturbed, then again while something fails every few seconds; compare the tables.

    python -m benchmarks.chaos --minutes 30 --every 15 --seed 1

The study runs on a head and nodes of one core each, as processes of this machine, with its storage
on an S3 server. Everything is drawn from the seed, which is printed; what a fault hits depends on
the time at which it comes. A command that dies is given again. The exit status is 1 if any column
of science differs in runs.csv, a learning curve, a fit or the report, if a run is not done, or if
more than 15 % of the undisturbed time was lost beyond lost work and Ray's own starts.
"""

import argparse
import difflib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import yaml

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.chaos.cluster import Machines
from benchmarks.chaos.faults import FAULTS
from benchmarks.chaos.losses import Undisturbed, kept_steps, spent, tell, time_bare_start
from benchmarks.chaos.storage import Storage
from clue_ray.corpus.planted import PlantedSpec, planted_events
from clue_ray.report.page import compose, render
from clue_ray.report.read import read_directory
from clue_ray.runs import read_plan, read_runs
from clue_ray.storage.sync import node_folder
from clue_ray.study.events import read_events

NAME = "chaos"
PLANTED = PlantedSpec(
    users=240, services=3, topics=12, concentration=2, items_per_topic=20, events=24
)
LONGEST_END = 1800.0
"""Seconds after the last fault in which the study must end; also of the undisturbed study."""
COSTS = ("started_at", "wall_seconds", "tokens_per_second", "memory_bytes")
"""Columns about the machine rather than about the result."""
MOST_LOST = 0.15
"""Share of the undisturbed time that may be lost beyond lost work and Ray's own starts."""


def make_study(events: Path, runs: int, steps: int) -> dict[str, Any]:
    """Return a study of some runs, one in ten of them on two workers."""
    pairs = max(1, runs // 10)
    seeds = list(range(runs - pairs))
    return {
        "name": NAME,
        "corpus": {
            "events": str(events),
            "vocab_size": 400,
            "split": {"validation": 0.1, "test": 0.25},
        },
        "base": {
            "encoder": {"size": "xs", "output_width": 16},
            "train": {"global_batch_size": 16, "steps": steps},
            "sequence_length": 4,
        },
        "axes": [
            {"train.seed": list(range(100, 100 + pairs)), "resources.workers": [2]},
            {"train.seed": seeds[::2]},
            {"train.seed": seeds[1::2], "sequence_length": [8]},
        ],
        "evaluation": {"candidates": 16, "every": 0.1},
        "fit": {"laws": ["power_law", "log_linear"]},
    }


@dataclass
class Scene:
    """The running study and what it runs on."""

    folder: Path
    machines: Machines
    storage: Storage
    disturbed: str
    cache: Path
    "what nodes have fetched of corpora"
    clock: Path
    "the seconds by which the clock of new processes is moved"
    driver: subprocess.Popen[bytes] = field(init=False)
    began: list[float] = field(default_factory=list)
    "when each command was given"

    def start(self, output: str) -> None:
        """Give the command."""
        self.began.append(time.time())
        command = ["run", str(self.folder / "study.yaml"), "--output", str(self.folder / output)]
        places = ["--address", self.machines.address, "--storage", self.storage.place(output)]
        with open(self.folder / f"{output}.out", "a") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "clue_ray", *command, *places], stdout=log, stderr=log
            )

    def watch(self, output: str, seconds: float) -> bool:
        """Watch for some seconds, and give the command again whenever it ends badly.

        Returns:
            Whether it ended well.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if self.driver.wait(timeout=1) == 0:
                    return True
                self.start(output)
            except subprocess.TimeoutExpired:
                pass
        return False


def disturb(scene: Scene, options: argparse.Namespace) -> tuple[Counter[str], bool]:
    """Run the study under faults; return how many there were of each kind, and whether it ended."""
    draw, done = random.Random(options.seed), Counter[str]()
    weights = [weight for weight, _ in FAULTS.values()]
    scene.start(scene.disturbed)
    started = time.monotonic()
    while time.monotonic() - started < 60 * options.minutes:
        if scene.watch(scene.disturbed, options.every):
            return done, True
        (kind,) = draw.choices(list(FAULTS), weights)
        words = FAULTS[kind][1](scene, draw)
        done[kind] += not words.startswith("no ")
        print(f"{time.monotonic() - started:6.0f} s  {words}", flush=True)
    return done, scene.watch(scene.disturbed, LONGEST_END)


def differences(one: Path, other: Path) -> list[str]:
    """Compare two studies in every column of science of tables, curves, fits and pages.

    Every run that the first one planned must be done in both.
    """
    tables = [read_runs(folder).table for folder in (one, other)]
    runs, done = len(read_plan(one)), [sum(table["status"] == "done") for table in tables]
    found = [f"runs.csv: {count} of {runs} runs are done" for count in done if count != runs]
    curves = [pd.read_parquet(folder / "curves.parquet") for folder in (one, other)]
    for name, (left, right) in {"runs.csv": tables, "curves.parquet": curves}.items():
        keys = [column for column in ("run_id", "step") if column in left]
        left, right = (
            table.drop(columns=[c for c in COSTS if c in table]).sort_values(
                keys, ignore_index=True
            )
            for table in (left, right)
        )
        try:
            pd.testing.assert_frame_equal(left, right, check_exact=True, check_dtype=False)
        except AssertionError as error:
            found.append(f"{name}: {' '.join(str(error).split())}")
    fits = [json.loads((folder / "fits.json").read_text()) for folder in (one, other)]
    keys = sorted(fits[0].keys() | fits[1].keys())
    found += [f"fits.json: {key}" for key in keys if fits[0].get(key) != fits[1].get(key)]
    pages = [_page(folder).splitlines() for folder in (one, other)]
    changed = list(difflib.unified_diff(*pages, lineterm="", n=0))
    found += [f"report: {line}" for line in changed[:10]]
    stale = [folder for folder in (one, other) if not _is_written(folder)]
    return found + [f"report: {folder} has not the page of its files" for folder in stale]


def _is_written(folder: Path) -> bool:
    """Return whether report/index.html is the page that a study's files give."""
    content, _ = compose(read_directory(folder))
    page = render("index.html.j2", content=content, live=False)
    return (folder / "report" / "index.html").read_text(encoding="utf-8") == page


def _page(folder: Path) -> str:
    """Compose a study's page without what is about the machine, and without its place.

    Pages as they are written hold times, speeds and places, and figures of them.
    """
    files = read_directory(folder)
    alike = {"started_at": "", **dict.fromkeys(COSTS[1:], 1.0)}
    known = {name: value for name, value in alike.items() if name in files.table}
    files = replace(files, table=files.table.assign(**known), expected_seconds={})
    content, _ = compose(files)
    return re.sub(r"s3://\S+", "s3://", render("index.html.j2", content=content, live=False))


def report(
    scene: Scene, undisturbed: Path, quiet: Undisturbed, seconds: float, done: Counter[str]
) -> bool:
    """Print what happened, what it cost, and whether the tables agree; return if all is well."""
    study = scene.folder / scene.disturbed / NAME
    told = read_events(study / "events.jsonl")
    table = read_runs(study).table
    print(f"faults: {dict(done)}, {sum(done.values())} in all; commands given: {len(scene.began)}")
    print(f"events: {dict(Counter(event['event'] for event in told))}")
    print(f"runs: {table['status'].value_counts().to_dict()}")
    print(f"undisturbed {quiet.seconds:.0f} s, disturbed {seconds:.0f} s")
    before = spent(read_events(undisturbed / "events.jsonl"), [quiet.began], {})
    step = before.attempts / read_runs(undisturbed).table["steps"].sum()
    kept = {run: step * steps for run, steps in kept_steps(study).items()}
    share = tell(before, spent(told, scene.began, kept), (quiet.seconds, seconds), quiet.bare)
    differ = differences(undisturbed, study)
    print("\n".join(differ) if differ else "All columns of science are equal, and the report.")
    print(f"Lost beyond: {share:.0%}, and at most {MOST_LOST:.0%} are allowed.")
    return not differ and share <= MOST_LOST


def run_undisturbed(scene: Scene, folder: Path) -> Undisturbed:
    """Run the study once without faults, unless an earlier call has."""
    kept = folder / "undisturbed.json"
    if not kept.exists():
        started = time.monotonic()
        scene.start("undisturbed")
        if not scene.watch("undisturbed", LONGEST_END):
            raise TimeoutError(f"the undisturbed study took more than {LONGEST_END:g} s")
        seconds = time.monotonic() - started
        found = Undisturbed(scene.began[0], seconds, time_bare_start(scene.machines.address))
        kept.write_text(json.dumps(asdict(found)))
        scene.began.clear()
    return Undisturbed(**json.loads(kept.read_text()))


def main() -> None:
    """Run both studies and compare them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="time in which faults come")
    parser.add_argument("--every", type=float, default=15, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=400, help="steps of each run")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the undisturbed study is kept")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp"))
    folder.mkdir(exist_ok=True)
    (folder / "tmp" / "ray").mkdir(parents=True, exist_ok=True)  # Ray notes its address there
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    clock = folder / "clock"
    clock.write_text("0")
    os.environ["CHAOS_CLOCK"] = str(clock)
    paths = (str(Path(__file__).parent / "clock"), os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    events = folder / "events.parquet"
    pq.write_table(planted_events(PLANTED), events)
    study = make_study(events, options.runs, options.steps)
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    storage = Storage()
    own = folder / str(options.seed)
    shutil.rmtree(own, ignore_errors=True)  # an earlier call may have used this folder and seed
    shutil.rmtree(folder / f"seed{options.seed}", ignore_errors=True)
    own.mkdir()
    machines = Machines(own, options.nodes)
    cache = node_folder("corpora")
    scene = Scene(folder, machines, storage, f"seed{options.seed}", cache, clock)
    try:
        quiet = run_undisturbed(scene, folder)
        started = time.monotonic()
        done, ended = disturb(scene, options)
        loud = time.monotonic() - started
        print(f"the study {'ended' if ended else 'did not end'}", flush=True)
        well = ended and report(scene, folder / "undisturbed" / NAME, quiet, loud, done)
    finally:
        if scene.driver.poll() is None:
            scene.driver.kill()
        machines.end()
        storage.end()
    if not options.folder:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
