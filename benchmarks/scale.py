"""Estimate a study of CLUE's size: work, time, memory and traffic.

    python -m benchmarks.scale              # a few seconds
    python -m benchmarks.scale --measure    # also loads a corpus and writes a checkpoint, a minute

The formulas are those of docs/notes/scale.md. FLOPs come from `clue_ray.spec.compute`, assumptions
from `Assumed`. None of the estimates has been measured on GPUs by us.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"

from rich.console import Console
from rich.table import Table

from clue_ray.spec.compute import Vocabulary, Work, count_params, train_flops
from clue_ray.spec.specs import EncoderSpec

SIZES = ("clue-4m", "clue-15m", "clue-65m", "clue-110m")
LENGTHS = (16, 32, 64, 128)


@dataclass(frozen=True)
class Assumed:
    """Assumptions of the estimates."""

    users: float = 11e6
    tokens: float = 50e9
    "in total, guide tokens included"
    services: int = 4
    tokens_per_event: int = 17
    "16 text tokens and the guide token"
    batch: int = 4096
    gpus: int = 64
    gpus_per_node: int = 8
    peak_flops: float = 989e12
    "per GPU, dense bf16"
    utilisation: float = 0.40
    "share of the peak that training reaches (MFU)"
    dollars: float = 3.0
    "per GPU-hour"
    network: float = 50e9
    "bytes per second in and out of a node"
    storage: float = 0.5e9
    "bytes per second that one process writes to object storage"

    @property
    def events(self) -> float:
        """Events in the log."""
        return self.tokens / self.tokens_per_event


def pair_work(assumed: Assumed, length: int) -> Work:
    """Return the work of one positive pair: `length` events of a user in each of two services."""
    events, tokens = 2 * length, 2 * length * assumed.tokens_per_event
    return Work(
        users=2,
        events=events,
        events_squared=2 * length**2,
        tokens=tokens,
        tokens_squared=events * assumed.tokens_per_event**2,
        similarities=assumed.batch,
    )


def run_flops(assumed: Assumed, size: str, length: int) -> float:
    """Return the FLOPs of a run that sees as many pairs as one pass at 128 events."""
    return train_flops(EncoderSpec(size=size), pair_work(assumed, length)) * pairs(assumed)


def pairs(assumed: Assumed) -> float:
    """Return the number of positive pairs in one pass over all tokens at 128 events."""
    return assumed.tokens / pair_work(assumed, 128).tokens


def gpu_hours(assumed: Assumed, flops: float) -> float:
    """Return GPU-hours at the assumed utilisation."""
    return flops / (assumed.peak_flops * assumed.utilisation) / 3600


def paper(assumed: Assumed) -> list[tuple[str, str]]:
    """Compute the figures of docs/notes/scale.md."""
    encoder, steps = EncoderSpec(size="clue-725m"), pairs(assumed) / assumed.batch
    total = count_params(encoder, Vocabulary(50_258, 32, 128))["total"]
    large = run_flops(assumed, "clue-725m", 128)
    grid = sum(run_flops(assumed, size, length) for size in SIZES for length in LENGTHS)
    step = large / steps / assumed.gpus / assumed.peak_flops / assumed.utilisation
    share = (assumed.gpus - 1) / assumed.gpus
    gathered = 2 * assumed.batch * encoder.output_width * 4 * share
    gradients = 2 * total * 4 * share
    slowest = gradients * assumed.gpus_per_node / assumed.network
    checkpoint = 12.0 * total
    hours = gpu_hours(assumed, large), gpu_hours(assumed, grid)
    arrays = 4 * assumed.events + 8 * (assumed.users * assumed.services + 1)
    return [
        ("events", f"{assumed.events:.3g}"),
        ("positive pairs of one pass; steps", f"{pairs(assumed):.3g}; {steps:,.0f}"),
        ("725 M, one pass: FLOP", f"{large:.3g}"),
        ("725 M, one pass: GPU-hours; hours on 64; cost", cost(assumed, hours[0])),
        ("725 M, eight passes", cost(assumed, 8 * hours[0])),
        ("grid of 16 smaller runs: FLOP", f"{grid:.3g}"),
        ("grid of 16 smaller runs: GPU-hours; hours on 64; cost", cost(assumed, hours[1])),
        ("725 M on 64 GPUs: seconds per step", f"{step:.2f}"),
        (
            "embeddings gathered per step and GPU, forward; with gradients",
            f"{gathered / 1e6:.2f}; {3 * gathered / 1e6:.2f} MB",
        ),
        ("gradients all-reduced per step and GPU", f"{gradients / 1e9:.2f} GB"),
        ("seconds for it, if all GPUs of a node share its network", f"{slowest:.2f}"),
        ("weights, gradients, moments per GPU", f"{16 * total / 1e9:.1f} GB"),
        ("one checkpoint; kept; written by a run that saves ten", traffic(checkpoint)),
        ("seconds to write a checkpoint", f"{checkpoint / assumed.storage:.0f}"),
        ("event and offset arrays per process", f"{arrays / 1e9:.1f} GB"),
        ("the same per node of 8 processes", f"{8 * arrays / 1e9:.0f} GB"),
    ]


def cost(assumed: Assumed, hours: float) -> str:
    """Format GPU-hours as hours, hours on all GPUs and dollars."""
    return f"{hours:,.0f}; {hours / assumed.gpus:.1f}; ${hours * assumed.dollars:,.0f}"


def traffic(checkpoint: float) -> str:
    """Format the bytes of one checkpoint, of those kept and of those written."""
    return f"{checkpoint / 1e9:.1f}; {2 * checkpoint / 1e9:.1f}; {10 * checkpoint / 1e9:.0f} GB"


LOAD = """
import json, sys, time
import psutil
from clue_ray.corpus.store import open_corpus
import resource
before, started = psutil.Process().memory_info().rss, time.perf_counter()
corpus = open_corpus(sys.argv[1], verify=False)
events = len(corpus.events)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
print(json.dumps({"events": events, "peak": peak, "seconds": time.perf_counter() - started}))
"""


def measure(users: int) -> list[tuple[str, str]]:
    """Load a planted corpus in its own process and write a checkpoint of 100 million numbers."""
    import pyarrow.parquet as pq
    import torch

    from clue_ray.cluster.session import connect
    from clue_ray.corpus.build import build_corpus
    from clue_ray.corpus.planted import PlantedSpec, planted_events
    from clue_ray.spec.specs import CorpusSpec
    from clue_ray.training.checkpoints import save_state

    folder = Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp"))
    try:
        pq.write_table(planted_events(PlantedSpec(users=users)), folder / "events.parquet")
        with connect():
            corpus = build_corpus(
                CorpusSpec(events=str(folder / "events.parquet"), vocab_size=1024),
                folder / "corpus",
            )
        size = sum(file.stat().st_size for file in (folder / "corpus" / "shards").iterdir())
        out = subprocess.run(
            [sys.executable, "-c", LOAD, corpus.path], capture_output=True, text=True, check=True
        )
        found = json.loads(out.stdout)
        state = {"weights": torch.zeros(100_000_000), "progress": {"step": 1}}
        started = time.perf_counter()
        save_state(folder / "checkpoints", state)
        seconds = time.perf_counter() - started
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [
        ("events loaded", f"{found['events']:,}"),
        ("bytes per event in shards", f"{size / found['events']:.1f}"),
        ("peak bytes per event while loading", f"{found['peak'] / found['events']:.0f}"),
        ("events loaded per second", f"{found['events'] / found['seconds']:,.0f}"),
        ("checkpoint to local disk, GB/s", f"{0.4 / seconds:.2f}"),
    ]


def main() -> None:
    """Print the figures."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--measure", action="store_true", help="also load a corpus and write a checkpoint"
    )
    options.add_argument("--users", type=int, default=20_000, help="users of the loaded corpus")
    chosen = options.parse_args()
    console = Console(width=110, highlight=False)
    table = Table("estimate", "value")
    for row in paper(Assumed()):
        table.add_row(*row)
    console.print(table)
    if chosen.measure:
        table = Table("measured", "value")
        for row in measure(chosen.users):
            table.add_row(*row)
        console.print(table)


if __name__ == "__main__":
    main()
