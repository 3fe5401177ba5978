"""Horizon and learning rates: how many steps a run takes, and how fast each weight moves at each."""

import math
from typing import Any

import numpy as np
import torch

from clue_ray.compute import Work, train_flops
from clue_ray.encoder.batches import BatchSampler
from clue_ray.encoder.model import Encoder
from clue_ray.spec import RunSpec, TrainSpec

BASE_WIDTH = 32
TOKEN_RATE = 3.0
FINAL_RATE = 0.1
PROBED_STEPS = 16


def mean_work(sampler: BatchSampler) -> Work:
    """Estimate the work of one step from the run's first batches."""
    works = np.array([sampler.work(step) for step in range(PROBED_STEPS)])
    return Work(*(round(mean) for mean in works.mean(0)))


def resolve_steps(run: RunSpec, sampler: BatchSampler) -> int:
    """Turn the horizon (steps, users_seen or train_flops) into steps, at least one."""
    train = run.train
    if train.steps is not None:
        return train.steps
    if train.users_seen is not None:
        return max(1, round(train.users_seen / train.global_batch_size))
    assert train.train_flops is not None
    return max(1, round(train.train_flops / train_flops(run.encoder, mean_work(sampler))))


def learning_rate_share(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then a cosine to a tenth."""
    rise = (step + 1) / max(1.0, warmup * steps)
    cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, rise) * cosine


def make_optimizer(model: Encoder, train: TrainSpec, width: int) -> torch.optim.AdamW:
    """Build AdamW with maximal-update rates (decision D6): matrices move by base width / width of the rate.

    Token embeddings move `TOKEN_RATE` times as fast, since most tokens are in few batches. Norms, biases, embeddings
    and the temperature do not decay.
    """
    groups: dict[str, list[torch.nn.Parameter]] = {"matrices": [], "tokens": [], "others": []}
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2 and "position" not in name
        kind = "tokens" if name == "token_embedding.weight" else "matrices" if is_matrix else "others"
        groups[kind].append(parameter)
    share = BASE_WIDTH / width
    rates = {"matrices": share, "tokens": TOKEN_RATE, "others": 1.0}
    options: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": train.learning_rate * rates[kind],
            "peak_lr": train.learning_rate * rates[kind],
            "weight_decay": train.weight_decay / share if kind == "matrices" else 0.0,
        }
        for kind, parameters in groups.items()
    ]
    return torch.optim.AdamW(options, betas=(0.9, 0.98), fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group to a share of its peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
