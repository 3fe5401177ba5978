"""Horizon and learning rates: how many steps a run takes, and how fast each weight moves at
each.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from clue_ray.batches.sampler import BatchSampler
from clue_ray.encoder.model import Encoder
from clue_ray.spec.compute import Work, users_for_budget
from clue_ray.spec.specs import EncoderSpec, RunSpec, TrainSpec

BASE_WIDTH = 32
FINAL_RATE = 0.1
STABLE_DECAY = 0.2
PROBED_STEPS = 128


def mean_work(sampler: BatchSampler) -> Work:
    """Estimate the work of one step from the run's first batches."""
    return mean_of(sampler.work(step) for step in range(PROBED_STEPS))


def mean_of(works: Iterable[Work]) -> Work:
    """Average works."""
    return Work(*(round(mean) for mean in np.array(list(works)).mean(0)))


def resolve_steps(run: RunSpec, sampler: BatchSampler) -> int:
    """Turn the horizon (steps, users_seen or train_flops) into steps, at least one."""
    train = run.train
    if train.steps is not None:
        return train.steps
    if train.users_seen is not None:
        return max(1, round(train.users_seen / train.global_batch_size))
    assert train.train_flops is not None
    pairs = users_for_budget(run.encoder, mean_work(sampler), train.train_flops)
    return max(1, round(pairs / train.global_batch_size))


def learning_rate_share(step: int, steps: int, train: TrainSpec) -> float:
    """Return the share of the peak rate at a step: a linear warm-up, then the schedule's fall."""
    rise = min(1.0, (step + 1) / max(1.0, train.warmup * steps))
    if train.schedule == "warmup_stable_decay":
        return min(rise, (steps - step) / max(1.0, STABLE_DECAY * steps))
    return rise * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def make_optimizer(model: Encoder, train: TrainSpec, encoder: EncoderSpec) -> torch.optim.AdamW:
    """Build AdamW with maximal-update rates (decision D6).

    Matrices move by base width / width of the rate (Yang et al. 2022, arXiv 2203.03466), and those
    inside a transformer of L blocks by 1 / sqrt(L) of that, as its branches are scaled too. Token
    embeddings move `train.token_rate` times as fast. Norms, biases, embeddings and the logits'
    scale do not decay.
    """
    groups: dict[tuple[str, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(rate_of(name, parameter, encoder, train.token_rate), []).append(parameter)
    options: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": train.learning_rate * rate,
            "peak_lr": train.learning_rate * rate,
            "weight_decay": train.weight_decay / rate if kind == "matrices" else 0.0,
        }
        for (kind, rate), parameters in groups.items()
    ]
    return torch.optim.AdamW(options, betas=(0.9, 0.98), fused=True)


def rate_of(
    name: str, parameter: torch.nn.Parameter, encoder: EncoderSpec, token_rate: float
) -> tuple[str, float]:
    """Tell what kind of weight a parameter is and its share of the learning rate."""
    if name == "token_embedding.weight":
        return "tokens", token_rate
    if parameter.dim() < 2 or "position" in name:
        return "others", 1.0
    layers = {"item_blocks": encoder.item_layers, "service_blocks": encoder.service_layers}
    return "matrices", BASE_WIDTH / encoder.width * layers.get(name.split(".")[0], 1) ** -0.5


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group to a share of its peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
