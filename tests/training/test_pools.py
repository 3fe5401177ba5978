"""Pools are the same for every run, and no user both scores and calibrates a run."""

import numpy as np
import pytest

from clue_ray.corpus.store import Corpus
from clue_ray.errors import CorpusError
from clue_ray.training.pools import (
    MIN_VALIDATION_USERS,
    POOL_SEED,
    VALIDATION_POOLS,
    VALIDATION_SEED,
    make_pools,
    split_pool,
)
from tests.plain import plain_corpus


def test_pools_hold_users_of_their_split_with_both_services(corpus: Corpus):
    pools = make_pools(corpus, 16)
    for pool, split in zip(pools[:2], (corpus.test_users, corpus.validation_users), strict=True):
        assert len(pool) == 3
        for (a, b), users in pool.items():
            assert len(set(users)) == len(users) >= 16
            assert np.isin(users, split).all()
            assert (corpus.counts[users, a] > 0).all()
            assert (corpus.counts[users, b] > 0).all()
    assert not set(corpus.validation_users) & {*corpus.test_users, *corpus.train_users}
    again = make_pools(corpus, 16)
    for pool, same in zip(pools[:2], again[:2], strict=True):
        assert all(np.array_equal(pool[pair], same[pair]) for pair in pool)


def pools_of_all_users(corpus: Corpus, candidates: int) -> list[dict]:
    """The pools as they were drawn first: from all users of a pair, gathered."""
    found = {
        split: {pair: corpus.held_out_pool(split, pair) for pair in corpus.pairs()}
        for split in ("test", "validation")
    }
    return [
        {
            pair: np.random.default_rng([POOL_SEED, *pair]).choice(users, candidates, replace=False)
            for pair, users in found["test"].items()
            if len(users) >= candidates
        },
        {
            pair: np.random.default_rng([VALIDATION_SEED, *pair]).permutation(users)[
                : max(1, min(VALIDATION_POOLS, len(users) // candidates)) * candidates
            ]
            for pair, users in found["validation"].items()
            if len(users) >= MIN_VALIDATION_USERS
        },
    ]


class ManyUsers:
    """What pools read of a corpus whose pairs of services have these numbers of held-out users."""

    def __init__(self, *sizes: int):
        self.sizes = {(0, place): size for place, size in enumerate(sizes, 1)}
        self.layout, self.gathered = self, []

    def pairs(self):
        return list(self.sizes)

    def pool(self, split, pair):
        return 3 * np.arange(self.sizes[pair])

    def held_out_pool(self, split, pair, places=slice(None)):
        found = self.pool(split, pair)[places] + 7
        self.gathered.append(len(found))
        return found


@pytest.mark.parametrize("candidates", [16, 48, 1000])
def test_pools_are_those_that_were_drawn_from_all_users(corpus: Corpus, candidates):
    many = ManyUsers(1000, 1001, 20_000, 120_000)  # numpy draws in two ways
    for drawn in (many, *([corpus] if candidates < 1000 else [])):
        many.gathered.clear()
        pools = make_pools(drawn, candidates)
        assert max(many.gathered, default=0) <= VALIDATION_POOLS * candidates
        for pool, expected in zip(pools[:2], pools_of_all_users(drawn, candidates), strict=True):
            assert pool.keys() == expected.keys()
            for pair, users in expected.items():
                assert np.array_equal(pool[pair], users)
                assert pool[pair].dtype == users.dtype == np.int64


def test_a_pair_with_fewer_validation_users_calibrates_with_all_of_them(corpus):
    pools = make_pools(corpus, 48)
    assert {len(users) for users in pools.scored.values()} == {48}
    for pair, users in pools.validation.items():
        assert sorted(users) == corpus.held_out_pool("validation", pair).tolist()


def test_the_temperature_is_calibrated_on_several_pools(corpus: Corpus):
    pools = make_pools(corpus, 6)
    assert {len(users) for users in pools.scored.values()} == {6}
    for pair, users in pools.validation.items():
        there = len(corpus.held_out_pool("validation", pair))
        assert there >= 24
        assert len(set(users)) == len(users) == 4 * 6
        assert [len(part) for part in split_pool(users, 6)] == 4 * [6]


def test_a_long_pool_is_scored_in_parts_of_the_same_size():
    parts = split_pool(np.arange(50), 16)
    assert [len(part) for part in parts] == [17, 17, 16]
    assert np.array_equal(np.concatenate(parts), np.arange(50))
    assert len(split_pool(np.arange(7), 16)) == 1


def test_pool_larger_than_the_held_out_users_is_refused(corpus):
    with pytest.raises(
        CorpusError, match=r"evaluation.candidates 1000 is larger than the \d+ held-out users"
    ):
        make_pools(corpus, 1000)


@pytest.mark.parametrize("share", [0.0, 0.02])
def test_too_few_validation_users_are_refused_with_the_remedy(planted_log, tmp_path, share):
    corpus = plain_corpus(planted_log, tmp_path / "c", {"validation": share, "test": 0.25})
    found = len(corpus.validation_users)
    assert found < MIN_VALIDATION_USERS
    with pytest.raises(
        CorpusError,
        match=rf"has {found} \(corpus.split.validation is {share:g}\); it needs at least 16: set "
        "corpus.split.validation",
    ):
        make_pools(corpus, 16)
