"""Train very many very short runs, and show what grows or stays behind.

    python -m benchmarks.soak --runs 1000     # about a second per run on 2 cores
    python -m benchmarks.soak --starts 50     # the whole command again and again, nothing to train

Prints the slope of the memory of each kind of process, and of the driver's open files and threads,
over the second half of the study, and what is left at its end: placement groups, resources,
processes, temporary files and folders. A slope is flat if 100 further runs, or one further start,
add at most 1 % of the amount, or 1 (MB, file, thread). The exit status is 1 if something is left or
grows.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import yaml

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray

from clue_ray.cluster.session import connect
from clue_ray.corpus.planted import PlantedSpec, planted_events
from clue_ray.spec.specs import StudySpec
from clue_ray.study.run import run_study

PAUSE = 2.0
"""Seconds between two samples of memory."""
KINDS = {"trial actors": "ImplicitFunc", "raylet": "raylet/raylet", "GCS": "gcs_server"}
"""Kinds of processes, and a part of their command lines; the driver is this process."""
FLAT_SHARE, FLAT_AMOUNT = 0.01, 1.0
"""An amount is flat if it grows by at most this share of it, or by so many MB, files or threads."""
COUNTED = ("open files", "threads")
"""What is sampled of the driver besides its memory."""
KEPT = {"ray", "corpora", "checksums"}
"""Folders that may stay: Ray's logs, the cache of corpora, and the checksums of files."""


def make_study(events: Path, runs: int) -> dict[str, Any]:
    """Return a study of runs that take about a second each."""
    return {
        "name": "soak",
        "corpus": {
            "events": str(events),
            "vocab_size": 400,
            "split": {"validation": 0.1, "test": 0.25},
        },
        "base": {
            "encoder": {"size": "xxs", "output_width": 16},
            "train": {"global_batch_size": 16, "steps": 4},
            "sequence_length": 2,
        },
        "axes": {"train.seed": list(range(runs))},
        "evaluation": {"candidates": 16, "every": 1},
        "resources": {"concurrency": 2},
    }


