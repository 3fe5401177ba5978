"""Batches: drawn from (seed, step) alone, shared out without loss, packed without change."""

import numpy as np
import pytest

from clue_ray.compute import Work
from clue_ray.corpus.store import ranges
from clue_ray.encoder.batches import BatchSampler, count_executed, count_work, pack, recent_windows
from clue_ray.errors import CorpusError
from clue_ray.spec import RunSpec, TrainSpec


def make_sampler(corpus, batch=16, **fields):
    return BatchSampler(RunSpec(train=TrainSpec(steps=1, global_batch_size=batch), sequence_length=5, **fields), corpus)


def owners(corpus, windows):
    """(user, service) each window lies in."""
    rows = np.searchsorted(corpus.offsets, windows.starts, side="right") - 1
    return rows // len(corpus.services), rows % len(corpus.services), rows


def test_windows_lie_inside_one_user_and_service(corpus):
    for step in range(20):
        windows = make_sampler(corpus).windows(step)
        users, services, rows = owners(corpus, windows)
        assert (windows.starts + windows.lengths <= corpus.offsets[rows + 1]).all()
        assert (windows.lengths == np.minimum(5, np.diff(corpus.offsets)[rows])).all()
        first, second = users[:16], users[16:]
        assert (first == second).all() and len(set(first)) == 16
        assert len(set(services[:16])) == len(set(services[16:])) == 1 and services[0] != services[-1]
        assert np.isin(users, corpus.train_users).all()


def test_a_batch_depends_on_seed_and_step_alone(corpus):
    sampler = make_sampler(corpus)
    later = sampler.windows(7)
    sampler.windows(3)
    again = make_sampler(corpus).windows(7)
    assert np.array_equal(later.starts, again.starts)
    assert not np.array_equal(later.starts, sampler.windows(8).starts)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_share_the_global_batch(corpus, workers):
    sampler = make_sampler(corpus)
    shares = [sampler.worker_windows(3, rank, workers) for rank in range(workers)]
    whole = sampler.windows(3)
    for half in (0, 1):
        joined = np.concatenate([np.array_split(share.starts, 2)[half] for share in shares])
        assert np.array_equal(joined, np.array_split(whole.starts, 2)[half])


def test_smaller_corpus_is_nested(corpus):
    few = set(np.concatenate(list(make_sampler(corpus, corpus_users=60).pools.values())).tolist())
    more = set(np.concatenate(list(make_sampler(corpus, corpus_users=120).pools.values())).tolist())
    assert few < more


def test_batch_larger_than_the_corpus_is_refused(corpus):
    with pytest.raises(CorpusError, match=r"global_batch_size 500 is larger than the \d+ training users.*use at most"):
        make_sampler(corpus, batch=500)


def test_pack_keeps_every_event(corpus):
    windows = make_sampler(corpus).windows(0)
    packed = pack(corpus, windows)
    assert packed.tokens.shape == packed.token_positions.shape
    item_lengths = np.concatenate([[length] * count for count, length in packed.item_groups])
    item_starts = np.concatenate([[0], np.cumsum(item_lengths)])
    user_lengths = np.concatenate([[length] * count for count, length in packed.user_groups])
    user_starts = np.concatenate([[0], np.cumsum(user_lengths)])
    for index, (start, length) in enumerate(zip(*windows, strict=True)):
        place = packed.order[index]
        assert user_lengths[place] == length
        positions = slice(user_starts[place], user_starts[place] + length)
        assert packed.event_positions[positions].tolist() == list(range(length))
        for event, item in zip(range(start, start + length), packed.event_items[positions].tolist(), strict=True):
            expected = corpus.item_tokens[ranges(*item_bounds(corpus, corpus.events[event]))]
            found = packed.tokens[item_starts[item] : item_starts[item + 1]].numpy()
            assert np.array_equal(found, expected)


def item_bounds(corpus, item):
    return corpus.item_offsets[[item]], corpus.item_lengths[[item]]


def test_distinct_items_are_encoded_once(corpus):
    windows = make_sampler(corpus).windows(0)
    asked, done = count_work(corpus, windows), count_executed(pack(corpus, windows))
    distinct = np.unique(corpus.events[ranges(*windows)])
    assert done.tokens == corpus.item_lengths[distinct].sum() < asked.tokens
    assert (done.users, done.events, done.events_squared) == (asked.users, asked.events, asked.events_squared)


def test_work_by_hand(corpus):
    windows = recent_windows(corpus, corpus.train_users[:2], np.array([0, 1]), 3)
    lengths = [
        [int(corpus.item_lengths[item]) for item in corpus.events[start : start + length]]
        for start, length in zip(*windows, strict=True)
    ]
    flat = [n for history in lengths for n in history]
    expected = Work(2, len(flat), sum(len(h) ** 2 for h in lengths), sum(flat), sum(n * n for n in flat))
    assert count_work(corpus, windows) == expected
