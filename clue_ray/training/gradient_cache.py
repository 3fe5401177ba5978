"""Gradient caching: any global batch on any device, with the gradient of the whole batch.

A contrastive loss needs the embeddings of all users of the batch at once, but a device can hold the
activations of a few only. Gao et al. 2021 (arXiv 2101.06983) use two passes. The first embeds all
chunks without keeping activations, which yields the loss and its gradient in the embeddings. The
second embeds each chunk again, with activations, and propagates its part of that gradient to the
weights. Plain gradient accumulation is not a substitute: each chunk would see its own users as the
only negatives.

Here it has two levels, because users share items. The distinct items of the whole share are encoded
first, in chunks of tokens; then the sequences, in chunks of events, from the table of items. Their
second pass leaves a gradient in that table, with which the items are encoded a second time. Each
item is thus encoded twice per step, however many chunks its events are in (decision D5).
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from clue_ray.batches.packing import Items, Packed, Sequences
from clue_ray.encoder.model import Encoder, join_views

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Embeddings of the first and the second views, [users, width] each, and inverse temperature and
bias of the logits, [2], to a scalar."""
Found = TypeVar("Found")
SMALLEST_SHARE = 2.0**-12
"""Share of a batch below which more memory is not found by encoding less at once."""
BUCKET_BYTES = 25 * 2**20
"""Gradients that are averaged over workers in one call."""


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


def cached_backward(
    model: Encoder, packed: Packed, memory: MemoryShare, loss: Loss, masks: Tensor | None = None
) -> Tensor:
    """Set the gradient of a batch, averaged over workers; return its loss, detached.

    Args:
        model: not wrapped in DDP.
        packed: sequences which are first all users' first views, then their second ones.
        memory: how much of them is encoded at once.
        loss: of the whole batch.
        masks: the step's dropout masks.
    """
    items, users = memory.within(lambda share: _embed(model, packed, share, masks))
    users.requires_grad_()
    logit = model.logit.detach().requires_grad_()
    first, second = join_views(users, packed).chunk(2)
    # Only the loss and the average below communicate, so a worker may repeat the rest on its own.
    value = loss(first, second, logit)
    gradient, logit_gradient = torch.autograd.grad(value, (users, logit))

    def propagate(share: float) -> None:
        model.zero_grad(set_to_none=True)
        model.logit.backward(logit_gradient)
        _propagate(model, packed, share, masks, items, gradient)

    memory.within(propagate)
    _average_over_workers(model)
    return value.detach()


@torch.no_grad()
def _embed(
    model: Encoder, packed: Packed, share: float, masks: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Encode items and sequences without activations: the tables of both, in storage order."""
    chunks = packed.items.split(_part(packed.items, share))
    encoded = [model.encode_items(chunk, masks) for chunk in chunks]
    found = [part for part in encoded if part is not None]
    items = torch.cat(found) if found else None
    parts = packed.sequences.split(_part(packed.sequences, share))
    return items, torch.cat([model.encode_sequences(items, part, masks) for part in parts])


def _propagate(
    model: Encoder,
    packed: Packed,
    share: float,
    masks: Tensor | None,
    items: Tensor | None,
    gradient: Tensor,
) -> None:
    """Encode again, with activations: sequences down to the table of items, then the items."""
    table = None if items is None else items.detach().requires_grad_()
    start = 0
    for part in packed.sequences.split(_part(packed.sequences, share)):
        stop = start + part.layout.sequences
        model.encode_sequences(table, part, masks).backward(gradient[start:stop])
        start = stop
    if table is None or table.grad is None:
        return
    start = 0
    for chunk in packed.items.split(_part(packed.items, share)):
        stop = start + chunk.layout.sequences
        encoded = model.encode_items(chunk, masks)
        assert encoded is not None
        encoded.backward(table.grad[start:stop])
        start = stop


def _part(sequences: Items | Sequences, share: float) -> int:
    """Return the positions of a share of all."""
    return max(1, math.ceil(share * sequences.layout.positions))


def _average_over_workers(model: Encoder) -> None:
    """Average the gradients over workers; DDP would do it once per backward pass of a chunk."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    parameters = list(model.parameters())
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: list[Tensor]) -> list[list[Tensor]]:
    """Group gradients to about `BUCKET_BYTES` each."""
    buckets: list[list[Tensor]] = [[]]
    for gradient in gradients:
        if sum(g.nbytes for g in buckets[-1]) + gradient.nbytes > BUCKET_BYTES and buckets[-1]:
            buckets.append([])
        buckets[-1].append(gradient)
    return buckets
