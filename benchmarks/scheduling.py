"""Measure the cost of scheduling runs: a study of many trivial runs on declared GPUs.

    python -m benchmarks.scheduling --runs 1000 --gpus 64   # one process per GPU, about 15 GB

The GPUs are declared to Ray, not present. Preparation, plan, Ray Tune, records and the runs table
are the product's own; only training is replaced, by a sleep. All processes of the cluster are on
this machine, so its cores, printed below the table, bound the rate.

The idle share is the share of GPU seconds without a run, from the start of the first run to the end
of the last. Seconds between runs are those from the end of a run to the next start on its GPU.
"""

import argparse
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"

import psutil
import pyarrow.parquet as pq
import ray
from ray import tune
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table

from clue_ray.corpus.build import build_corpus
from clue_ray.corpus.planted import PlantedSpec, planted_events
from clue_ray.runs import read_runs
from clue_ray.spec.grid import expand
from clue_ray.spec.specs import CorpusSpec, StudySpec
from clue_ray.study import tune as tuning
from clue_ray.study.progress import Snapshot
from clue_ray.study.run import run_study

FEW = 100
STORE = 80_000_000


def sleep_instead(config: dict[str, Any]) -> None:
    """Run a trial that holds its GPU, sleeps and writes a record.

    It imports no torch, because 64 of these processes share a machine."""
    from clue_ray.corpus.store import open_corpus
    from clue_ray.runs import RunRecord
    from clue_ray.spec.specs import RunSpec
    from clue_ray.study.directory import write_run

    began, run, run_id = time.time(), RunSpec(**config["run"]["spec"]), config["run"]["run_id"]
    corpus = open_corpus(config["corpus"], verify=False)
    known = {name: 0 for name, field in RunRecord.model_fields.items() if field.is_required()}
    known |= {
        "run_id": run_id,
        "study": config["study"],
        "corpus_digest": corpus.digest,
        "status": "done",
    }
    known |= run.encoder.model_dump(include={"width", "item_layers", "service_layers", "heads"})
    known |= {
        "encoder_size": run.encoder.size,
        "device": "none",
        "clue_ray_version": "0",
        "loss": 1.0,
    }
    time.sleep(float(os.environ.get("SLEEP_SECONDS", "10")))
    folder = Path(config["directory"]) / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    gpu = ray.get_runtime_context().get_accelerator_ids()["GPU"][0]
    write_run(folder, run, RunRecord(**known), [])
    held = f"{ray.get_runtime_context().get_node_id()}.{gpu} {os.getpid()} {began} {time.time()}"
    (folder / "held.txt").write_text(held)
    tune.report({"status": "done", "error": "", "loss": 1.0, "step": 1, "steps": 1})


@contextmanager
def declared_gpus(gpus: int, per_node: int, seconds: float) -> Iterator[None]:
    """Start a head without cores and nodes with declared GPUs, and connect to the cluster."""
    temporary = tempfile.mkdtemp(prefix="cr-", dir="/tmp")
    node = {"object_store_memory": STORE, "include_dashboard": False}
    os.environ["SLEEP_SECONDS"] = str(seconds)  # inherited by nodes and their workers
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"  # the default of 2 s fails on busy cores
    head = {"num_cpus": 0, "resources": {"trial_slot": 64}, "temp_dir": temporary, **node}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1, labels={"pool": "data"}, **node)
    for first in range(0, gpus, per_node):
        here = min(per_node, gpus - first)
        cluster.add_node(num_cpus=here, num_gpus=here, labels={"pool": "train"}, **node)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


def make_study(corpus: Path, runs: int) -> StudySpec:
    """Plan runs that need one GPU each and differ in their seeds."""
    return StudySpec.parse(
        {
            "name": "scheduling",
            "corpus": str(corpus),
            "base": {
                "encoder": {"size": "xs"},
                "train": {"global_batch_size": 16, "steps": 1},
                "sequence_length": 4,
            },
            "axes": {"train.seed": list(range(runs))},
            "evaluation": {"candidates": 32, "every": 1},
            "resources": {"gpus_per_worker": 1},
        },
        "scheduling",
    )


