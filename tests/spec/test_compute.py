"""Counts from the spec alone equal what torch builds and counts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ladder import ladder_table
from clue_ray.batches.bag import Bag
from clue_ray.batches.layout import lay_out
from clue_ray.batches.packing import Items, Packed, Sequences
from clue_ray.encoder.loss import info_nce
from clue_ray.encoder.model import Encoder
from clue_ray.spec.compute import (
    Vocabulary,
    Work,
    count_params,
    size_for_budget,
    train_flops,
    users_for_budget,
)
from clue_ray.spec.ladder import LADDER
from clue_ray.spec.specs import EncoderSpec

VOCABULARY = Vocabulary(tokens=1000, item_positions=12, sequence_length=16)


SHAPES = [*({"size": size} for size in LADDER), {"size": "s", "time": True}]


@pytest.mark.parametrize("shape", SHAPES)
def test_params_equal_the_built_model(shape):
    encoder = EncoderSpec(**shape)
    with torch.device("meta"):
        model = Encoder(encoder, VOCABULARY, temperature=0.1, seed=0)
    built = {name: parameter.numel() for name, parameter in model.named_parameters()}
    tables = sum(
        count
        for name, count in built.items()
        if any(table in name for table in ("embedding", "position", "event_time", "bag.table"))
    )
    counted = count_params(encoder, VOCABULARY)
    assert counted["total"] == sum(built.values())
    assert counted["non_embedding"] == counted["total"] - tables


@pytest.mark.parametrize("shape", SHAPES)
def test_flops_equal_torchs_counter(shape):
    encoder = EncoderSpec(**shape)
    batch, events, tokens, bag_tokens = 8, 5, 7, 90
    with torch.device("meta"):
        model = Encoder(encoder, VOCABULARY, temperature=0.1, seed=0)
        items = 2 * batch * events
        packed = Packed(
            Items(
                torch.empty(items * tokens, dtype=torch.long),
                torch.empty(items * tokens, dtype=torch.long),
                lay_out([(items, tokens)]),
            ),
            Sequences(
                torch.empty(items, dtype=torch.long),
                torch.empty(items, dtype=torch.long),
                lay_out([(2 * batch, events)]),
                Bag(
                    tokens=torch.empty(bag_tokens, dtype=torch.long),
                    weights=torch.empty(bag_tokens),
                    starts=torch.empty(2 * batch, dtype=torch.long),
                ),
                torch.empty(items, 4, dtype=torch.long) if encoder.time else None,
            ),
            order=torch.empty(2 * batch, dtype=torch.long),
            mask_key=0,
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
        bag_tokens=bag_tokens,
    )
    # torch counts matrix products only; adding up rows of a table is none.
    uncounted = 3 * 2 * bag_tokens * encoder.output_width
    assert counter.get_total_flops() == train_flops(encoder, work) - uncounted


def test_work_adds_up():
    total = Work(1, 2, 3, 4, 5, 6, 7) + Work(10, 20, 30, 40, 50, 60, 70)
    assert np.array_equal(total, [11, 22, 33, 44, 55, 66, 77])


def test_budgets_are_inverted():
    encoder, work = EncoderSpec(size="m"), Work(20, 200, 2000, 4000, 90_000, 100)
    budget = train_flops(encoder, work) * 37.5
    assert users_for_budget(encoder, work, 10, budget) == pytest.approx(375)
    encoders = {size: EncoderSpec(size=size) for size in LADDER}
    costs = {size: train_flops(spec, work) for size, spec in encoders.items()}
    for size, cost in costs.items():
        assert costs[size_for_budget(work, cost, encoders)] == cost
        assert size_for_budget(work, cost - 1, encoders) != size
    assert size_for_budget(work, min(costs.values()) - 1, encoders) is None


@pytest.mark.parametrize("millions", [4, 15, 65, 110, 160, 725])
def test_clue_sizes_meet_the_papers_totals(millions):
    vocabulary = Vocabulary(tokens=50_258, item_positions=32, sequence_length=128)
    total = count_params(EncoderSpec(size=f"clue-{millions}m", bag=False), vocabulary)["total"]
    assert abs(total / 1e6 / millions - 1) < 0.05


def test_documented_ladder_is_the_ladder():
    page = Path(__file__).parents[2] / "docs" / "reference" / "encoder.md"
    assert ladder_table(Vocabulary(50_258, 32, 128)) in page.read_text(encoding="utf-8")
