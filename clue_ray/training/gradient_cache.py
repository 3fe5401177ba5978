"""Gradient caching: any global batch on any device, with the gradient of the whole batch.

A contrastive loss needs the embeddings of all users of the batch at once, but a device can hold the
activations of a few only. Gao et al. 2021 (arXiv 2101.06983) use two passes. The first embeds all
chunks without keeping activations, which yields the loss and its gradient in the embeddings. The
second embeds each chunk again, with activations, and propagates its part of that gradient to the
weights. Plain gradient accumulation is not a substitute: each chunk would see its own users as the
only negatives.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clue_ray.batches.packing import Packed

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Embeddings of the first and the second views, [users, width] each, and inverse temperature and
bias of the logits, [2], to a scalar."""


def split_rows(rows: NDArray[np.int64], users: int) -> list[NDArray[np.int64]]:
    """Split a worker's rows, two per user, into chunks of at most `2 * users` rows."""
    return [rows[start : start + 2 * users] for start in range(0, len(rows), 2 * users)]


def cached_backward(forward: nn.Module, chunks: Iterable[Packed], loss: Loss) -> Tensor:
    """Accumulate the gradient of a batch given in chunks; return its loss, detached.

    Args:
        forward: the encoder, or DDP around it.
        chunks: packed sequences which, end to end, are first all users in one service, then all in
            the other.
        loss: of the whole batch.
    """
    model = forward.module if isinstance(forward, DistributedDataParallel) else forward
    packed = list(chunks)
    with torch.no_grad():
        parts = [model(chunk) for chunk in packed]
    users = torch.cat([part for part, _ in parts]).requires_grad_()
    logit = parts[0][1].detach().requires_grad_()
    first, second = users.chunk(2)
    value = loss(first, second, logit)
    users_gradient, logit_gradient = torch.autograd.grad(value, (users, logit))
    gradients = users_gradient.split([len(part) for part, _ in parts])
    for number, (chunk, gradient) in enumerate(zip(packed, gradients, strict=True)):
        last = number == len(packed) - 1
        with nullcontext() if last else _without_averaging(forward):
            embedded, logit = forward(chunk)
            # Every chunk returns the same scale and bias, so their gradient counts once. With
            # weight 0 they still belong to the graph, as DDP requires.
            torch.autograd.backward((embedded, logit), (gradient, logit_gradient * float(last)))
    return value.detach()


def _without_averaging(forward: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which DDP does not average gradients; once per batch is enough."""
    return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()
