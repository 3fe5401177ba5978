"""The packed encoder equals plain loops, to the digit."""

import re

import numpy as np
import pytest
import torch

from clue_ray.batches.packing import Windows, pack, recent_windows
from clue_ray.batches.sampler import BatchSampler
from clue_ray.corpus.ranges import ranges
from clue_ray.encoder.model import Encoder
from clue_ray.spec.specs import EncoderSpec, RunSpec, TrainSpec
from tests.plain import plain_embedding


def make_model(corpus, **shape):
    encoder = EncoderSpec(
        **{"width": 16, "item_layers": 2, "service_layers": 2, "heads": 4, **shape}
    )
    model = Encoder(encoder, corpus.vocabulary(8), temperature=0.1, seed=3).double()
    with torch.no_grad():  # positions and the mixer start at zero, which would hide them
        for name, parameter in model.named_parameters():
            if re.search("position|event_time|output.weight|down.weight", name):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return model


PARTS = [{}, {"bag": False}, {"transformer": False}, {"time": True}]


def packed_and_plain(model, corpus, windows, shift=0.5):
    """Encode windows both ways; each has a cut of its own, some before its events."""
    cuts = corpus.times[windows.starts] + (np.arange(len(windows.starts)) - 3) * 10.0**5 + shift
    packed = pack(corpus, windows, cuts=cuts if model.reads_time else None)
    slow = []
    for start, length, cut in zip(*windows, cuts, strict=True):
        times = corpus.times[start : start + length].tolist() if model.reads_time else None
        slow.append(
            plain_embedding(model, corpus, corpus.events[start : start + length], times, cut)
        )
    return model(packed)[0].double(), torch.stack(slow)


@pytest.mark.parametrize("parts", PARTS)
def test_packed_equals_plain(corpus, parts):
    model = make_model(corpus, **parts)
    users = corpus.train_users[:12]
    services = np.arange(12) % len(corpus.services)
    windows = recent_windows(corpus, users, services, 8)
    fast, slow = packed_and_plain(model, corpus, windows)
    assert torch.allclose(fast, slow, atol=1e-6)
    if model.reads_time:
        later, _ = packed_and_plain(model, corpus, windows, shift=1e7)
        assert not torch.allclose(fast, later, atol=1e-4)


def test_a_view_of_all_services_is_the_mean_of_their_vectors(corpus):
    train = TrainSpec(steps=1, global_batch_size=16, past_future=1.0)
    batch = BatchSampler(RunSpec(train=train, sequence_length=5), corpus).batch(0)
    model, rows = make_model(corpus), batch.rows_of(1, 2)
    views = model(batch.pack(rows))[0].double()
    windows = Windows(batch.windows.starts[rows], batch.windows.lengths[rows])
    _, each = packed_and_plain(model, corpus, windows)
    numbers = batch.view_of[rows]
    sums = [each[torch.from_numpy(numbers == view)].sum(0) for view in dict.fromkeys(numbers)]
    expected = torch.nn.functional.normalize(torch.stack(sums), dim=-1)
    assert len(rows) > len(expected) == 16
    assert torch.allclose(views, expected, atol=1e-6)


@pytest.mark.parametrize("parts", PARTS)
def test_gradients_equal_plain(corpus, parts):
    users, services = corpus.train_users[:6], np.zeros(6, dtype=np.int64)
    windows = recent_windows(corpus, users, services, 8)
    weights = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)).double()
    fast, slow = make_model(corpus, **parts), make_model(corpus, **parts)
    (packed_and_plain(fast, corpus, windows)[0] * weights).sum().backward()
    (packed_and_plain(slow, corpus, windows)[1] * weights).sum().backward()
    for (name, a), (_, b) in zip(fast.named_parameters(), slow.named_parameters(), strict=True):
        if b.grad is not None:
            assert torch.allclose(a.grad, b.grad, atol=1e-5), name


def test_an_untrained_transformer_adds_nothing_to_the_bag(corpus):
    """It would drown the bag. CLUE's own model has no bag and starts with random vectors."""
    packed = pack(corpus, recent_windows(corpus, corpus.train_users[:5], np.zeros(5, int), 8))
    whole, own = (
        Encoder(EncoderSpec(size="xs", bag=bag), corpus.vocabulary(8), temperature=0.1, seed=0)
        for bag in (True, False)
    )
    direction = torch.nn.functional.normalize(whole.bag(packed.sequences.bag), dim=-1)
    assert torch.equal(whole(packed)[0], direction[packed.order])
    assert own(packed)[0].abs().max() > 0


def test_other_users_do_not_matter(corpus):
    model = make_model(corpus)
    windows = recent_windows(corpus, corpus.train_users[:9], np.arange(9) % 3, 8)
    together = model(pack(corpus, windows))[0]
    alone = model(pack(corpus, Windows(windows.starts[4:5], windows.lengths[4:5])))[0]
    assert torch.allclose(together[4], alone[0], atol=1e-6)


def test_embeddings_are_unit_and_seeded(corpus):
    windows = recent_windows(corpus, corpus.train_users[:5], np.zeros(5, dtype=np.int64), 8)
    first, second = (make_model(corpus)(pack(corpus, windows))[0] for _ in range(2))
    assert torch.allclose(first.norm(dim=1), torch.ones(5, dtype=first.dtype))
    assert torch.equal(first, second)


def test_guide_token_names_the_service(corpus):
    lengths = np.diff(corpus.item_offsets)
    guides = corpus.item_tokens[ranges(corpus.item_offsets[:-1], np.ones_like(lengths))]
    vocabulary = corpus.manifest["vocab_size"]
    assert set(guides) == set(range(vocabulary - len(corpus.services), vocabulary))
    assert corpus.shared_guide == vocabulary == corpus.vocabulary(1).tokens - 1
