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
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from clue_ray.batches.packing import Items, Packed, Sequences
from clue_ray.encoder.model import Encoder, join_views
from clue_ray.encoder.tiles import with_tiles
from clue_ray.training.memory import MemoryShare

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Embeddings of the first and the second views, [users, width] each, and inverse temperature and
bias of the logits, [2], to a scalar."""
BUCKET_BYTES = 25 * 2**20
"""Gradients that are averaged over workers in one call."""


class Chunks(NamedTuple):
    """A worker's share of a batch in parts that are encoded at once."""

    share: float
    "of the positions that each part has"
    items: list[Items]
    sequences: list[Sequences]


def cut(packed: Packed, share: float) -> Chunks:
    """Cut a batch into parts; both passes encode the same ones.

    The host waits for a GPU here (`Bag.split`), so the thread that packs should call it.
    """
    items = packed.items.split(_part(packed.items, share))
    sequences = packed.sequences.split(_part(packed.sequences, share))
    return Chunks(
        share,
        [part._replace(layout=with_tiles(part.layout)) for part in items],
        [part._replace(layout=with_tiles(part.layout)) for part in sequences],
    )


def cached_backward(
    model: Encoder,
    packed: Packed,
    memory: MemoryShare,
    loss: Loss,
    masks: Tensor | None = None,
    *,
    chunks: Chunks | None = None,
) -> Tensor:
    """Set the gradient of a batch, averaged over workers; return its loss, detached.

    Args:
        model: not wrapped in DDP.
        packed: sequences which are first all users' first views, then their second ones.
        memory: how much of them is encoded at once.
        loss: of the whole batch.
        masks: the step's dropout masks.
        chunks: of `cut`, of the share that `memory` has now; cut here if left out.
    """

    def chunks_of(share: float) -> Chunks:
        nonlocal chunks
        if chunks is None or chunks.share != share:
            chunks = cut(packed, share)
        return chunks

    items, users = memory.within(lambda share: _embed(model, chunks_of(share), masks))
    users.requires_grad_()
    logit = model.logit.detach().requires_grad_()
    first, second = join_views(users, packed).chunk(2)
    # Only the loss and the average below communicate, so a worker may repeat the rest on its own.
    value = loss(first, second, logit)
    gradient, logit_gradient = torch.autograd.grad(value, (users, logit))

    def propagate(share: float) -> None:
        model.zero_grad(set_to_none=True)
        model.logit.backward(logit_gradient)
        _propagate(model, chunks_of(share), masks, items, gradient)

    memory.within(propagate)
    _average_over_workers(model)
    return value.detach()


@torch.no_grad()
def _embed(model: Encoder, chunks: Chunks, masks: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Encode items and sequences without activations: the tables of both, in storage order."""
    encoded = [model.encode_items(part, masks) for part in chunks.items]
    found = [part for part in encoded if part is not None]
    items = torch.cat(found) if found else None
    users = [model.encode_sequences(items, part, masks) for part in chunks.sequences]
    return items, torch.cat(users)


def _propagate(
    model: Encoder,
    chunks: Chunks,
    masks: Tensor | None,
    items: Tensor | None,
    gradient: Tensor,
) -> None:
    """Encode again, with activations: sequences down to the table of items, then the items."""
    table = None if items is None else items.detach().requires_grad_()
    start = 0
    for part in chunks.sequences:
        stop = start + part.layout.sequences
        model.encode_sequences(table, part, masks).backward(gradient[start:stop])
        start = stop
    if table is None or table.grad is None:
        return
    start = 0
    for chunk in chunks.items:
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
        if reduces_in_bf16(model):
            flat = flat.bfloat16()
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def reduces_in_bf16(model: Encoder) -> bool:
    """Return whether workers send gradients in bf16: on GPUs, if the products are in bf16 too."""
    return model.precision == "bf16" and model.log_scale.is_cuda


def _buckets(gradients: list[Tensor]) -> list[list[Tensor]]:
    """Group gradients to about `BUCKET_BYTES` each."""
    buckets: list[list[Tensor]] = [[]]
    for gradient in gradients:
        if sum(g.nbytes for g in buckets[-1]) + gradient.nbytes > BUCKET_BYTES and buckets[-1]:
            buckets.append([])
        buckets[-1].append(gradient)
    return buckets
