"""The loss over workers has the gradient of the loss in one process, and the popular wrong ways do not."""

import multiprocessing
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from clue_ray.encoder.loss import info_nce

USERS, WIDTH = 16, 6


def inputs():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, USERS, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, WIDTH, generator=generator, dtype=torch.float64)
    return features, weight


def encode(features, weight):
    return F.normalize(features @ weight, dim=-1)


def reference_gradient():
    """The loss in one process, written out row by row."""
    (first, second), weight = inputs()
    weight.requires_grad_()
    logits = 5.0 * encode(first, weight) @ encode(second, weight).T
    terms = [
        -(logits[i, i] - logits[i].logsumexp(0)) - (logits[i, i] - logits[:, i].logsumexp(0)) for i in range(USERS)
    ]
    loss = sum(terms) / (2 * USERS)
    loss.backward()
    return loss.item(), weight.grad.numpy()


def wrong_no_gradient(a, b, scale):
    """Gather without gradient: the loss is right, the gradient is not."""
    parts = (
        [torch.empty_like(a) for _ in range(dist.get_world_size())],
        [torch.empty_like(b) for _ in range(dist.get_world_size())],
    )
    for gathered, mine in zip(parts, (a, b), strict=True):
        dist.all_gather(gathered, mine.detach())
    target = torch.arange(len(a)) + dist.get_rank() * len(a)
    return (
        F.cross_entropy(scale * a @ torch.cat(parts[1]).T, target)
        + F.cross_entropy(scale * b @ torch.cat(parts[0]).T, target)
    ) / 2


def wrong_own_negatives(a, b, scale):
    """Each worker scores only its own users: fewer negatives."""
    target = torch.arange(len(a))
    return (F.cross_entropy(scale * a @ b.T, target) + F.cross_entropy(scale * b @ a.T, target)) / 2


LOSSES = {"ours": info_nce, "no gradient": wrong_no_gradient, "own negatives": wrong_own_negatives}


def worker(rank, world_size, port, name, results):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    (first, second), weight = inputs()
    weight.requires_grad_()
    mine = slice(rank * USERS // world_size, (rank + 1) * USERS // world_size)
    scale = torch.tensor(5.0, dtype=torch.float64)
    loss = LOSSES[name](encode(first[mine], weight), encode(second[mine], weight), scale)
    loss.backward()
    dist.all_reduce(weight.grad)  # as DDP does: the mean over workers
    mean = loss.detach()
    dist.all_reduce(mean)
    if rank == 0:
        results.put((mean.item() / world_size, (weight.grad / world_size).numpy()))
    dist.barrier()
    dist.destroy_process_group()


def run_workers(world_size, name):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [context.Process(target=worker, args=(r, world_size, port, name, results)) for r in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return results.get()


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_one_process_equals_the_formula():
    loss, gradient = reference_gradient()
    (first, second), weight = inputs()
    weight.requires_grad_()
    ours = info_nce(encode(first, weight), encode(second, weight), torch.tensor(5.0, dtype=torch.float64))
    ours.backward()
    assert ours.item() == pytest.approx(loss, abs=1e-12)
    assert relative_error(weight.grad.numpy(), gradient) < 1e-12


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_equal_one_process(world_size):
    loss, gradient = reference_gradient()
    found_loss, found_gradient = run_workers(world_size, "ours")
    assert found_loss == pytest.approx(loss, abs=1e-12)
    assert relative_error(found_gradient, gradient) < 1e-12


@pytest.mark.parametrize("name", ["no gradient", "own negatives"])
def test_the_check_has_power(name):
    _, gradient = reference_gradient()
    _, found = run_workers(2, name)
    assert relative_error(found, gradient) > 0.05
