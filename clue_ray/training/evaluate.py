"""Held-out retrieval (decision D2): calibrated loss, recall@10 and MRR on fixed pools of users.

Scores are averaged over service pairs and over both directions. The loss is computed at a
temperature that is fitted on validation users (training/calibration.py).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clue_ray.batches.packing import pack, recent_windows
from clue_ray.corpus.store import Corpus
from clue_ray.encoder.model import Encoder
from clue_ray.training.calibration import fit_temperature, symmetric_loss
from clue_ray.training.pools import Pool, Pools, pool_members, split_pool

USERS_AT_ONCE = 256
"""Users encoded together, which bounds memory."""


class Scores(NamedTuple):
    """Retrieval among a pool's candidates, averaged over service pairs and directions."""

    loss: float
    "nats; ln(candidates) is chance"
    recall_at_10: float
    mrr: float


class Evaluation(NamedTuple):
    """The scores of an encoder: those of `Scores`, and how its loss was calibrated."""

    loss: float
    "at the calibrated temperature"
    recall_at_10: float
    mrr: float
    calibrated_temperature: float
    loss_at_training_temperature: float


def evaluate(
    model: Encoder,
    corpus: Corpus,
    pools: Pools,
    sequence_length: int,
    users_at_once: int = USERS_AT_ONCE,
) -> Evaluation:
    """Evaluate a model on the pools, by each user's most recent `sequence_length` events."""

    def encode(users: NDArray[np.int64], service: int) -> torch.Tensor:
        return embed(model, corpus, users, service, sequence_length, users_at_once)

    model.eval()
    validation, scored = (
        pool_cosines(encode, pool, pools.candidates) for pool in (pools.validation, pools.scored)
    )
    model.train()
    scores, temperature = score_calibrated(scored, validation)
    uncalibrated = score_cosines(scored, 1 / model.scale.item())
    return Evaluation(*scores, temperature, uncalibrated.loss)


def score_calibrated(
    scored: Sequence[torch.Tensor], validation: Sequence[torch.Tensor]
) -> tuple[Scores, float]:
    """Score cosines at the temperature that is best for other users' cosines.

    Args:
        scored: The cosines of the scored pool, one matrix per pair of services.
        validation: The cosines of the validation pool.

    Returns:
        The scores and the temperature.
    """
    temperature = fit_temperature(validation)
    return score_cosines(scored, temperature), temperature


def score_cosines(cosines: Sequence[torch.Tensor], temperature: float) -> Scores:
    """Score the cosines of a pool at a temperature, averaged over pairs of services."""
    scores = [score_similarities(matrix / temperature) for matrix in cosines]
    return Scores(*np.mean(scores, axis=0).tolist())


def pool_cosines(
    encode: Callable[[NDArray[np.int64], int], Any], pool: Pool, candidates: int
) -> list[Any]:
    """Compute the cosines of each pool of each pair of services, first service by second.

    Args:
        encode: Encodes users in a service to unit vectors, [users, columns], of any array library.
    """
    members = pool_members(pool)
    vectors = {service: encode(users, service) for service, users in members.items()}
    cosines = []
    for pair, everyone in pool.items():
        for users in split_pool(everyone, candidates):
            a, b = (vectors[s][np.searchsorted(members[s], users)] for s in pair)
            cosines.append(a @ b.T)
    return cosines


@torch.no_grad()
def embed(
    model: Encoder,
    corpus: Corpus,
    users: NDArray[np.int64],
    service: int,
    sequence_length: int,
    users_at_once: int = USERS_AT_ONCE,
) -> torch.Tensor:
    """Embed users by their most recent events in one service, [users, output_width].

    Users without events there get zeros.
    """
    device = model.log_scale.device
    vectors = torch.zeros(len(users), model.output_width, device=device)
    (present,) = np.nonzero(corpus.count_events(users, service))
    for rows in np.array_split(present, max(1, -(-len(present) // users_at_once))):
        windows = recent_windows(corpus, users[rows], np.full(len(rows), service), sequence_length)
        cuts = np.full(len(rows), corpus.last_time) if model.reads_time else None
        packed = pack(corpus, windows, cuts=cuts).to(device)
        vectors[torch.from_numpy(rows)] = model(packed)[0]
    return vectors


def score_similarities(logits: torch.Tensor) -> Scores:
    """Score one square matrix of logits with the true pairs on the diagonal.

    A tie counts as half a rank. If a logit is not finite, all scores are NaN.
    """
    if not logits.isfinite().all():
        return Scores(math.nan, math.nan, math.nan)
    ranks = torch.cat([_true_ranks(logits), _true_ranks(logits.T)])
    recall = (ranks <= 10).float().mean().item()
    return Scores(symmetric_loss(logits).item(), recall, (1 / ranks).mean().item())


def _true_ranks(logits: torch.Tensor) -> torch.Tensor:
    """Return the rank of the diagonal entry in its row, 1 for the best, [rows]."""
    truth = logits.diagonal()[:, None]
    ahead = (logits > truth).sum(1)
    tied = (logits == truth).sum(1) - 1
    return 1 + ahead + tied / 2
