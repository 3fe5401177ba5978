"""Estimate a study of CLUE's size: work, time, memory and traffic.

    python -m benchmarks.scale              # a few seconds
    python -m benchmarks.scale --measure    # also prepares, plans and trains planted logs, minutes
    python -m benchmarks.scale --kill       # kills nodes while three prepare a log, minutes
    python -m benchmarks.scale --feed       # a step of `feed: ray_data` and of the local feed

`--measure --events 5e6 1e8` takes hours on 2 cores and 30 GB of disk, goes on where it was stopped,
and plots memory over time; see `scale_measured`. `--kill` is `scale_killed`.

The formulas are those of docs/notes/scale.md. FLOPs come from `clue_ray.spec.compute`, assumptions
from `Assumed`. None of the estimates has been measured on GPUs by us.
"""

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"

from rich.console import Console
from rich.table import Table

from benchmarks.scale_feed import compare_feeds
from benchmarks.scale_killed import kill_nodes
from benchmarks.scale_measured import measure_sizes
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
    items: float = 1e8
    "distinct"
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
    times, others, exchanged = layout(assumed)
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
        (
            "training layout, once per node; of runs that read no times",
            f"{(times + others) / 1e9:.1f}; {others / 1e9:.1f} GB",
        ),
        ("files that the tasks of the layout exchange, at least", f"{exchanged / 1e9:.0f} GB"),
    ]


def layout(assumed: Assumed) -> tuple[float, float, float]:
    """Return the bytes of a layout's times, of its other arrays, and of what its tasks exchange."""
    pools = assumed.services * (assumed.services + 1) / 2 + 1
    others = 4 * (assumed.events + assumed.items * assumed.tokens_per_event) + 8 * (
        assumed.users * assumed.services + assumed.items + assumed.users * (2 + pools)
    )
    times = 8 * assumed.events
    return times, others, 4 * assumed.events + times


def cost(assumed: Assumed, hours: float) -> str:
    """Format GPU-hours as hours, hours on all GPUs and dollars."""
    return f"{hours:,.0f}; {hours / assumed.gpus:.1f}; ${hours * assumed.dollars:,.0f}"


def traffic(checkpoint: float) -> str:
    """Format the bytes of one checkpoint, of those kept and of those written."""
    return f"{checkpoint / 1e9:.1f}; {2 * checkpoint / 1e9:.1f}; {10 * checkpoint / 1e9:.0f} GB"


def checkpoint_rate() -> float:
    """Write a checkpoint of 100 million numbers to the local disk; return GB/s."""
    import torch

    from clue_ray.training.checkpoints import save_state

    with tempfile.TemporaryDirectory(prefix="cr-") as folder:
        started = time.perf_counter()
        save_state(folder, {"weights": torch.zeros(100_000_000), "progress": {"step": 1}})
        return 0.4 / (time.perf_counter() - started)


def main() -> None:
    """Print the figures."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--measure", action="store_true", help="also measure planted logs, and a checkpoint"
    )
    options.add_argument(
        "--kill", action="store_true", help="also kill nodes while the largest log is prepared"
    )
    options.add_argument(
        "--feed", action="store_true", help="only compare a step of both feeds on this machine"
    )
    options.add_argument(
        "--events", type=float, nargs="+", default=[1e6, 5e6], help="sizes, the smallest first"
    )
    options.add_argument(
        "--folder",
        type=Path,
        default=Path("/tmp/clue-ray-scale"),
        help="where results are kept, and logs and corpora while they are needed",
    )
    chosen = options.parse_args()
    console = Console(width=110, highlight=False)
    if chosen.feed:
        table = Table("measured", "feed: worker", "feed: ray_data")
        for compared in compare_feeds():
            table.add_row(*compared)
        console.print(table)
        return
    table = Table("estimate", "value")
    for row in paper(Assumed()):
        table.add_row(*row)
    console.print(table)
    if chosen.measure:
        sizes = [int(events) for events in chosen.events]
        table = Table("measured", *(f"{events:,}" for events in sizes), "last / first")
        for measured in measure_sizes(sizes, chosen.folder):
            table.add_row(*measured)
        console.print(table)
        console.print(f"Memory over time: {chosen.folder}/memory.png")
        console.print(f"checkpoint to local disk: {checkpoint_rate():.2f} GB/s")
    if chosen.kill:
        table = Table("node killed", "seconds", "commands", "same digest", "same layout")
        for row in kill_nodes(int(chosen.events[-1]), chosen.folder):
            table.add_row(*row)
        console.print(table)


if __name__ == "__main__":
    main()
