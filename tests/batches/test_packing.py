"""Batches: drawn from (seed, step) alone, shared out without loss, packed without change."""

import copy

import numpy as np
import pytest

from clue_ray.batches.cut import cut_histories
from clue_ray.batches.deal import deal
from clue_ray.batches.packing import (
    Windows,
    count_executed,
    count_work,
    gather_events,
    pack,
    recent_windows,
)
from clue_ray.batches.sampler import BatchSampler, number_histories
from clue_ray.corpus.ranges import ranges
from clue_ray.errors import CorpusError
from clue_ray.spec.compute import Work
from clue_ray.spec.specs import RunSpec, TrainSpec


def make_sampler(corpus, batch=16, **fields):
    return BatchSampler(
        RunSpec(train=TrainSpec(steps=1, global_batch_size=batch), sequence_length=5, **fields),
        corpus,
    )


def owners(corpus, windows):
    """(user, service) each window lies in."""
    rows = np.searchsorted(corpus.offsets, windows.starts, side="right") - 1
    return rows // len(corpus.services), rows % len(corpus.services), rows


def test_windows_lie_inside_one_user_and_service(corpus):
    for step in range(20):
        windows = make_sampler(corpus).batch(step).windows
        users, services, rows = owners(corpus, windows)
        assert (windows.starts + windows.lengths <= corpus.offsets[rows + 1]).all()
        assert (windows.lengths == np.minimum(5, np.diff(corpus.offsets)[rows])).all()
        first, second = users[:16], users[16:]
        assert (first == second).all()
        assert len(set(first)) == 16
        assert len(set(services[:16])) == len(set(services[16:])) == 1
        assert services[0] != services[-1]
        assert np.isin(users, corpus.train_users).all()


def test_a_batch_depends_on_seed_and_step_alone(corpus):
    sampler = make_sampler(corpus)
    later = sampler.batch(7).windows
    assert sampler.batch(3).windows.starts.any()
    again = make_sampler(corpus).batch(7).windows
    assert np.array_equal(later.starts, again.starts)
    assert not np.array_equal(later.starts, sampler.batch(8).windows.starts)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_share_the_global_batch(corpus, workers):
    sampler = make_sampler(corpus)
    batch = sampler.batch(3)
    shares = [batch.rows_of(rank, workers) for rank in range(workers)]
    for half in (0, 1):
        joined = np.concatenate([np.array_split(share, 2)[half] for share in shares])
        assert sorted(joined.tolist()) == list(range(16 * half, 16 * (half + 1)))
    first, second = np.split(np.stack(shares), 2, axis=1)
    assert (second == first + 16).all()  # a worker has the same users in both services


def test_one_service_alone_halves_a_history(corpus):
    train = TrainSpec(steps=1, global_batch_size=16, same_service=0.4)
    sampler = BatchSampler(RunSpec(train=train, sequence_length=3), corpus)
    alone = [step for step in range(200) if sampler.batch(step).is_cut_in_time]
    assert 55 < len(alone) < 105
    for step in alone[:10]:
        windows = sampler.batch(step).windows
        users, services, rows = owners(corpus, windows)
        assert (users[:16] == users[16:]).all()
        assert len(set(users[:16])) == 16
        assert len(set(services)) == 1
        recent, before = (
            Windows(windows.starts[half], windows.lengths[half])
            for half in (slice(16), slice(16, 32))
        )
        assert (recent.starts + recent.lengths == before.starts).all()
        assert (before.starts + before.lengths <= corpus.offsets[rows[16:] + 1]).all()
        assert (recent.lengths <= 3).all()
        assert (recent.lengths - before.lengths <= 1).all()
        assert before.lengths.all()
    assert not any(make_sampler(corpus).batch(step).is_cut_in_time for step in range(50))


def cut_sampler(corpus, length=3, **fields):
    train = TrainSpec(steps=1, global_batch_size=16, past_future=1.0)
    return BatchSampler(RunSpec(train=train, sequence_length=length, **fields), corpus)


def events_of(corpus, user):
    """(time, service, place) of a user's events, newest first."""
    rows = []
    for service in range(len(corpus.services)):
        start, stop = corpus.offsets[user * len(corpus.services) + service :][:2]
        rows += [(corpus.times[place], service, place) for place in range(start, stop)]
    return rows


@pytest.mark.parametrize("length", [2, 50])
def test_windows_of_past_and_future_lie_next_to_a_cut(corpus, length):
    sampler, cuts = cut_sampler(corpus, length), set()
    for step in range(8):
        batch = sampler.batch(step)
        users, services, _ = owners(corpus, batch.windows)
        assert batch.is_cut_in_time
        assert batch.users == 16
        assert len(set(users)) == 16
        assert np.isin(users, corpus.train_users).all()
        for user in range(16):
            sides = [
                {
                    service: list(range(start, start + count))
                    for start, count, service in zip(
                        batch.windows.starts[rows],
                        batch.windows.lengths[rows],
                        services[rows],
                        strict=True,
                    )
                }
                for rows in (batch.view_of == user, batch.view_of == user + 16)
            ]
            drawn = users[batch.view_of == user][0]
            cut = min(corpus.times[places].min() for places in sides[0].values())
            cuts.add(cut)
            expected = [{}, {}]
            for time, service, place in events_of(corpus, drawn):
                expected[int(time < cut)].setdefault(service, []).append(place)
            for found, side in zip(sides, expected, strict=True):
                assert found
                assert found.keys() <= side.keys()
            # The earliest future event may have fallen out of its window only where that is full.
            if length == 50:
                assert sides == expected
            else:
                assert sides[1] == {s: places[:length] for s, places in expected[1].items()}
    assert len(cuts) > 60


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_share_a_batch_of_pasts_and_futures(corpus, workers):
    batch, seen = cut_sampler(corpus).batch(3), []
    for rank in range(workers):
        rows = batch.rows_of(rank, workers)
        views = batch.view_of[rows]
        first = views[: np.searchsorted(views >= 16, True)]
        assert list(dict.fromkeys(views[len(first) :] - 16)) == list(dict.fromkeys(first))
        seen += rows.tolist()
        assert len(batch.pack(rows).views) == 2 * 16 // workers
    assert sorted(seen) == list(range(len(batch.windows.lengths)))


