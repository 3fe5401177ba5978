"""The users that score a run, and those that calibrate the temperature of its loss (decision D2).

The pools depend on the corpus and the number of candidates alone, so every run and every baseline
is scored on the same users. Scored users are test users; calibrating users are validation users.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clue_ray.corpus.store import Corpus
from clue_ray.errors import CorpusError
from clue_ray.spec.specs import SplitSpec

POOL_SEED = 20211115
VALIDATION_SEED = 20261128
VALIDATION_POOLS = 4
"""Pools of `candidates` validation users per pair; the temperature from one is noisy, by .02 nats
at a low one."""
MIN_VALIDATION_USERS = 16
"""A pair of services with fewer validation users says too little about the temperature."""

Pool = dict[tuple[int, int], NDArray[np.int64]]
"""The users of each pair of services, [users of the pair]."""


class Pools(NamedTuple):
    """The users of an evaluation; no user is in both pools."""

    scored: Pool
    "the same number of candidates in each pair"
    validation: Pool
    "up to VALIDATION_POOLS times that number in each pair"
    candidates: int
    "users who are scored against each other; a longer pool is scored in parts of that many"


def make_pools(corpus: Corpus, candidates: int) -> Pools:
    """Draw the pools of scored users and of validation users.

    Raises:
        CorpusError: No pair of services has enough held-out users or validation users.
    """
    return Pools(_draw_scored(corpus, candidates), _draw_validation(corpus, candidates), candidates)


def _draw_scored(corpus: Corpus, candidates: int) -> Pool:
    """Draw `candidates` held-out users for each pair of services that has enough."""
    sizes = _count_users(corpus, "test")
    pool = {}
    for pair in (pair for pair, size in sizes.items() if size >= candidates):
        random = np.random.default_rng([POOL_SEED, *pair])
        drawn = random.choice(sizes[pair], candidates, replace=False)
        pool[pair] = corpus.held_out_pool("test", pair, drawn)
    if not pool:
        most = max(sizes.values(), default=0)
        raise CorpusError(
            f"evaluation.candidates {candidates} is larger than the {most} held-out users of the "
            f"best-filled pair of services; use at most {most}, or hold out more users with "
            "corpus.split.test."
        )
    return pool


def _draw_validation(corpus: Corpus, candidates: int) -> Pool:
    """Draw whole pools of validation users for each pair of services that has enough.

    A pair with fewer than `candidates` of them has one pool of all.
    """
    sizes = _count_users(corpus, "validation")
    pool = {}
    for pair in (pair for pair, size in sizes.items() if size >= MIN_VALIDATION_USERS):
        order = np.arange(sizes[pair], dtype=np.int32)  # of places, four bytes for each user
        np.random.default_rng([VALIDATION_SEED, *pair]).shuffle(order)
        drawn = order[: max(1, min(VALIDATION_POOLS, len(order) // candidates)) * candidates]
        pool[pair] = corpus.held_out_pool("validation", pair, drawn)
    if not pool:
        most = max(sizes.values(), default=0)
        share = SplitSpec(**corpus.manifest["spec"]["split"]).validation
        raise CorpusError(
            "The temperature of the held-out loss is calibrated on validation users, and the "
            f"best-filled pair of services has {most} (corpus.split.validation is {share:g}); it "
            f"needs at least {MIN_VALIDATION_USERS}: set corpus.split.validation to a larger "
            "share, such as 0.05, and prepare the corpus again."
        )
    return pool


def _count_users(corpus: Corpus, split: str) -> dict[tuple[int, int], int]:
    """Count the users of each pair of services; drawing from counts reads only the drawn users."""
    return {pair: len(corpus.layout.pool(split, pair)) for pair in corpus.pairs()}


def split_pool(users: NDArray[np.int64], candidates: int) -> list[NDArray[np.int64]]:
    """Split the users of a pair into pools of `candidates`, scored each by itself."""
    return np.array_split(users, max(1, len(users) // candidates))


def pool_members(pool: Pool) -> dict[int, NDArray[np.int64]]:
    """Return the users of each service of a pool, sorted and without repeats.

    A user of several pairs is then encoded once per service.
    """
    services = {service for pair in pool for service in pair}
    return {
        s: np.unique(np.concatenate([users for pair, users in pool.items() if s in pair]))
        for s in services
    }
