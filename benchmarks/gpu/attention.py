"""Attention limits: how many short sequences one step may hold, each number in its own process.

The variable-length kernel counts sequences in a grid dimension that ends at 65,535, and computes
addresses of its backward pass in 32 bits; an illegal access kills the process.
"""

import multiprocessing
from typing import Any

import torch

from benchmarks.gpu.results import Recorder
from benchmarks.gpu.setting import Setting, peak_bytes, time_ms
from clue_ray.batches.layout import lay_out
from clue_ray.batches.transfer import copy_to
from clue_ray.encoder.attention import attend, attend_by_length, attend_by_varlen
from clue_ray.encoder.tiles import with_tiles

LENGTH = 17
COUNTS = (65_536, 100_000, 21_846, 65_535, 32_000, 21_845, 10_000)
"""Sequences, the most telling first."""
PATHS = {"as a run chooses": attend, "variable length": attend_by_varlen}
"""Runs attend within so short sequences in tiles, which do not reach the limits of the other."""
SHAPES = ((12, 64), (2, 32))
"""Heads and their width."""
LIMIT = 40


def run(record: Recorder, setting: Setting) -> None:
    """Attend forward and backward at each number of sequences."""
    for heads, width in SHAPES:
        for count in (30,) if setting.dry else COUNTS:
            _attend_apart(record, setting, count, heads, width)


def _attend_apart(record: Recorder, setting: Setting, count: int, heads: int, width: int) -> None:
    """Attend in a process of its own on a card, on each path; in this one in a dry run."""
    name = f"{count} x {LENGTH}, {heads} x {width}"
    if setting.dry:
        milliseconds, peak = attend_many(setting.device, count, heads, width)
        return record(name, True, ms=milliseconds, peak_mb=peak / 1e6)
    for path in PATHS:
        _record_apart(record, f"{name}, {path}", (setting.device, count, heads, width, path))


def _record_apart(record: Recorder, name: str, arguments: tuple[Any, ...]) -> None:
    """Record what a process of its own attends, which may die of an illegal access."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu.attention"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_attended, args=(sender, *arguments))
    process.start()
    sender.close()
    process.join(min(LIMIT, max(1.0, record.left)))
    if process.is_alive():
        process.kill()
        process.join()
        return record(name, None, "not done in time")
    try:
        found = receiver.recv()
    except EOFError:
        found = f"the process ended with code {process.exitcode}"
    if isinstance(found, str):
        return record(name, False, found[:120])
    record(name, True, ms=found[0], peak_mb=found[1] / 1e6)


def _send_attended(sender: Any, *arguments: Any) -> None:
    """Send what `attend_many` returns, or why it failed."""
    try:
        sender.send(attend_many(*arguments))
    except Exception as error:
        sender.send(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")


def attend_many(
    device: torch.device, count: int, heads: int, width: int, path: str = "as a run chooses"
) -> tuple[float, float]:
    """Return milliseconds of attention forward and backward, and its peak of bytes.

    Raises:
        RuntimeError: the result differs from that of a few sequences alone.
    """
    layout = with_tiles(copy_to(lay_out([(count, LENGTH)]), device))
    qkv = torch.randn(
        count * LENGTH, 3 * heads * width, device=device, dtype=torch.bfloat16, requires_grad=True
    )
    peak_bytes(device)

    def both() -> torch.Tensor:
        qkv.grad = None
        attended = PATHS[path](qkv, layout, heads)
        attended.sum().backward()
        return attended

    milliseconds = time_ms(both, device, repeats=3, warm_ups=1)
    with torch.no_grad():
        last = attend_by_length(qkv[-4 * LENGTH :], [(4, LENGTH)], heads)
    if not torch.allclose(both()[-4 * LENGTH :], last, atol=2e-2):
        raise RuntimeError("the last sequences differ from the same ones alone")
    return milliseconds, peak_bytes(device)
