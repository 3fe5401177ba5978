"""Measure the overhead of a study: runs packed on this machine, and 500 short runs on one driver.

    python -m benchmarks.packing            # about seven minutes on 2 idle cores

Packed: wall seconds of a whole command, including Ray's start, divided by the loop seconds of its
runs per concurrent run. About 30 s of it are not overhead per run but start, baselines and tables.
Short: memory of the driver process after 100 runs and after all, and the seconds to read their
table.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow.parquet as pq

os.environ["RAY_AUTH_MODE"] = "disabled"

from rich.console import Console
from rich.table import Table

from clue_ray.cluster.session import connect
from clue_ray.corpus.build import build_corpus
from clue_ray.corpus.planted import PlantedSpec, planted_events
from clue_ray.corpus.store import Corpus
from clue_ray.runs import read_current_runs
from clue_ray.spec.specs import CorpusSpec, StudySpec
from clue_ray.study.progress import Snapshot
from clue_ray.study.run import run_study

FEW = 100


@contextmanager
def planted_corpus() -> Iterator[tuple[Path, Corpus]]:
    """Prepare a small planted corpus in a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp"))
    try:
        pq.write_table(planted_events(PlantedSpec(users=3000)), folder / "events.parquet")
        with connect():
            spec = CorpusSpec(events=str(folder / "events.parquet"), vocab_size=1024)
            corpus = build_corpus(spec, folder / "corpus")
        yield folder, corpus
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_study(name: str, corpus: Path, steps: int, runs: int) -> StudySpec:
    """Plan runs of the width-32 encoder that differ in their seeds."""
    base = {
        "encoder": {"size": "s"},
        "train": {"global_batch_size": 64, "steps": steps},
        "sequence_length": 16,
    }
    study = {
        "name": name,
        "corpus": str(corpus),
        "base": base,
        "axes": {"train.seed": list(range(runs))},
        "evaluation": {"candidates": 128, "every": 0.25},
    }
    return StudySpec.parse(study, name)


def run_packed(study: StudySpec, output: Path) -> tuple[float, float, float]:
    """Run a study and return its wall seconds, its loop seconds per concurrent run and per run."""
    snapshots = []  # (seconds since the start, concurrency); the report follows the last one
    started = time.perf_counter()

    def record(snapshot: Snapshot) -> None:
        snapshots.append((time.perf_counter() - started, snapshot.plan.concurrency))

    runs = run_study(study, output, on_progress=record)
    wall, concurrency = snapshots[-1]
    loops = runs.done["wall_seconds"]
    return wall, float(loops.sum()) / concurrency, float(loops.mean())


def run_short(study: StudySpec, output: Path) -> tuple[float, float, float]:
    """Run a study and return the driver's MB after 100 runs and at the end, and the read time."""
    driver, seen = psutil.Process(), {}

    def record(snapshot: Snapshot) -> None:
        seen[snapshot.finished] = driver.memory_info().rss / 1e6

    run_study(study, output, on_progress=record)
    started = time.perf_counter()
    read_current_runs(output / study.name)
    return (
        seen[min((count for count in seen if count >= FEW), default=max(seen))],
        seen[max(seen)],
        time.perf_counter() - started,
    )


def main() -> None:
    """Measure and print the table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--runs", type=int, default=20, help="packed runs")
    options.add_argument("--steps", type=int, default=500, help="steps per packed run, about 10 s")
    options.add_argument("--short", type=int, default=500, help="short runs, of one step each")
    chosen = options.parse_args()
    with planted_corpus() as (folder, corpus):
        packed = make_study("packed", corpus.path, chosen.steps, chosen.runs)
        wall, loops, mean = run_packed(packed, folder)
        short = make_study("short", corpus.path, 1, chosen.short)
        few, end, seconds = run_short(short, folder)
    table = Table("measured", "value", "target", title="Overhead of a study")
    table.add_row(f"{chosen.runs} runs, mean loop", f"{mean:.1f} s", "10 s")
    table.add_row(
        "(wall - 30 s) / loop seconds per concurrent run", f"{(wall - 30) / loops:.3f}", "<= 1.15"
    )
    table.add_row(
        f"driver after {FEW} and {chosen.short} runs", f"{few:.0f} and {end:.0f} MB", "flat"
    )
    table.add_row(f"read the table of {chosen.short} runs", f"{seconds:.2f} s", "<= 2 s")
    Console(width=100, highlight=False).print(table)


if __name__ == "__main__":
    main()
