"""The packed encoder equals plain loops, to the digit."""

import re

import numpy as np
import pytest
import torch

from clue_ray.batches.packing import Windows, pack, recent_windows
from clue_ray.corpus.ranges import ranges
from clue_ray.encoder.model import Encoder
from clue_ray.spec.specs import EncoderSpec
from tests.plain import plain_embedding


def make_model(corpus, **shape):
    encoder = EncoderSpec(
        **{"width": 16, "item_layers": 2, "service_layers": 2, "heads": 4, **shape}
    )
    model = Encoder(encoder, corpus.vocabulary(8), temperature=0.1, seed=3).double()
    with torch.no_grad():  # positions and the mixer start at zero, which would hide them
        for name, parameter in model.named_parameters():
            if re.search("position|output.weight|down.weight", name):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return model


PARTS = [{}, {"bag": False}, {"transformer": False}]


@pytest.mark.parametrize("parts", PARTS)
def test_packed_equals_plain(corpus, parts):
    model = make_model(corpus, **parts)
    users = corpus.train_users[:12]
    services = np.arange(12) % len(corpus.services)
    windows = recent_windows(corpus, users, services, 8)
    fast = model(pack(corpus, windows))[0].double()
    for row, start, length in zip(fast, *windows, strict=True):
        slow = plain_embedding(model, corpus, corpus.events[start : start + length])
        assert torch.allclose(row, slow, atol=1e-6)


@pytest.mark.parametrize("parts", PARTS)
def test_gradients_equal_plain(corpus, parts):
    users, services = corpus.train_users[:6], np.zeros(6, dtype=np.int64)
    windows = recent_windows(corpus, users, services, 8)
    weights = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)).double()
    fast, slow = make_model(corpus, **parts), make_model(corpus, **parts)
    (fast(pack(corpus, windows))[0].double() * weights).sum().backward()
    rows = [
        plain_embedding(slow, corpus, corpus.events[a : a + n])
        for a, n in zip(*windows, strict=True)
    ]
    (torch.stack(rows) * weights).sum().backward()
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
    direction = torch.nn.functional.normalize(whole.bag(packed.bag), dim=-1)
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
