"""Steps of a run, the learning rate at each step, and the optimizer that applies it."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from clue_ray.batches.sampler import BatchSampler
from clue_ray.encoder.model import Encoder
from clue_ray.spec.compute import Work, users_for_budget
from clue_ray.spec.recipe import BETAS, FINAL_RATE, STABLE_DECAY
from clue_ray.spec.specs import RunSpec, TrainSpec

PROBED_STEPS = 128
"""Steps whose mean stands for the work of a step: batches differ in the length of histories."""


def mean_work(sampler: BatchSampler) -> Work:
    """Estimate the work of one step from the run's first batches."""
    return mean_of(sampler.batch(step).work for step in range(PROBED_STEPS))


def mean_of(works: Iterable[Work]) -> Work:
    """Average works, rounded to whole counts."""
    return Work(*(round(mean) for mean in np.array(list(works)).mean(0)))


def resolve_steps(run: RunSpec, sampler: BatchSampler) -> int:
    """Convert the horizon (steps, users_seen or train_flops) to steps, at least one."""
    train = run.train
    if train.steps is not None:
        return train.steps
    if train.users_seen is not None:
        return max(1, round(train.users_seen / train.global_batch_size))
    assert train.train_flops is not None
    batch = train.global_batch_size
    pairs = users_for_budget(run.encoder, mean_work(sampler), batch, train.train_flops)
    return max(1, round(pairs / batch))


def learning_rate_share(step: int, steps: int, train: TrainSpec) -> float:
    """Return the share of the peak rate at a step: a linear warm-up, then the schedule's fall."""
    rise = min(1.0, (step + 1) / max(1.0, train.warmup * steps))
    if train.schedule == "warmup_stable_decay":
        return min(rise, (steps - step) / max(1.0, STABLE_DECAY * steps))
    return rise * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def make_optimizer(model: Encoder, train: TrainSpec) -> torch.optim.AdamW:
    """Build AdamW with the rates of the parameters' roles (decision D6).

    Token embeddings move `train.token_rate` times as fast: most tokens are in few batches, so most
    of their gradients are zero. Matrices decay by the same share per step at every rate: AdamW
    multiplies rate and decay, so the decay is divided by the rate. Nothing else decays: a rare
    token would decay at every step and learn at few of them.
    """
    groups: dict[tuple[str, float], list[torch.Tensor]] = {}
    for parameter, role in model.roles().items():
        rate = role.rate * (train.token_rate if role.kind == "token_table" else 1.0)
        groups.setdefault((role.kind, rate), []).append(parameter)
    options: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": train.learning_rate * rate,
            "peak_lr": train.learning_rate * rate,
            "weight_decay": train.weight_decay / rate if kind == "matrix" else 0.0,
        }
        for (kind, rate), parameters in groups.items()
    ]
    return torch.optim.AdamW(options, betas=BETAS, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group's rate to a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
