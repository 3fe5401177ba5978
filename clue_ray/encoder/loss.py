"""Contrastive losses over a global batch that may be spread over workers.

Each worker scores its own users against everybody's; the gather carries gradients back, so that the
mean of the workers' gradients is the gradient of the one-process loss. (Gathering without gradient
shows the same loss and a gradient that is wrong by half.)
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROWS = 4096
"""Users of a worker whose logits against the whole batch exist at once: memory grows with a batch,
not its square."""


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


def info_nce(a_UO: Tensor, b_UO: Tensor, logit: Tensor, same: Tensor | None = None) -> Tensor:
    """Return this worker's share of the symmetric InfoNCE, nats.

    L = (CE(rows) + CE(columns)) / 2 of scale x cosine, the diagonal being the same user in the
    other service.

    Args:
        a_UO, b_UO: unit embeddings of this worker's users in the first and the second service.
        logit: inverse temperature and bias, [2]; a softmax cancels the bias.
        same: a number for each user of the global batch; users of one number are no negatives of
            each other.
    """
    first, all_a, all_b = _gather(a_UO, b_UO)
    target = torch.arange(first, first + len(a_UO), device=a_UO.device)
    if all_a is a_UO and len(a_UO) <= ROWS:  # one worker's columns are its rows turned
        by_row = logit[0] * a_UO @ all_b.T
        rows, columns = (
            F.cross_entropy(_spare(x, target, same, -torch.inf), target) for x in (by_row, by_row.T)
        )
        return (rows + columns) / 2

    def cost(users: Tensor, target: Tensor, others: Tensor) -> Tensor:
        return F.cross_entropy(
            _spare(logit[0] * users @ others.T, target, same, -torch.inf), target, reduction="sum"
        )

    both = _sum_rows(cost, a_UO, target, all_b) + _sum_rows(cost, b_UO, target, all_a)
    return both / (2 * len(a_UO))


def _pairwise_sigmoid(
    a_UO: Tensor, b_UO: Tensor, logit: Tensor, same: Tensor | None = None
) -> Tensor:
    """Return this worker's share of the sigmoid loss, nats a user: is b_j the same user as a_i, yes
    or no?

    L = -1/U sum_ij log sigmoid(z_ij (scale x cosine + bias)), z = 1 on the diagonal and -1
    elsewhere (SigLIP, Zhai et al. 2023, arXiv 2303.15343). Arguments as in `info_nce`.
    """
    first, _, all_b = _gather(a_UO, b_UO)
    target = torch.arange(first, first + len(a_UO), device=a_UO.device)

    def cost(users: Tensor, target: Tensor, others: Tensor) -> Tensor:
        logits = logit[0] * users @ others.T + logit[1]
        signs = torch.full_like(logits, -1.0).scatter_(1, target[:, None], 1.0)
        return -_spare(F.logsigmoid(signs * logits), target, same, 0.0).sum()

    return _sum_rows(cost, a_UO, target, all_b) / len(a_UO)


def _sum_rows(
    cost: Callable[[Tensor, Tensor, Tensor], Tensor], users: Tensor, target: Tensor, others: Tensor
) -> Tensor:
    """Sum a cost over users, `ROWS` of their logits at a time; those of larger batches are computed
    again backward.
    """
    if len(users) <= ROWS:
        return cost(users, target, others)
    parts = zip(users.split(ROWS), target.split(ROWS), strict=True)
    return torch.stack(
        [
            checkpoint(cost, *part, others, use_reentrant=False, preserve_rng_state=False)
            for part in parts
        ]
    ).sum()


def count_similarities(objective: str, batch: int, workers: int) -> int:
    """Count the cosines that one worker computes a step: as many as `forward_flops` is to take for
    executed ones.
    """
    rows = batch // workers
    turned = (
        workers == 1 and rows <= ROWS
    )  # else a worker's rows and its columns overlap in one block only
    matrices = 1 if turned or objective == "sigmoid" else 2
    passes = 4 if rows > ROWS else 3  # forward, twice as much backward, and forward again
    return matrices * rows * batch * passes // 3


def at_temperature(objective: Callable[..., Tensor], temperature: float) -> Callable[..., Tensor]:
    """Return the objective at a fixed temperature, with no gradient for the learned one."""

    def fixed(a_UO: Tensor, b_UO: Tensor, logit: Tensor) -> Tensor:
        inverse = torch.full_like(logit[:1], 1 / temperature)
        return objective(
            a_UO, b_UO, torch.cat([inverse, logit[1:]]) + 0 * logit
        )  # DDP wants the graph

    return fixed


OBJECTIVES: dict[str, Callable[..., Tensor]] = {"info_nce": info_nce, "sigmoid": _pairwise_sigmoid}


def _gather(a_UO: Tensor, b_UO: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return the place of this worker's first user in the global batch, and all workers'
    embeddings.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return 0, a_UO, b_UO
    return dist.get_rank() * len(a_UO), Gather.apply(a_UO), Gather.apply(b_UO)


def _spare(values: Tensor, target: Tensor, same: Tensor | None, fill: float) -> Tensor:
    """Fill the entries of users that are alike, [own users, all users], the positive pairs
    excepted.
    """
    if same is None:
        return values
    alike = (same[target][:, None] == same).scatter_(1, target[:, None], value=False)
    return values.masked_fill(alike, fill)
