"""Gradient caching: any global batch on any device, with the gradient of the whole batch.

Gao et al. 2021 (arXiv 2101.06983): embed all chunks without a graph, differentiate the loss in the
embeddings, then embed each chunk again and send its embeddings' gradient through. Plain
accumulation is no substitute: it has fewer negatives.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clue_ray.batches.packing import Packed, Windows

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""First and second users' embeddings, [users, width] each, and scale and bias of the logits, [2],
to a scalar."""


def split_windows(windows: Windows, users: int) -> list[Windows]:
    """Cut windows, two a positive pair, into chunks of at most `2 * users` sequences."""
    rows = range(0, len(windows.lengths), 2 * users)
    return [
        Windows(windows.starts[r : r + 2 * users], windows.lengths[r : r + 2 * users]) for r in rows
    ]


def cached_backward(forward: nn.Module, chunks: Iterable[Packed], loss: Loss) -> Tensor:
    """Accumulate the gradient of a batch given in chunks and return its loss, detached.

    Args:
        forward: the encoder, or DDP around it.
        chunks: packed sequences which, end to end, are first all users in one service, then all in
            the other.
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
            # The logits' scale and bias count once; with weight 0 they still belong to the graph,
            # as DDP asks.
            torch.autograd.backward((embedded, logit), (gradient, logit_gradient * float(last)))
    return value.detach()


def _without_averaging(forward: nn.Module) -> AbstractContextManager[None]:
    """Keep DDP from averaging gradients over workers before the last chunk."""
    return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()
