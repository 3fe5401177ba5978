"""Contrastive losses over a global batch that may be spread over workers.

Each worker scores its own users against those of all workers. The gather carries gradients back, so
that the mean of the workers' gradients is the gradient of the one-process loss. (A gather without
gradients gives the same loss, but a gradient that lacks half of its terms.)

Shape suffixes: U users of this worker, O output width.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROWS = 4096
"""Largest number of a worker's users whose logits against the whole batch exist at once.

The matrix of a larger batch would not fit: at 65,536 users it takes 17 GB in fp32, and the backward
pass needs it again. In blocks of rows, memory grows with the batch and not with its square.
"""


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


def info_nce(
    a_UO: Tensor, b_UO: Tensor, logit: Tensor, duplicate_ids: Tensor | None = None
) -> Tensor:
    """Compute this worker's share of the symmetric InfoNCE, in nats.

    L = (CE(rows) + CE(columns)) / 2 of scale * cosine, where the diagonal holds the positive pairs.

    Args:
        a_UO: unit embeddings of this worker's users in the first service.
        b_UO: those of the same users in the second service.
        logit: inverse temperature and bias, [2]; the bias cancels in a softmax.
        duplicate_ids: a number per user of the global batch, [users]; users that share a number are
            not negatives of each other.
    """
    first, all_a, all_b = _gather(a_UO, b_UO)
    target = torch.arange(first, first + len(a_UO), device=a_UO.device)
    # One worker holds the whole matrix, so its columns are the rows of the transpose, for free.
    if all_a is a_UO and len(a_UO) <= ROWS:
        by_row = logit[0] * a_UO @ all_b.T
        rows, columns = (
            F.cross_entropy(_mask_duplicates(x, target, duplicate_ids, -torch.inf), target)
            for x in (by_row, by_row.T)
        )
        return (rows + columns) / 2

    def cost(users: Tensor, target: Tensor, others: Tensor) -> Tensor:
        logits = logit[0] * users @ others.T
        masked = _mask_duplicates(logits, target, duplicate_ids, -torch.inf)
        return F.cross_entropy(masked, target, reduction="sum")

    both = _sum_blocks(cost, a_UO, target, all_b) + _sum_blocks(cost, b_UO, target, all_a)
    return both / (2 * len(a_UO))


def _pairwise_sigmoid(
    a_UO: Tensor, b_UO: Tensor, logit: Tensor, duplicate_ids: Tensor | None = None
) -> Tensor:
    """Compute this worker's share of the sigmoid loss, in nats per user.

    Each pair of users is a binary decision, whether b_j is the same user as a_i:
    L = -1/U sum_ij log sigmoid(z_ij (scale * cosine + bias)), with z = 1 on the diagonal and -1
    elsewhere (SigLIP, Zhai et al. 2023, arXiv 2303.15343). Arguments as in `info_nce`.
    """
    first, _, all_b = _gather(a_UO, b_UO)
    target = torch.arange(first, first + len(a_UO), device=a_UO.device)

    def cost(users: Tensor, target: Tensor, others: Tensor) -> Tensor:
        logits = logit[0] * users @ others.T + logit[1]
        signs = torch.full_like(logits, -1.0).scatter_(1, target[:, None], 1.0)
        return -_mask_duplicates(F.logsigmoid(signs * logits), target, duplicate_ids, 0.0).sum()

    return _sum_blocks(cost, a_UO, target, all_b) / len(a_UO)


OBJECTIVES: dict[str, Callable[..., Tensor]] = {"info_nce": info_nce, "sigmoid": _pairwise_sigmoid}


def at_temperature(objective: Callable[..., Tensor], temperature: float) -> Callable[..., Tensor]:
    """Return the objective at a fixed temperature, without a gradient for the learned one."""

    def fixed(a_UO: Tensor, b_UO: Tensor, logit: Tensor) -> Tensor:
        inverse = torch.full_like(logit[:1], 1 / temperature)
        # DDP waits for a gradient of every parameter; 0 * logit gives it one, of zero.
        return objective(a_UO, b_UO, torch.cat([inverse, logit[1:]]) + 0 * logit)

    return fixed


def count_similarities(objective: str, batch: int, workers: int) -> int:
    """Count the cosines that one worker computes per step, in units of a training step's three.

    `train_flops` multiplies forward work by three (forward once, backward twice as much). Blocks of
    rows are computed again in the backward pass, which makes four passes of three.
    """
    rows = batch // workers
    # Only one worker without blocks reads rows and columns from one matrix.
    transposed = workers == 1 and rows <= ROWS
    matrices = 1 if transposed or objective == "sigmoid" else 2
    passes = 4 if rows > ROWS else 3
    return matrices * rows * batch * passes // 3


def _gather(a_UO: Tensor, b_UO: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return the index of this worker's first user in the batch, and all workers' embeddings."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return 0, a_UO, b_UO
    return dist.get_rank() * len(a_UO), Gather.apply(a_UO), Gather.apply(b_UO)


def _mask_duplicates(
    values: Tensor, target: Tensor, duplicate_ids: Tensor | None, fill: float
) -> Tensor:
    """Fill the entries of false negatives, [own users, all users]; positive pairs stay."""
    if duplicate_ids is None:
        return values
    same = duplicate_ids[target][:, None] == duplicate_ids
    return values.masked_fill(same.scatter_(1, target[:, None], value=False), fill)


def _sum_blocks(
    cost: Callable[[Tensor, Tensor, Tensor], Tensor], users: Tensor, target: Tensor, others: Tensor
) -> Tensor:
    """Sum a cost over users, `ROWS` of them at a time.

    With more than one block, the logits of a block are freed after its forward pass and computed
    again in the backward pass.
    """
    if len(users) <= ROWS:
        return cost(users, target, others)
    blocks = zip(users.split(ROWS), target.split(ROWS), strict=True)
    costs = [
        checkpoint(cost, *block, others, use_reentrant=False, preserve_rng_state=False)
        for block in blocks
    ]
    return torch.stack(costs).sum()
