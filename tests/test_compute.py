"""Counts from the spec alone equal what torch builds and counts."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clue_ray.compute import Vocabulary, Work, count_params, train_flops
from clue_ray.encoder.batches import Packed
from clue_ray.encoder.loss import info_nce
from clue_ray.encoder.model import Encoder
from clue_ray.spec import LADDER, EncoderSpec

VOCABULARY = Vocabulary(tokens=1000, item_positions=12, sequence_length=16)


@pytest.mark.parametrize("size", LADDER)
def test_params_equal_the_built_model(size):
    encoder = EncoderSpec(size=size)
    with torch.device("meta"):
        model = Encoder(encoder, VOCABULARY, temperature=0.1, seed=0)
    built = {name: parameter.numel() for name, parameter in model.named_parameters()}
    tables = sum(count for name, count in built.items() if "embedding" in name or "position" in name)
    counted = count_params(encoder, VOCABULARY)
    assert counted["total"] == sum(built.values())
    assert counted["non_embedding"] == counted["total"] - tables


@pytest.mark.parametrize("size", ["xxs", "m", "l"])
def test_flops_equal_torchs_counter(size):
    encoder = EncoderSpec(size=size)
    batch, events, tokens = 8, 5, 7
    with torch.device("meta"):
        model = Encoder(encoder, VOCABULARY, temperature=0.1, seed=0)
        items = 2 * batch * events
        packed = Packed(
            tokens=torch.empty(items * tokens, dtype=torch.long),
            token_positions=torch.empty(items * tokens, dtype=torch.long),
            item_groups=[(items, tokens)],
            event_items=torch.empty(items, dtype=torch.long),
            event_positions=torch.empty(items, dtype=torch.long),
            user_groups=[(2 * batch, events)],
            order=torch.empty(2 * batch, dtype=torch.long),
        )
        with FlopCounterMode(display=False) as counter:
            users, scale = model(packed)
            info_nce(users[:batch], users[batch:], scale).backward()
    work = Work(
        users=2 * batch,
        events=items,
        events_squared=items * events,
        tokens=items * tokens,
        tokens_squared=items * tokens**2,
        similarities=batch**2,
    )
    assert counter.get_total_flops() == train_flops(encoder, work)


def test_work_adds_up():
    total = Work(1, 2, 3, 4, 5, 6) + Work(10, 20, 30, 40, 50, 60)
    assert np.array_equal(total, [11, 22, 33, 44, 55, 66])
