"""What Ray costs a run: seconds beyond its loop, inline and on two workers, and the loop's rate
against a bare process.

    python -m benchmarks.overhead           # about six minutes on 2 quiet cores

Seconds beyond the loop are those from one run's record to the next, one run at a time, without the
loop's own (`wall_seconds`); the first run, which starts actors, is left out. Rates are tokens a
second between the first line of a log and its last checkpoint, reports and checkpoints included, of
the same run by turns under Ray and in a process of its own, at the low priority that Ray gives its
workers (nice 15; where other work keeps the cores busy, that alone may cost more than all the
rest)."""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

os.environ["RAY_AUTH_MODE"] = "disabled"

from rich.console import Console
from rich.table import Table

from clue_ray.cluster.session import connect
from clue_ray.corpus.build import build_corpus
from clue_ray.corpus.planted import PlantedSpec, planted_events
from clue_ray.corpus.store import Corpus
from clue_ray.spec.grid import expand
from clue_ray.spec.specs import CorpusSpec, StudySpec
from clue_ray.study.run import run_study

BARE = """
import os
import sys
from pathlib import Path
import torch
from clue_ray.corpus.store import open_corpus
from clue_ray.runs import write_json
from clue_ray.spec import RunSpec, EvaluationSpec
from clue_ray.training.journal import log_to
from clue_ray.training.context import LocalContext
from clue_ray.training.loop import train_with
corpus, folder, run, evaluation = sys.argv[1:]
torch.set_num_threads(1)
os.nice(15)
with log_to(Path(folder)):
    spec, scored = RunSpec.model_validate_json(run), EvaluationSpec.model_validate_json(evaluation)
    record, _ = train_with(spec, open_corpus(corpus), scored, LocalContext(Path(folder) / "checkpoints"))
write_json(Path(folder) / "record.json", record.model_dump(mode="json"))
"""


@contextmanager
def planted_corpus() -> Iterator[tuple[Path, Corpus]]:
    """Prepare a small planted corpus in a folder that goes away afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp"))
    try:
        pq.write_table(planted_events(PlantedSpec(users=3000)), folder / "events.parquet")
        with connect():
            spec = CorpusSpec(events=str(folder / "events.parquet"), vocab_size=1024)
            corpus = build_corpus(spec, folder / "corpus")
        yield folder, corpus
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_study(name: str, corpus: Path, steps: int, **axes: list[Any]) -> StudySpec:
    """Plan runs of the width-32 encoder, one at a time."""
    base = {
        "encoder": {"size": "s"},
        "train": {"global_batch_size": 64, "steps": steps},
        "sequence_length": 16,
    }
    return StudySpec.parse(
        {
            "name": name,
            "corpus": str(corpus),
            "base": base,
            "axes": {key.replace("__", "."): values for key, values in axes.items()},
            "evaluation": {"candidates": 128, "every": 0.25},
            "resources": {"concurrency": 1},
        },
        name,
    )


def beyond_the_loop(study: StudySpec, output: Path) -> list[float]:
    """Return each run's seconds beyond its loop, without the first's."""
    table = run_study(study, output).table
    assert (table["status"] == "done").all()
    runs = output / study.name / "runs"
    ends = {run_id: (runs / run_id / "record.json").stat().st_mtime for run_id in table["run_id"]}
    table = table.assign(ended=table["run_id"].map(ends)).sort_values("ended")
    return (table["ended"].diff() - table["wall_seconds"])[1:].tolist()


def rate(folder: Path, tokens: int) -> float:
    """Return tokens a second between a log's first line and its last."""
    lines = (folder / "log.txt").read_text().splitlines()
    first, last = (
        datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f") for line in (lines[0], lines[-1])
    )
    return tokens / (last - first).total_seconds()


def rates(corpus: Path, output: Path, pairs: int, steps: int) -> list[tuple[float, float]]:
    """Return the rates (under Ray, bare) of the same run, by turns."""
    found = []
    for turn in range(pairs):
        study = make_study(f"turn-{turn}", corpus, steps, train__seed=[turn])
        (run,) = expand(study)
        bare = output / f"bare-{turn}"
        told = [
            str(corpus),
            str(bare),
            run.model_dump_json(exclude_none=True),
            study.evaluation.model_dump_json(),
        ]
        row = run_study(study, output).table.iloc[0]
        subprocess.run([sys.executable, "-c", BARE, *told], check=True)
        tokens = int(row["train_tokens"])
        found.append(
            (rate(output / study.name / "runs" / row["run_id"], tokens), rate(bare, tokens))
        )
    return found


def report(
    console: Console, inline: list[float], workers: list[float], found: list[tuple[float, float]]
) -> None:
    """Print medians beside their aims, and the range of what was measured."""
    table = Table(title="What Ray costs a run")
    for column in ("measured", "median", "from", "to", "aim"):
        table.add_column(column, justify="left" if column == "measured" else "right")
    ratios = [under / bare for under, bare in found]
    for name, values, aim, form in (
        ("inline run, seconds beyond its loop", inline, "<= 1.5", ".2f"),
        ("run of 2 workers, seconds beyond its loop", workers, "<= 15", ".1f"),
        ("loop under Ray, tokens/s against bare", ratios, ">= 0.97", ".3f"),
    ):
        middle, low, high = statistics.median(values), min(values), max(values)
        table.add_row(name, *(f"{value:{form}}" for value in (middle, low, high)), aim)
    console.print(table)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(
        f"{os.cpu_count()} cores; load average over 1, 5 and 15 minutes at the end: {load}."
    )


def main() -> None:
    """Measure and print the table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--runs", type=int, default=5, help="runs whose seconds beyond the loop are measured"
    )
    options.add_argument(
        "--pairs", type=int, default=5, help="turns of the loop under Ray and bare"
    )
    options.add_argument("--steps", type=int, default=300, help="steps of a turn")
    chosen = options.parse_args()
    with planted_corpus() as (folder, corpus), connect():
        seeds = list(range(chosen.runs + 1))
        inline = beyond_the_loop(make_study("inline", corpus.path, 20, train__seed=seeds), folder)
        found = rates(corpus.path, folder, chosen.pairs, chosen.steps)
        two = make_study("workers", corpus.path, 20, train__seed=seeds[:4], resources__workers=[2])
        workers = beyond_the_loop(two, folder)
    report(Console(width=100, highlight=False), inline, workers, found)


if __name__ == "__main__":
    main()
