"""Run a small study twice: undisturbed, and while a worker, a node and the driver are killed.

    python -m benchmarks.faults     # three nodes on this machine, five to ten minutes on 2 cores

Prints the faults between the lines of the runs' logs, then the runs tables of both studies. The
exit status is 1 if they differ in any column other than times.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import pandas as pd
import psutil
import pyarrow.parquet as pq
import yaml

os.environ["RAY_AUTH_MODE"] = "disabled"

from ray.cluster_utils import Cluster
from rich.console import Console

from clue_ray.cli.tables import frame_table
from clue_ray.corpus.planted import PlantedSpec, planted_events
from clue_ray.runs import read_runs

TIMES = ["started_at", "wall_seconds", "tokens_per_second"]
SHOWN = [
    "run_id",
    "status",
    "sequence_length",
    "num_workers",
    "steps",
    "train_flops",
    "loss",
    "recall_at_10",
]
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}
MAX_WAIT = 300.0
STUDY = {
    "name": "faults",
    "corpus": {"vocab_size": 400, "split": {"validation": 0.1, "test": 0.25}},
    "base": {
        "encoder": {"size": "xs", "output_width": 16},
        "train": {"global_batch_size": 16, "steps": 400},
        "sequence_length": 4,
    },
    "axes": [{"sequence_length": [2, 4], "resources.workers": [2]}, {"sequence_length": [8]}],
    "evaluation": {"candidates": 16, "every": 0.05},
    "resources": {"concurrency": 1},
    "fit": {"laws": ["power_law", "log_linear"]},
}


class Scene:
    """A running study on a cluster, and the faults injected into it."""

    def __init__(self, folder: Path, cluster: Cluster):
        self.folder, self.cluster, self.done = folder, cluster, []

    def start(self, output: str) -> subprocess.Popen:
        """Start the study in a process."""
        command = ["run", str(self.folder / "study.yaml"), "--output", str(self.folder / output)]
        code = "from clue_ray.cli.main import main; main()"
        with open(self.folder / f"{output}.out", "a") as log:
            return subprocess.Popen(
                [sys.executable, "-c", code, *command, "--address", self.cluster.address],
                stdout=log,
                stderr=log,
            )

    def note(self, words: str) -> None:
        """Record a fault and its time."""
        self.done.append((datetime.now().strftime("%Y-%m-%d %H:%M:%S,%f")[:-3], f"*** {words}"))

    def lines(self, output: str) -> list[tuple[str, str]]:
        """Return (time, message) of every line that the study's runs logged."""
        found = []
        for log in (self.folder / output).glob("faults/runs/*/log.txt"):
            found += [
                (line[:23], line[24:]) for line in log.read_text().splitlines() if line[:2] == "20"
            ]
        return sorted(found)

    def wait_for(self, words: str, times: int) -> None:
        """Wait until the disturbed study has logged the words a number of times."""
        deadline = time.monotonic() + MAX_WAIT
        while sum(words in line for _, line in self.lines("disturbed")) < times:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{words!r} was not logged {times} times within {MAX_WAIT:g} s")
            time.sleep(0.02)

    def kept(self) -> int:
        """Count the checkpoints that the disturbed study has written."""
        return sum("is kept" in line for _, line in self.lines("disturbed"))


def disturb(scene: Scene) -> None:
    """Run the study, kill a worker, a node and the driver, then run the command again."""
    driver = scene.start("disturbed")
    scene.wait_for("is kept", 3)
    worker = next(
        p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in p.name()
    )
    scene.note(f"worker process {worker.pid} is killed")
    worker.kill()
    scene.wait_for("resumes after", 1)
    scene.wait_for("is kept", scene.kept() + 3)
    scene.note("a node is killed")
    scene.cluster.remove_node(sorted(scene.cluster.worker_nodes, key=str)[0], allow_graceful=False)
    time.sleep(3)
    scene.cluster.add_node(**NODE)
    scene.note("a node is added in its place")
    scene.wait_for("resumes after", 2)
    scene.wait_for("is kept", scene.kept() + 3)
    scene.note(f"the driver, process {driver.pid}, is killed")
    driver.kill()
    driver.wait()
    time.sleep(5)
    scene.note("the same command is given again")
    assert scene.start("disturbed").wait(MAX_WAIT * 2) == 0
    scene.note("it ends")


def compare(folder: Path, console: Console) -> bool:
    """Print both tables and return whether they agree in all columns other than times."""
    tables = {
        name: read_runs(folder / name / "faults").table for name in ("undisturbed", "disturbed")
    }
    for name, table in tables.items():
        console.print(frame_table(table[SHOWN], name))
    undisturbed, disturbed = (table.drop(columns=TIMES) for table in tables.values())
    try:
        pd.testing.assert_frame_equal(disturbed, undisturbed, check_exact=True)
    except AssertionError as difference:
        console.print(f"The tables differ: {difference}")
        return False
    console.print(
        f"All {len(undisturbed)} rows agree in all {undisturbed.shape[1]} columns other than "
        f"{', '.join(TIMES)}."
    )
    return True


def main() -> None:
    """Run both studies and compare them."""
    console = Console(width=120, highlight=False)
    folder = Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp"))
    spec = PlantedSpec(
        users=240, services=3, topics=12, concentration=2, items_per_topic=20, events=24
    )
    pq.write_table(planted_events(spec), folder / "events.parquet")
    study = {**STUDY, "corpus": {**STUDY["corpus"], "events": str(folder / "events.parquet")}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    head = {"num_cpus": 0, "resources": {"trial_slot": 4}, "object_store_memory": 100_000_000}
    cluster = Cluster(
        initialize_head=True, head_node_args={**head, "temp_dir": str(folder / "ray")}
    )
    try:
        for _ in range(2):
            cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        scene = Scene(folder, cluster)
        assert scene.start("undisturbed").wait(MAX_WAIT * 2) == 0
        disturb(scene)
        for when, line in sorted(scene.done + scene.lines("disturbed")):
            if not re.search("is kept", line):
                console.print(when[11:19], line, markup=False, soft_wrap=True)
        agree = compare(folder, console)
    finally:
        cluster.shutdown()
        for output in folder.glob("*.out"):
            console.print(
                f"--- {output.name}\n{output.read_text()[-1500:]}", markup=False
            ) if sys.exc_info()[0] else None
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
