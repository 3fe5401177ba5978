"""The loss over workers has the gradient of the loss in one process, and the popular wrong ways do
not."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from clue_ray.encoder import loss as losses
from clue_ray.encoder.loss import OBJECTIVES, at_temperature, count_similarities, info_nce
from tests.gloo import on_workers

USERS, WIDTH = 16, 6
LOGIT = torch.tensor([5.0, -2.0], dtype=torch.float64)
DUPLICATE_IDS = torch.tensor([0, 1, 2, 3, 1, 5, 6, 7, 8, 9, 10, 1, 12, 13, 14, 8])
"""Users 1, 4 and 11 saw the same items, and so did 8 and 15."""


def inputs():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, USERS, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, WIDTH, generator=generator, dtype=torch.float64)
    return features, weight


def encode(features, weight):
    return F.normalize(features @ weight, dim=-1)


def reference_gradient(objective="info_nce", duplicate_ids=None):
    """The loss in one process, written out pair by pair."""
    (first, second), weight = inputs()
    weight.requires_grad_()
    logits = LOGIT[0] * encode(first, weight) @ encode(second, weight).T
    rival = [
        [
            i == j or duplicate_ids is None or duplicate_ids[i] != duplicate_ids[j]
            for j in range(USERS)
        ]
        for i in range(USERS)
    ]
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(USERS):
        if objective == "sigmoid":
            for j in range(USERS):
                sign = 1 if i == j else -1
                loss -= F.logsigmoid(sign * (logits[i, j] + LOGIT[1])) / USERS if rival[i][j] else 0
        else:
            rivals = [j for j in range(USERS) if rival[i][j]]
            loss += (
                logits[i, rivals].logsumexp(0) + logits[rivals, i].logsumexp(0) - 2 * logits[i, i]
            ) / (2 * USERS)
    loss.backward()
    return loss.item(), weight.grad.numpy()


def wrong_no_gradient(a, b, logit, duplicate_ids):
    """Gather without gradient: the loss is right, the gradient is not."""
    parts = (
        [torch.empty_like(a) for _ in range(dist.get_world_size())],
        [torch.empty_like(b) for _ in range(dist.get_world_size())],
    )
    for gathered, mine in zip(parts, (a, b), strict=True):
        dist.all_gather(gathered, mine.detach())
    target = torch.arange(len(a)) + dist.get_rank() * len(a)
    return (
        F.cross_entropy(logit[0] * a @ torch.cat(parts[1]).T, target)
        + F.cross_entropy(logit[0] * b @ torch.cat(parts[0]).T, target)
    ) / 2


def wrong_own_negatives(a, b, logit, duplicate_ids):
    """Each worker scores only its own users: fewer negatives."""
    target = torch.arange(len(a))
    return (
        F.cross_entropy(logit[0] * a @ b.T, target) + F.cross_entropy(logit[0] * b @ a.T, target)
    ) / 2


def in_blocks(a, b, logit, duplicate_ids):
    """The loss with three rows of logits at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "ROWS", 3)
        return info_nce(a, b, logit, duplicate_ids)


LOSSES = {
    **OBJECTIVES,
    "in blocks": in_blocks,
    "no gradient": wrong_no_gradient,
    "own negatives": wrong_own_negatives,
}


def shares_of(rank, world_size, cases):
    return [share_of(rank, world_size, *case) for case in cases]


def share_of(rank, world_size, name, duplicate_ids):
    """Mean loss and gradient over workers, as DDP makes them."""
    (first, second), weight = inputs()
    weight.requires_grad_()
    mine = slice(rank * USERS // world_size, (rank + 1) * USERS // world_size)
    loss = LOSSES[name](
        encode(first[mine], weight), encode(second[mine], weight), LOGIT, duplicate_ids
    )
    loss.backward()
    mean = loss.detach()
    dist.all_reduce(weight.grad)
    dist.all_reduce(mean)
    return mean.item() / world_size, (weight.grad / world_size).numpy()


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("rows", [4096, 5])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("duplicate_ids", [None, DUPLICATE_IDS], ids=["all differ", "duplicates"])
def test_one_process_equals_the_formula_in_blocks_too(objective, duplicate_ids, rows, monkeypatch):
    monkeypatch.setattr(losses, "ROWS", rows)
    loss, gradient = reference_gradient(objective, duplicate_ids)
    (first, second), weight = inputs()
    weight.requires_grad_()
    ours = OBJECTIVES[objective](
        encode(first, weight), encode(second, weight), LOGIT, duplicate_ids
    )
    ours.backward()
    assert ours.item() == pytest.approx(loss, abs=1e-12)
    assert relative_error(weight.grad.numpy(), gradient) < 1e-12


def test_duplicates_would_be_negatives_of_each_other():
    (first, second), weight = inputs()
    vectors = encode(first, weight), encode(second, weight)
    assert info_nce(*vectors, LOGIT) > info_nce(*vectors, LOGIT, DUPLICATE_IDS) + 1e-3


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_equal_one_process_and_wrong_ways_do_not(world_size):
    cases = [
        ("info_nce", None),
        ("info_nce", DUPLICATE_IDS),
        ("in blocks", DUPLICATE_IDS),
        ("sigmoid", None),
        ("sigmoid", DUPLICATE_IDS),
    ]
    wrong = [("no gradient", None), ("own negatives", None)]
    found = on_workers(world_size, shares_of, cases + wrong)
    for case, (loss, gradient) in zip(cases, found, strict=False):
        expected_loss, expected = reference_gradient(
            case[0].replace("in blocks", "info_nce"), case[1]
        )
        assert loss == pytest.approx(expected_loss, abs=1e-12), case
        assert relative_error(gradient, expected) < 1e-12, case
    for _, gradient in found[len(cases) :]:
        assert relative_error(gradient, reference_gradient()[1]) > 0.05


def test_a_fixed_temperature_has_no_gradient():
    (first, second), weight = inputs()
    logit = torch.tensor([5.0, -2.0], dtype=torch.float64, requires_grad=True)
    found = at_temperature(info_nce, 0.5)(encode(first, weight), encode(second, weight), logit)
    found.backward()
    assert found == info_nce(
        encode(first, weight), encode(second, weight), torch.tensor([2.0, 0.0])
    )
    assert logit.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("rows", [4096, 4])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_cosines_are_counted_as_they_are_computed(objective, rows, monkeypatch):
    monkeypatch.setattr(losses, "ROWS", rows)
    a, b = (torch.randn(96, WIDTH, requires_grad=True) for _ in range(2))
    with FlopCounterMode(display=False) as counter:
        OBJECTIVES[objective](a, b, LOGIT.float(), None).backward()
    counted = 3 * 2 * WIDTH * count_similarities(objective, batch=96, workers=1)
    assert counter.get_total_flops() == pytest.approx(counted, rel=1e-3)


def test_memory_of_large_batches_does_not_grow_with_their_square(monkeypatch):
    monkeypatch.setattr(losses, "ROWS", 8)
    kept = {}
    a, b = (torch.randn(512, WIDTH, requires_grad=True) for _ in range(2))

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        info_nce(a, b, LOGIT.float())
    assert sum(kept.values()) < 512 * 512 / 4  # one matrix has 512 * 512
