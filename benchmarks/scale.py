"""A study at CLUE's size on paper: work, time, memory and traffic, by the formulas that
docs/notes/scale.md shows.

    python -m benchmarks.scale              # half a minute; --measure also loads a corpus and
    writes a checkpoint here

FLOPs come from `clue_ray.spec.compute`. What is assumed stands in `Assumed` and in the printed
table; nothing of it has been measured by us on GPUs."""

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
    """What the paper arithmetic takes for granted."""

    users: float = 11e6
    tokens: float = 50e9
    "of all events, guide tokens included"
    services: int = 4
    tokens_per_event: int = 17
    "16 of text and the guide token"
    batch: int = 4096
    gpus: int = 64
    gpus_per_node: int = 8
    peak_flops: float = 989e12
    "a GPU's, dense bf16"
    utilisation: float = 0.40
    "share of the peak that training reaches (MFU)"
    dollars: float = 3.0
    "a GPU-hour"
    network: float = 50e9
    "bytes a second in and out of a node"
    storage: float = 0.5e9
    "bytes a second that one process writes to object storage"

    @property
    def events(self) -> float:
        """Events in the log."""
        return self.tokens / self.tokens_per_event


def pair_work(assumed: Assumed, length: int) -> Work:
    """Return the work of one positive pair: a user's `length` events in each of two services,
    nothing spared."""
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
    """Return the FLOPs of a run that sees as many pairs as one pass over all tokens at 128 events
    has."""
    return train_flops(EncoderSpec(size=size), pair_work(assumed, length)) * pairs(assumed)


def pairs(assumed: Assumed) -> float:
    """Return the positive pairs of one pass over all tokens at 128 events."""
    return assumed.tokens / pair_work(assumed, 128).tokens


def gpu_hours(assumed: Assumed, flops: float) -> float:
    """Return GPU-hours at the assumed utilisation."""
    return flops / (assumed.peak_flops * assumed.utilisation) / 3600


def paper(assumed: Assumed) -> list[tuple[str, str]]:
    """Work out the figures of docs/notes/scale.md."""
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
        ("a step of 725 M on 64 GPUs, seconds", f"{step:.2f}"),
        (
            "gathered a step and GPU, forward; with gradients",
            f"{gathered / 1e6:.2f}; {3 * gathered / 1e6:.2f} MB",
        ),
        ("all-reduced gradients a step and GPU", f"{gradients / 1e9:.2f} GB"),
        ("seconds of it, if every GPU's crossed the node's network", f"{slowest:.2f}"),
        ("weights, gradients, moments on each GPU", f"{16 * total / 1e9:.1f} GB"),
        ("a checkpoint; kept; written in a run of ten", traffic(checkpoint)),
        ("seconds to write one", f"{checkpoint / assumed.storage:.0f}"),
        ("event and offset arrays of a process", f"{arrays / 1e9:.1f} GB"),
        ("the same in 8 processes of a node", f"{8 * arrays / 1e9:.0f} GB"),
    ]


def cost(assumed: Assumed, hours: float) -> str:
    """Say what GPU-hours come to."""
    return f"{hours:,.0f}; {hours / assumed.gpus:.1f}; ${hours * assumed.dollars:,.0f}"


def traffic(checkpoint: float) -> str:
    """Say what checkpoints take."""
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
    """Load a planted corpus in a process of its own, and write a checkpoint of 100 million numbers
    to this disk."""
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
        ("bytes an event in shards", f"{size / found['events']:.1f}"),
        ("peak bytes an event while loading", f"{found['peak'] / found['events']:.0f}"),
        ("events a second while loading", f"{found['events'] / found['seconds']:,.0f}"),
        ("checkpoint to this disk, GB/s", f"{0.4 / seconds:.2f}"),
    ]


def main() -> None:
    """Print the figures."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--measure", action="store_true", help="load a corpus and write a checkpoint here too"
    )
    options.add_argument("--users", type=int, default=20_000, help="users of that corpus")
    chosen = options.parse_args()
    console = Console(width=110, highlight=False)
    table = Table("on paper", "value")
    for row in paper(Assumed()):
        table.add_row(*row)
    console.print(table)
    if chosen.measure:
        table = Table("measured here", "value")
        for row in measure(chosen.users):
            table.add_row(*row)
        console.print(table)


if __name__ == "__main__":
    main()
