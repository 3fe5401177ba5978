"""What is left out at random: the shares asked for, the same for any number of workers and
chunks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clue_ray.batches.dropout import Dropout, draw_masks, kept, keyed_hash
from clue_ray.batches.packing import (
    Windows,
    count_executed,
    count_work,
    drop_events,
    gather_events,
    gather_tokens,
    pack,
    recent_windows,
)
from clue_ray.batches.sampler import BatchSampler
from clue_ray.corpus.ranges import ranges
from clue_ray.encoder.model import Encoder
from clue_ray.spec.specs import EncoderSpec, RunSpec, TrainSpec

LEFT_OUT = Dropout(key=123456789, event_dropout=0.4, token_dropout=0.3)


@pytest.fixture(scope="module")
def windows(corpus):
    users = np.repeat(corpus.train_users, len(corpus.services))
    services = np.tile(np.arange(len(corpus.services)), len(corpus.train_users))
    return recent_windows(corpus, users, services, 8)


def splitmix64(x):
    """Java's SplittableRandom finaliser on Python integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


@given(st.lists(st.integers(0, 2**62), min_size=1), st.integers(0, 2**62))
def test_hash_equals_the_published_one(addresses, key):
    expected = [splitmix64((address + key * 0x9E3779B97F4A7C15) % 2**64) for address in addresses]
    assert keyed_hash(np.array(addresses, dtype=np.int64), key).tolist() == expected


@pytest.mark.parametrize("dropout", [0.0, 0.25, 0.9])
def test_hash_leaves_out_the_share_asked_for(dropout):
    hashes = keyed_hash(np.arange(200_000), 7)
    assert kept(hashes, dropout).mean() == pytest.approx(1 - dropout, abs=0.005)


def test_events_left_out_equal_a_plain_loop(corpus, windows):
    found = drop_events(gather_events(corpus, windows), windows, LEFT_OUT)
    expected = []
    for start, length in zip(*windows, strict=True):
        hashes = keyed_hash(np.arange(start, start + length), LEFT_OUT.key)
        stays = [h >= 0.4 * 2**64 or h == max(hashes) for h in hashes.tolist()]
        expected.append(corpus.events[start : start + length][stays].tolist())
    starts = np.cumsum(found.lengths) - found.lengths
    assert [
        found.values[a : a + n].tolist() for a, n in zip(starts, found.lengths, strict=True)
    ] == expected
    assert found.lengths.min() == 1
    assert found.lengths.sum() < 0.7 * windows.lengths.sum()


def test_tokens_left_out_keep_order_and_guide(corpus):
    items = np.arange(corpus.num_items)
    found = gather_tokens(corpus, items, LEFT_OUT)
    starts = np.cumsum(found.lengths) - found.lengths
    for item, start, length in zip(items, starts, found.lengths, strict=True):
        whole = corpus.item_tokens[
            corpus.item_offsets[item] : corpus.item_offsets[item + 1]
        ].tolist()
        part = found.values[start : start + length].tolist()
        assert part[0] == whole[0]
        rest = iter(whole)
        assert all(token in rest for token in part)
    texts = np.diff(corpus.item_offsets) - 1
    assert (found.lengths - 1).sum() / texts.sum() == pytest.approx(0.7, abs=0.06)


def test_hidden_services_carry_the_shared_guide(corpus, windows):
    shown, hidden = pack(corpus, windows), pack(corpus, windows, Dropout(hide_services=True))
    guides = hidden.token_positions == 0
    assert (hidden.tokens[guides] == corpus.shared_guide).all()
    assert torch.equal(hidden.tokens[~guides], shown.tokens[~guides])


def test_some_batches_hide_services(corpus):
    sampler = BatchSampler(RunSpec(train=TrainSpec(steps=1, global_batch_size=8)), corpus)
    hidden = [sampler.batch(step).dropout.hide_services for step in range(400)]
    assert 20 < sum(hidden) < 65
    assert len({sampler.batch(step).dropout.key for step in range(400)}) == 400


def test_work_counts_what_stays(corpus, windows):
    events = gather_events(corpus, windows)
    histories = drop_events(events, windows, LEFT_OUT)
    asked, whole = count_work(corpus, histories, 0, LEFT_OUT), count_work(corpus, events)
    done = count_executed(pack(corpus, windows, LEFT_OUT))
    assert (asked.users, asked.events, asked.events_squared) == (
        done.users,
        done.events,
        done.events_squared,
    )
    lengths = gather_tokens(corpus, histories.values, LEFT_OUT).lengths
    assert (asked.tokens, asked.tokens_squared) == (lengths.sum(), (lengths**2).sum())
    assert done.tokens <= asked.tokens < whole.tokens


def make_model(corpus, dropout):
    shape = {"width": 16, "item_layers": 2, "service_layers": 1, "heads": 2}
    model = Encoder(
        EncoderSpec(**shape, dropout=dropout), corpus.vocabulary(8), temperature=0.1, seed=3
    )
    return model.double().train()


def test_a_sequence_is_left_out_the_same_in_any_company(corpus, windows):
    model = make_model(corpus, dropout=0.3)
    few = Windows(windows.starts[:20], windows.lengths[:20])
    together = model(pack(corpus, few, LEFT_OUT))[0]
    for half in (slice(0, 7), slice(7, 20)):
        alone = model(pack(corpus, Windows(few.starts[half], few.lengths[half]), LEFT_OUT))[0]
        assert torch.allclose(together[half], alone, atol=1e-12)
    other = model(pack(corpus, few, LEFT_OUT._replace(key=5)))[0]
    assert not torch.allclose(together, other, atol=1e-3)


def test_no_dropout_outside_training(corpus, windows):
    packed = pack(corpus, windows)
    with_dropout, without = make_model(corpus, 0.5).eval(), make_model(corpus, 0.0).eval()
    assert torch.equal(with_dropout(packed)[0], without(packed)[0])


def test_masks_keep_the_mean():
    masks = draw_masks(4, 64, 0.25, key=1)
    assert masks.mean() == pytest.approx(1.0, abs=0.01)
    assert masks.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(masks, draw_masks(4, 64, 0.25, key=1))


def test_ranges_of_packed_lists_are_recency(corpus, windows):
    packed = pack(corpus, windows, LEFT_OUT)
    lengths = np.concatenate([[length] * count for count, length in packed.user_groups])
    assert np.array_equal(packed.event_positions.numpy(), ranges(np.zeros_like(lengths), lengths))
