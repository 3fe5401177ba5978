"""Packing on a device gives the same bits as the numpy packer, here on tensors of the CPU."""

import tracemalloc

import numpy as np
import pytest
import torch

from clue_ray.batches import device
from clue_ray.batches.device import DeviceBatch, ResidentCorpus
from clue_ray.batches.dropout import keyed_hash
from clue_ray.batches.packing import Windows
from clue_ray.batches.sampler import BatchSampler, GlobalBatch
from clue_ray.spec.specs import RunSpec, TrainSpec

CPU = torch.device("cpu")


def same(found, expected) -> bool:
    """Compare nested tuples: tensors by type, shape and bits."""
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, tuple | list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == expected


def pairs(corpus, steps=8, **train):
    run = RunSpec(
        encoder={"time": True},
        train=TrainSpec(global_batch_size=24, steps=9, **train),
        sequence_length=6,
    )
    sampler, resident = BatchSampler(run, corpus), ResidentCorpus(corpus, CPU, times=True)
    for step in range(steps):
        plain = sampler.batch(step)
        mask = plain.mask_false_negatives
        fast = DeviceBatch(resident, plain.windows, plain.dropout, mask, plain.views, plain.cuts)
        yield plain, fast


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"event_dropout": 0.4, "token_dropout": 0.4, "same_service": 0.4, "past_future": 0.3},
        {"past_future": 1.0},
    ],
)
def test_every_field_of_a_batch_has_the_same_bits(corpus, train):
    hidden = 0
    for plain, fast in pairs(corpus, steps=30, **train):
        rows = plain.rows_of(0, 1)
        assert same(fast.pack(rows), plain.pack(rows))
        share = plain.rows_of(1, 3)
        assert same(fast.pack(share), plain.pack(share))
        assert fast.work == plain.work
        ids = [each.duplicate_ids for each in (fast, plain)]
        assert len({str(found if found is None else found.tolist()) for found in ids}) == 1
        hidden += plain.dropout.hide_services
    assert hidden  # some batches hide their services


def test_false_negatives_have_the_same_numbers(corpus):
    stretches = [(0, 4), (10, 3), (0, 4), (20, 2), (30, 3), (11, 3), (30, 3), (20, 2)]
    windows = Windows(*(np.array(side) for side in zip(*stretches, strict=True)))
    plain, _ = next(pairs(corpus, steps=1))
    expected = GlobalBatch(corpus, (0, 1), windows, plain.dropout, True)
    fast = DeviceBatch(ResidentCorpus(corpus, CPU), windows, plain.dropout, True)
    assert fast.duplicate_ids.tolist() == expected.duplicate_ids.tolist()
    assert fast.masked_pairs == expected.masked_pairs == 2
    assert DeviceBatch(fast.corpus, windows, plain.dropout, False).duplicate_ids is None


def test_hashes_are_those_of_numpy():
    addresses = np.random.default_rng(0).integers(-(2**62), 2**62, 5000)
    for key in (0, 1, 2**62 - 1):
        found = device.keyed_hash(torch.from_numpy(addresses), key).numpy().view(np.uint64)
        assert np.array_equal(found, keyed_hash(addresses, key))


@pytest.mark.parametrize("dtype", ["<i4", "<i8", "<f8"])
def test_an_array_is_copied_in_blocks(monkeypatch, dtype):
    monkeypatch.setattr(device, "BLOCK", 10_000)
    array = np.arange(1_000_003).astype(dtype)
    array.setflags(write=False)  # as one that is mapped
    tracemalloc.start()
    copy = device._resident(array, torch.device("cpu"))
    _, peak = tracemalloc.get_traced_memory()  # of numpy, not of torch
    tracemalloc.stop()
    assert np.array_equal(copy.numpy(), array)
    assert copy.numpy().dtype == array.dtype
    assert peak < 500_000
    assert len(device._resident(array[:0], torch.device("cpu"))) == 0
