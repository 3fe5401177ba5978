"""What a study costs beyond its loops: many runs packed on this machine, and 500 short ones held by
one driver.

    python -m benchmarks.packing            # about seven minutes on 2 quiet cores

Packed: wall seconds of a whole command, Ray's start included, over the sum of its runs' loop
seconds divided by the runs at a time; some 30 s of it are no overhead of a run but start, baselines
and tables. Held: the memory of the driver process when 100 runs and when all had ended, and the
seconds that reading their table takes."""

import argparse
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.overhead import make_study, planted_corpus
from clue_ray.runs import read_current_runs
from clue_ray.spec.specs import StudySpec
from clue_ray.study.progress import Snapshot
from clue_ray.study.run import run_study

FEW = 100


def packed(study: StudySpec, output: Path) -> tuple[float, float, float]:
    """Run a study; return its wall seconds, its loops' seconds over the runs at a time, and the
    mean loop's."""
    at_once = []
    started = time.perf_counter()
    runs = run_study(
        study, output, listener=lambda snapshot: at_once.append(snapshot.plan.concurrency)
    )
    wall = time.perf_counter() - started
    loops = runs.done["wall_seconds"]
    return wall, float(loops.sum()) / at_once[-1], float(loops.mean())


def held(study: StudySpec, output: Path) -> tuple[float, float, float]:
    """Run a study; return the driver's MB after 100 runs and at the end, and the seconds to read
    its table."""
    driver, seen = psutil.Process(), {}

    def weigh(snapshot: Snapshot) -> None:
        seen[snapshot.finished] = driver.memory_info().rss / 1e6

    run_study(study, output, listener=weigh)
    started = time.perf_counter()
    read_current_runs(output / study.name)
    return (
        seen[min(count for count in seen if count >= FEW)],
        seen[max(seen)],
        time.perf_counter() - started,
    )


def all_cores(study: StudySpec) -> StudySpec:
    """Let a study fill the machine."""
    return study.model_copy(
        update={"resources": study.resources.model_copy(update={"concurrency": "auto"})}
    )


def main() -> None:
    """Measure and print the table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--runs", type=int, default=20, help="runs to pack")
    options.add_argument("--steps", type=int, default=500, help="steps of each, some 10 s")
    options.add_argument("--trivial", type=int, default=500, help="short runs to hold")
    chosen = options.parse_args()
    with planted_corpus() as (folder, corpus):
        many = make_study("packed", corpus.path, chosen.steps, train__seed=list(range(chosen.runs)))
        wall, loops, mean = packed(all_cores(many), folder)
        trivial = make_study("held", corpus.path, 1, train__seed=list(range(chosen.trivial)))
        few, end, seconds = held(all_cores(trivial), folder)
    table = Table("measured", "value", "aim", title="What a study costs beyond its loops")
    table.add_row(f"{chosen.runs} runs, mean loop", f"{mean:.1f} s", "10 s")
    table.add_row(
        "wall beyond 30 s, over loops / runs at a time", f"{(wall - 30) / loops:.3f}", "<= 1.15"
    )
    table.add_row(
        f"driver after {FEW} and {chosen.trivial} runs", f"{few:.0f} and {end:.0f} MB", "flat"
    )
    table.add_row(f"reading the table of {chosen.trivial} runs", f"{seconds:.2f} s", "<= 2 s")
    Console(width=100, highlight=False).print(table)


if __name__ == "__main__":
    main()
