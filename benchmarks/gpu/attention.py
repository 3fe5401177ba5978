"""Attention limits: how many short sequences one step may hold, each number in its own process.

The variable-length kernel counts sequences in a grid dimension that ends at 65,535, and computes
addresses of its backward pass in 32 bits; an illegal access kills the process.
"""

import subprocess
import sys

import torch

from benchmarks.gpu.results import Recorder
from benchmarks.gpu.setting import Setting, peak_bytes, time_ms
from clue_ray.batches.packing import group_lengths
from clue_ray.encoder.blocks import Block, lay_out
from clue_ray.spec.specs import EncoderSpec

LENGTH = 17
COUNTS = (65_536, 100_000, 21_846, 65_535, 32_000, 21_845, 10_000)
"""Sequences, the most telling first."""
SHAPES = ((12, 64), (2, 32))
"""Heads and their width."""
LIMIT = 40


def run(record: Recorder, setting: Setting) -> None:
    """Attend forward and backward at each number of sequences."""
    for heads, width in SHAPES:
        for count in (30,) if setting.dry else COUNTS:
            _attend_apart(record, setting, count, heads, width)


def _attend_apart(record: Recorder, setting: Setting, count: int, heads: int, width: int) -> None:
    """Attend in a process of its own on a card; in this one in a dry run."""
    name = f"{count} x {LENGTH}, {heads} x {width}"
    if setting.dry:
        milliseconds, peak = attend(setting.device, count, heads, width)
        return record(name, True, ms=milliseconds, peak_mb=peak / 1e6)
    code = (
        "import torch; from benchmarks.gpu.attention import attend; "
        f"print(*attend(torch.device('cuda'), {count}, {heads}, {width}))"
    )
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        lines = str(error.stderr or error).strip().splitlines()
        return record(name, False, lines[-1][:120])
    milliseconds, peak = map(float, ended.stdout.split()[-2:])
    record(name, True, ms=milliseconds, peak_mb=peak / 1e6)


def attend(device: torch.device, count: int, heads: int, width: int) -> tuple[float, float]:
    """Return milliseconds of attention forward and backward, and its peak of bytes.

    Raises:
        RuntimeError: the result differs from that of a few sequences alone.
    """
    import numpy as np

    block = Block(
        EncoderSpec(width=heads * width, item_layers=1, service_layers=1, heads=heads), 0, 1
    )
    groups = group_lengths(np.full(count, LENGTH))
    sequences = lay_out(groups, torch.zeros(0, dtype=torch.int64, device=device), None)
    qkv = torch.randn(
        count * LENGTH, 3 * heads * width, device=device, dtype=torch.bfloat16, requires_grad=True
    )
    peak_bytes(device)

    def both() -> torch.Tensor:
        qkv.grad = None
        attended = block._attend(qkv, sequences)
        attended.sum().backward()
        return attended

    milliseconds = time_ms(both, device, repeats=3, warm_ups=1)
    with torch.no_grad():
        last = block._attend_by_length(qkv[-4 * LENGTH :], [(4, LENGTH)])
    if not torch.allclose(both()[-4 * LENGTH :], last, atol=2e-2):
        raise RuntimeError("the last sequences differ from the same ones alone")
    return milliseconds, peak_bytes(device)