def run_all(study: StudySpec, output: Path) -> dict[int, float]:
    """Run a study without training; return the driver's MB by number of finished runs."""
    driver, seen = psutil.Process(), {}

    def record(snapshot: Snapshot) -> None:
        seen[snapshot.finished] = driver.memory_info().rss / 1e6

    tuning.run_trial = sleep_instead
    run_study(study, output, on_progress=record, most_points=None)
    table = read_runs(output / study.name).table
    assert (table["status"] == "done").all()
    assert len(table) == len(expand(study))
    return seen


def read_held(directory: Path) -> tuple[dict[str, list[tuple[float, float]]], int]:
    """Return the ordered (start, end) times of the runs per GPU, and the number of processes."""
    held: dict[str, list[tuple[float, float]]] = {}
    processes = set()
    for file in directory.glob("runs/*/held.txt"):
        gpu, process, began, ended = file.read_text().split()
        held.setdefault(gpu, []).append((float(began), float(ended)))
        processes.add(process)
    return {gpu: sorted(spans) for gpu, spans in held.items()}, len(processes)


def main() -> None:
    """Measure and print the table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--runs", type=int, default=1000)
    options.add_argument("--gpus", type=int, default=64)
    options.add_argument(
        "--gpus-per-node", type=int, default=8, help="each node adds three processes"
    )
    options.add_argument("--seconds", type=float, default=10.0, help="how long a run holds its GPU")
    chosen = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp"))
    try:
        pq.write_table(planted_events(PlantedSpec(users=1000)), folder / "events.parquet")
        with declared_gpus(chosen.gpus, chosen.gpus_per_node, chosen.seconds):
            corpus = build_corpus(
                CorpusSpec(events=str(folder / "events.parquet"), vocab_size=512), folder / "corpus"
            )
            study = make_study(corpus.path, chosen.runs)
            started, busy = time.perf_counter(), time.process_time()
            seen = run_all(study, folder)
            spent = time.perf_counter() - started, time.process_time() - busy
        report(spent, seen, *read_held(folder / study.name), chosen)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(
    spent: tuple[float, float],
    seen: dict[int, float],
    held: dict[str, list[tuple[float, float]]],
    processes: int,
    chosen: argparse.Namespace,
) -> None:
    """Print the measurements."""
    spans = [span for each in held.values() for span in each]
    began, ended = min(begin for begin, _ in spans), max(end for _, end in spans)
    slept = sum(end - begin for begin, end in spans)
    between = [
        after[0] - before[1] for each in held.values() for before, after in itertools.pairwise(each)
    ]
    few = min((count for count in seen if count >= FEW), default=max(seen))
    table = Table(
        "measured",
        "value",
        title=f"{chosen.runs} runs of {chosen.seconds:g} s on {chosen.gpus} GPUs",
    )
    table.add_row("whole command, with plan, baselines and tables", f"{spent[0]:.0f} s")
    table.add_row(
        "CPU time of the driver per run, milliseconds", f"{1000 * spent[1] / chosen.runs:.0f}"
    )
    table.add_row("from the first run's start to the last run's end", f"{ended - began:.0f} s")
    table.add_row("runs per second in that time", f"{chosen.runs / (ended - began):.2f}")
    table.add_row("the same without overhead", f"{chosen.gpus / chosen.seconds:.2f}")
    table.add_row("GPUs that had a run; processes that held them", f"{len(held)}, {processes}")
    table.add_row("idle share of GPU seconds", f"{1 - slept / chosen.gpus / (ended - began):.3f}")
    if between:
        seconds = statistics.median(between)
        table.add_row("seconds between runs on a GPU, median", f"{seconds:.2f}")
    table.add_row(
        f"memory of the driver after {few} and {max(seen)} runs",
        f"{seen[few]:.0f} and {seen[max(seen)]:.0f} MB",
    )
    console = Console(width=100, highlight=False)
    console.print(table)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(
        f"{os.cpu_count()} cores; load average over 1, 5 and 15 minutes at the end: {load}."
    )


if __name__ == "__main__":
    main()