def test_equal_times_are_on_one_side(corpus):
    ties = copy.copy(corpus)
    ties.times = np.floor(corpus.times / np.ptp(corpus.times) * 3)  # three or four times in all
    users = np.array(
        [u for u in corpus.train_users if len({t for t, *_ in events_of(ties, u)}) > 1]
    )
    windows, views, cuts = cut_histories(ties, users, 50, np.random.default_rng(0))
    for start, count, view in zip(*windows, views, strict=True):
        times = ties.times[start : start + count]
        cut = cuts[view % len(users)]
        assert (times >= cut).all() if view < len(users) else (times < cut).all()
    assert set(views) == set(range(2 * len(users)))  # no side is empty


def test_smaller_corpus_is_nested(corpus):
    few = set(np.concatenate(list(make_sampler(corpus, corpus_users=60).pools.values())).tolist())
    more = set(np.concatenate(list(make_sampler(corpus, corpus_users=120).pools.values())).tolist())
    assert few < more


def test_batch_larger_than_the_corpus_is_refused(corpus):
    with pytest.raises(
        CorpusError,
        match=r"global_batch_size 500 is larger than the \d+ training users.*use at most",
    ):
        make_sampler(corpus, batch=500)


def test_pack_keeps_every_event(corpus):
    windows = make_sampler(corpus).batch(0).windows
    packed = pack(corpus, windows)
    assert packed.items.tokens.shape == packed.items.positions.shape
    item_lengths = np.concatenate(
        [[length] * count for count, length in packed.items.layout.groups]
    )
    item_starts = np.concatenate([[0], np.cumsum(item_lengths)])
    user_lengths = packed.sequences.layout.lengths.numpy()
    user_starts = np.concatenate([[0], np.cumsum(user_lengths)])
    for index, (start, length) in enumerate(zip(*windows, strict=True)):
        place = packed.order[index]
        assert user_lengths[place] == length
        positions = slice(user_starts[place], user_starts[place] + length)
        assert packed.sequences.event_positions[positions].tolist() == list(range(length))
        for event, item in zip(
            range(start, start + length),
            packed.sequences.event_items[positions].tolist(),
            strict=True,
        ):
            expected = corpus.item_tokens[ranges(*item_bounds(corpus, corpus.events[event]))]
            found = packed.items.tokens[item_starts[item] : item_starts[item + 1]].numpy()
            assert np.array_equal(found, expected)


def item_bounds(corpus, item):
    return corpus.item_offsets[[item]], np.diff(corpus.item_offsets)[[item]]


def test_distinct_items_are_encoded_once(corpus):
    windows = make_sampler(corpus).batch(0).windows
    asked = count_work(corpus, gather_events(corpus, windows))
    done = count_executed(pack(corpus, windows))
    distinct = np.unique(corpus.events[ranges(*windows)])
    assert done.tokens == np.diff(corpus.item_offsets)[distinct].sum() < asked.tokens
    assert (done.users, done.events, done.events_squared) == (
        asked.users,
        asked.events,
        asked.events_squared,
    )


def test_work_by_hand(corpus):
    windows = recent_windows(corpus, corpus.train_users[:2], np.array([0, 1]), 3)
    lengths = [
        [int(np.diff(corpus.item_offsets)[item]) for item in corpus.events[start : start + length]]
        for start, length in zip(*windows, strict=True)
    ]
    flat = [n for history in lengths for n in history]
    squares = (sum(len(h) ** 2 for h in lengths), sum(n * n for n in flat))
    expected = Work(2, len(flat), squares[0], sum(flat), squares[1], bag_tokens=sum(flat))
    assert count_work(corpus, gather_events(corpus, windows)) == expected


def test_empty_history_is_refused(corpus):
    windows = Windows(np.array([0, 3]), np.array([3, 0]))
    with pytest.raises(CorpusError, match="1 of 2 histories have no events; leave those users out"):
        pack(corpus, windows)


def test_users_with_the_same_items_share_a_number(corpus):
    stretches = [(0, 4), (10, 3), (0, 4), (20, 2), (30, 3), (11, 3), (30, 3), (20, 2)]
    starts, lengths = (np.array(side) for side in zip(*stretches, strict=True))
    events = gather_events(corpus, Windows(starts, lengths))
    numbers = number_histories(events, np.arange(8), corpus.num_items)
    items = [set(corpus.events[start : start + length].tolist()) for start, length in stretches]
    alike = [
        [items[i] == items[j] and items[i + 4] == items[j + 4] for j in range(4)] for i in range(4)
    ]
    assert (numbers[:, None] == numbers).tolist() == alike
    assert alike[0][2]
    assert not alike[0][1]


def test_users_are_dealt_once_and_evenly():
    lengths = np.random.default_rng(0).zipf(1.5, 96).clip(max=64)
    assert deal(lengths, 1).tolist() == [list(range(96))]
    for workers in (2, 4, 8):
        shares = deal(lengths, workers)
        assert sorted(shares.ravel().tolist()) == list(range(96))
        loads = lengths[shares].sum(1)
        drawn = lengths.reshape(workers, -1).sum(1)
        assert loads.max() - loads.min() <= lengths.max()
        assert loads.max() <= drawn.max()