class Sampler:
    """Samples the memory of this process and of Ray's, with the number of runs that have ended."""

    def __init__(self, study: Path):
        self.study, self.rows = study, []
        self.seen: dict[int, float] = {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Sampler":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _sample(self) -> None:
        while not self.ended.wait(PAUSE):
            done = sum(1 for _ in self.study.glob("runs/*/record.json"))
            own = psutil.Process()
            row = {"runs": done, "driver": own.memory_info().rss / 1e6}
            row |= {"open files": own.num_fds(), "threads": own.num_threads()}
            for child in own.children(recursive=True):
                with suppress(psutil.Error):
                    self.seen[child.pid] = child.create_time()
                    line = " ".join(child.cmdline())[:300]
                    for kind, part in KINDS.items():
                        if part in line:
                            row[kind] = row.get(kind, 0) + child.memory_info().rss / 1e6
            self.rows.append(row)

    def slopes(self) -> dict[str, tuple[float, float]]:
        """Return (last value, growth per 100 runs) of each kind over the second half."""
        late = [row for row in self.rows if row["runs"] > self.rows[-1]["runs"] / 2]
        found = {}
        for kind in ("driver", *KINDS, *COUNTED):
            points = [(row["runs"], row[kind]) for row in late if kind in row]
            if len({runs for runs, _ in points}) > 2:
                runs, values = np.array(points, dtype=float).T
                found[kind] = (values[-1], 100 * float(np.polyfit(runs, values, 1)[0]))
        return found

    def alive(self) -> list[int]:
        """List the processes of Ray that have outlived it."""
        found = []
        for pid, born in self.seen.items():
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(pid)
        return found


def leftovers() -> list[str]:
    """List what a study has left in its Ray session."""
    groups = [
        name
        for name, group in ray.util.placement_group_table().items()
        if group["state"] != "REMOVED"
    ]
    deadline = time.monotonic() + 30  # actors of the last runs may still be ending
    total = ray.cluster_resources()
    while (free := ray.available_resources()) != total and time.monotonic() < deadline:
        time.sleep(1)
    taken = {name: amount - free.get(name, 0) for name, amount in total.items()}
    held = {
        name: amount for name, amount in taken.items() if amount > 1e-6 and "memory" not in name
    }
    return [f"placement group {name}" for name in groups] + [
        f"{amount:g} {name} not given back" for name, amount in held.items()
    ]


def temporary_files(folder: Path) -> list[str]:
    """List the files and the empty folders in a temporary folder, but for those KEPT."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if KEPT.isdisjoint(name.parts) and not path.is_dir():
            found.append(f"file {name}")
        # The folder of working folders stays, and is empty where none of them does.
        elif KEPT.isdisjoint(name.parts) and path.name != "work" and not any(path.iterdir()):
            found.append(f"empty folder {name}")
    return found


def is_flat(amount: float, slope: float) -> bool:
    """Return whether an amount of MB, files or threads does not grow."""
    return slope <= max(FLAT_SHARE * amount, FLAT_AMOUNT)


def judge_slopes(slopes: dict[str, tuple[float, float]]) -> list[str]:
    """Print each slope with its verdict, as `Sampler.slopes` gives them; list what is not flat."""
    growing = []
    for kind, (last, slope) in slopes.items():
        flat, unit = is_flat(last, slope), "" if kind in COUNTED else " MB"
        growing += [] if flat else [f"growing: {kind}"]
        words = "flat" if flat else "not flat"
        print(f"{kind:>12}: {last:8.1f}{unit}, {slope:+.2f}{unit} per 100 runs: {words}")
    return growing


def soak(folder: Path, runs: int) -> list[str]:
    """Run the study, print the slopes, and return what is left or grows."""
    events = folder / "events.parquet"
    spec = PlantedSpec(users=240, services=3, topics=12, items_per_topic=20, events=24)
    pq.write_table(planted_events(spec), events)
    started = time.monotonic()
    with Sampler(folder / "out" / "soak") as sampler:
        with connect():
            study = StudySpec.parse(make_study(events, runs), "soak")
            table = run_study(study, folder / "out").table
            left = leftovers()
        time.sleep(2 * PAUSE)
    statuses = table["status"].value_counts().to_dict()
    print(f"{runs} runs in {time.monotonic() - started:.0f} s: {statuses}")
    growing = judge_slopes(sampler.slopes())
    return [*left, *(f"process {pid}" for pid in sampler.alive()), *growing]


def start_again(folder: Path, starts: int) -> list[str]:
    """Give the command of a finished study again and again; return what is left or grows."""
    left = soak(folder, 2)
    study = folder / "study.yaml"
    study.write_text(yaml.safe_dump(make_study(folder / "events.parquet", 2)))
    peaks = [_peak_of_one(study, folder / "out") for _ in range(starts)]
    slope = float(np.polyfit(range(starts), peaks, 1)[0]) if starts > 2 else 0.0
    print(f"{starts} starts: {peaks[0]:.0f} to {peaks[-1]:.0f} MB, {slope:+.2f} MB per start")
    left += [] if is_flat(peaks[-1], slope) else ["growing: memory of the command"]
    return left + [f"process {pid}" for pid in _processes_in(folder)]


def _peak_of_one(study: Path, output: Path) -> float:
    """Run the command in a process of its own, and return the most memory that it had, in MB."""
    command = [sys.executable, "-m", "clue_ray", "run", str(study), "--output", str(output)]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(started.pid, 0)
    started.returncode = os.waitstatus_to_exitcode(status)
    if started.returncode:
        raise ChildProcessError(f"the command ended with status {started.returncode}")
    return usage.ru_maxrss / 1000


def _processes_in(folder: Path) -> list[int]:
    """List the processes whose command names a folder, as those of Ray name their temporary one."""
    time.sleep(2 * PAUSE)
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and str(folder) in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def main() -> None:
    """Soak, and print what is left or grows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--starts", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cr-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "t").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "t")
        left = start_again(folder, options.starts) if options.starts else soak(folder, options.runs)
        left += temporary_files(folder / "t")
    print("\n".join(["left or growing:", *left]) if left else "nothing is left, nothing grows")
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
