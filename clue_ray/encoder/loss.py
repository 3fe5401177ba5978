"""Symmetric InfoNCE over a global batch that may be spread over workers.

Each worker scores its own users against everybody's; the gather carries gradients back, so that the mean of the
workers' gradients is the gradient of the one-process loss. (Gathering without gradient shows the same loss and a
gradient that is wrong by half.)
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


class Gather(torch.autograd.Function):
    """Concatenate all workers' rows; backward sums over workers and keeps the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Gather [rows, width] from each worker to [world_size * rows, width]."""
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Sum the gradient over workers and return this worker's slice."""
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def info_nce(a_UO: Tensor, b_UO: Tensor, scale: Tensor) -> Tensor:
    """Return this worker's share of the symmetric InfoNCE, nats.

    L = (CE(rows) + CE(columns)) / 2 of scale x cosine, the diagonal being the same user in the other service.

    Args:
        a_UO, b_UO: unit embeddings of this worker's users in the first and the second service.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        logits = scale * a_UO @ b_UO.T
        target = torch.arange(len(a_UO), device=a_UO.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    all_a, all_b = Gather.apply(a_UO), Gather.apply(b_UO)
    target = torch.arange(len(a_UO), device=a_UO.device) + dist.get_rank() * len(a_UO)
    rows = F.cross_entropy(scale * a_UO @ all_b.T, target)
    columns = F.cross_entropy(scale * b_UO @ all_a.T, target)
    return (rows + columns) / 2
