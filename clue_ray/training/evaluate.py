"""Held-out retrieval on one fixed pool (decision D2): loss, recall@10 and MRR.

The pool depends on the corpus and the number of candidates alone, so every run is scored on the
same users. Scores are averaged over service pairs and over both directions.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from clue_ray.batches.packing import pack, recent_windows
from clue_ray.corpus.store import Corpus
from clue_ray.encoder.model import Encoder
from clue_ray.errors import CorpusError

POOL_SEED = 20211115
USERS_AT_ONCE = 256
"""Users encoded together, which bounds memory."""

Pools = dict[tuple[int, int], NDArray[np.int64]]
"""Users of each service pair's pool, [candidates]."""


class Scores(NamedTuple):
    """Retrieval among a pool's candidates, averaged over service pairs and directions."""

    loss: float
    "nats; ln(candidates) is chance"
    recall_at_10: float
    mrr: float


def make_pools(corpus: Corpus, candidates: int) -> Pools:
    """Draw `candidates` held-out users for each pair of services that has enough.

    Raises:
        CorpusError: no pair has enough held-out users.
    """
    users = {pair: corpus.users_of_pair(corpus.test_users, pair) for pair in corpus.pairs()}
    pools = {
        pair: np.random.default_rng([POOL_SEED, *pair]).choice(pool, candidates, replace=False)
        for pair, pool in users.items()
        if len(pool) >= candidates
    }
    if not pools:
        most = max(map(len, users.values()), default=0)
        raise CorpusError(
            f"evaluation.candidates {candidates} is larger than the {most} held-out users of the "
            f"best-filled pair of services; use at most {most}, or hold out more users with "
            "corpus.split.test."
        )
    return pools


def _pool_members(pools: Pools) -> dict[int, NDArray[np.int64]]:
    """Return the users of each service's pools, sorted and without repeats.

    A user of several pools is then encoded once per service.
    """
    services = {service for pair in pools for service in pair}
    return {
        s: np.unique(np.concatenate([users for pair, users in pools.items() if s in pair]))
        for s in services
    }


def evaluate(
    model: Encoder,
    corpus: Corpus,
    pools: Pools,
    sequence_length: int,
    users_at_once: int = USERS_AT_ONCE,
) -> Scores:
    """Score a model on the pools, by each user's most recent `sequence_length` events."""
    model.eval()
    members = _pool_members(pools)
    vectors = {
        s: embed(model, corpus, users, s, sequence_length, users_at_once)
        for s, users in members.items()
    }
    scale = model.scale.detach()
    scores = []
    for pair, users in pools.items():
        a, b = (vectors[s][torch.from_numpy(np.searchsorted(members[s], users))] for s in pair)
        scores.append(score_similarities(scale * a @ b.T))
    model.train()
    return mean_scores(scores)


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
    (present,) = np.nonzero(corpus.counts[users, service])
    for rows in np.array_split(present, max(1, -(-len(present) // users_at_once))):
        windows = recent_windows(corpus, users[rows], np.full(len(rows), service), sequence_length)
        vectors[torch.from_numpy(rows)] = model(pack(corpus, windows).to(device))[0]
    return vectors


def score_similarities(logits: torch.Tensor) -> Scores:
    """Score one square matrix of logits with the true pairs on the diagonal.

    A tie counts as half a rank. If a logit is not finite, all scores are NaN.
    """
    if not logits.isfinite().all():
        return Scores(math.nan, math.nan, math.nan)
    target = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    ranks = torch.cat([_true_ranks(logits), _true_ranks(logits.T)])
    return Scores(loss.item(), (ranks <= 10).float().mean().item(), (1 / ranks).mean().item())


def _true_ranks(logits: torch.Tensor) -> torch.Tensor:
    """Return the rank of the diagonal entry in its row, 1 for the best, [rows]."""
    truth = logits.diagonal()[:, None]
    ahead = (logits > truth).sum(1)
    tied = (logits == truth).sum(1) - 1
    return 1 + ahead + tied / 2


def mean_scores(scores: list[Scores]) -> Scores:
    """Average scores over pools."""
    return Scores(*np.mean(scores, axis=0).tolist())
