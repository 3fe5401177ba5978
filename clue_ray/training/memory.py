"""How much of a worker's batch its device encodes at once: an estimate, halved when it is full."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from clue_ray.batches.packing import Packed
from clue_ray.spec.specs import RunSpec
from clue_ray.training.device import free_bytes

Found = TypeVar("Found")
BYTES_PER_POSITION = 28
"""Activations of one position and block in bf16, in units of the width: 22 in the layers that torch
saves and 6 of queries, keys and values. In fp32 they are twice that."""
USABLE = 0.7
"""Share of the free memory that activations may take; the rest is for what is not counted."""
SMALLEST_SHARE = 2.0**-12
"""Share of a batch below which more memory is not found by encoding less at once."""
WHOLE_MARGIN = 2.0
"""Times that a batch must fit before several workers encode it whole."""


class MemoryShare:
    """The share of a worker's batch that is encoded at once, halved when the device is full.

    Args:
        share: from 0 to 1.
        adapts: whether it is halved; otherwise an error of memory is raised.
    """

    def __init__(self, share: float, adapts: bool = False):
        self.share, self.adapts = share, adapts

    def within(self, work: Callable[[float], Found]) -> Found:
        """Call work with the share until it fits; calls must not depend on earlier ones."""
        while True:
            try:
                return work(self.share)
            except torch.OutOfMemoryError:
                if not self.adapts or self.share < SMALLEST_SHARE:
                    raise
            # Outside the handler: the traceback would keep the tensors of the failed call.
            self.share /= 2
            torch.cuda.empty_cache()


def choose_memory(run: RunSpec, packed: Packed, device: torch.device, workers: int) -> MemoryShare:
    """Choose how much of a batch is encoded at a time: the same share on all workers.

    Args:
        run: says how many users, or that the device decides.
        packed: a batch like the others.
        device: of this worker.
        workers: number of workers.
    """
    users = run.resources.users_per_chunk
    if users != "auto":
        return MemoryShare(min(1.0, users / (run.train.global_batch_size // workers)))
    if device.type != "cuda":
        return MemoryShare(1.0)
    fits = torch.tensor(times_that_fit(run, packed, free_bytes(device)), device=device)
    if workers > 1:
        dist.all_reduce(fits, dist.ReduceOp.MIN)
    return MemoryShare(share_that_fits(fits.item(), workers), adapts=True)


def times_that_fit(run: RunSpec, packed: Packed, free: int) -> float:
    """Estimate how many times the activations of a batch fit `free` bytes."""
    encoder = run.encoder
    positions = (
        encoder.item_layers * packed.items.layout.positions
        + encoder.service_layers * packed.sequences.layout.positions
    )
    bf16 = run.train.precision == "bf16"
    size = BYTES_PER_POSITION * encoder.width * positions * (1 if bf16 else 2)
    return USABLE * free / max(1, size)


def share_that_fits(fits: float, workers: int) -> float:
    """Return the share of a batch to encode at once, given how many times it fits.

    Workers that have begun to average gradients (DDP) cannot start a step again with less at once,
    so several workers encode a batch whole only where it fits by a margin.
    """
    if workers == 1:
        return min(1.0, fits)
    return 1.0 if fits >= WHOLE_MARGIN else min(0.5, fits)
