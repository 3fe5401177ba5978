"""Calibration of the held-out loss: one temperature per run, fitted on validation users.

The temperature that training learns suits the training users. Where training and held-out loss
part, it is too sure of itself, and the held-out loss then measures the temperature instead of the
vectors. So the loss is computed at the temperature that minimises it on a separate pool of
validation users (temperature scaling; Guo et al. 2017), for encoders and baselines alike.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from clue_ray.runs import TEMPERATURE_BOUNDS

TOLERANCE = 1e-3
"""Of the logarithm of the temperature; the loss is flat around its minimum."""


def fit_temperature(cosines: Sequence[torch.Tensor]) -> float:
    """Fit the temperature that minimises the loss of pools of users, averaged over users.

    The loss is convex in the inverse temperature, so it has a single minimum.

    Args:
        cosines: One matrix per pair of services, [users, users], with the true pairs on the
            diagonal.

    Returns:
        A temperature within TEMPERATURE_BOUNDS; NaN if a cosine is not finite.
    """
    if not all(matrix.isfinite().all() for matrix in cosines):
        return math.nan
    exact = [matrix.double() for matrix in cosines]
    users = sum(map(len, exact))

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        total = sum(len(matrix) * symmetric_loss(scale * matrix).item() for matrix in exact)
        return total / users

    low, high = map(math.log, TEMPERATURE_BOUNDS)
    found = minimize_scalar(
        loss, bounds=(low, high), method="bounded", options={"xatol": TOLERANCE}
    )
    return math.exp(found.x)


def symmetric_loss(logits: torch.Tensor) -> torch.Tensor:
    """Compute the InfoNCE loss of a square matrix, averaged over both directions, in nats."""
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
