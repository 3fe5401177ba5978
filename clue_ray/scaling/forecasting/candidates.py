"""The laws that a forecast combines, fitted to the frontier in closed form.

A candidate is a law and a half-life. Two laws are used: the power law, and the power law with a
floor E. Each is fitted twice: to the whole frontier, and with weights that halve every
`RECENT_DECADES` below its end. The second follows curves whose slope changes along the range, such
as those that leave a plateau or approach a floor.

Fits are done on logarithms, x = log10 of the predictor and y = ln of the loss. They are fast
because a backtest refits every candidate at every cut: for a given floor, ln(L - E) is a straight
line in x, so one weighted regression per floor of a fixed grid replaces a search.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from clue_ray.scaling.laws.law import Floats

Curve = Callable[[Floats], Floats]
"""Maps x (n,) to predicted y (n,)."""

RECENT_DECADES = 0.6
FLOORS = np.concatenate([[0.0], 1 - np.geomspace(0.97, 0.005, 30)])
"""Floors that are tried, as shares of the lowest loss; 0 is the plain power law."""
REWEIGHTINGS = 5
HUBER = 1.345
"""Residual, in standard deviations, from which a point is down-weighted (Huber 1964)."""
SMALLEST_DEVIATION = 1e-6
INLIER = 0.005
"""Residual in y, half a per cent of the loss, up to which the choice of the floor is by squares."""
LARGEST_LOG = 60.0


class Candidate(NamedTuple):
    """A law and the half-life of its weights in decades of x; 0 weighs all points equally."""

    law: str
    half_life: float

    def fit(self, x: Floats, y: Floats) -> Curve:
        """Fit the law to points in order of x, both (n,)."""
        weights = np.ones_like(x)
        if self.half_life:
            weights = 2.0 ** (-(x[-1] - x) / self.half_life)
        return _fit_floors(x, y, weights, _FLOORS[self.law])

    def __str__(self) -> str:
        recent = f", last {self.half_life:g} decades weigh most" if self.half_life else ""
        return self.law.replace("_", " ") + recent


_FLOORS = {"power_law": FLOORS[:1], "power_law_plus_constant": FLOORS}
CANDIDATES = tuple(Candidate(law, half) for law in _FLOORS for half in (0.0, RECENT_DECADES))


def _fit_floors(x: Floats, y: Floats, weights: Floats, floors: Floats) -> Curve:
    """Fit L = E + exp(a + b x) for every floor E at once, robustly, and keep the best.

    Args:
        x: (n,)
        y: ln L, (n,)
        weights: (n,)
        floors: shares of the lowest loss, (k,)
    """
    loss = np.exp(y)
    floor = floors[:, None] * loss.min()
    z = np.log(loss - floor)  # (k, n)
    # What counts is the residual of ln L, which is smaller than that of z by this factor.
    shrink = (loss - floor) / loss
    huber = np.ones_like(z)
    for _ in range(REWEIGHTINGS):
        offset, slope = _lines(x, z, weights * shrink**2 * huber)
        residual = y - _evaluate(floor, offset, slope, x)
        huber = _huber_weights(residual)
    # Pseudo-Huber cost: quadratic for residuals below INLIER, linear above.
    cost = (weights * (np.sqrt(1 + (residual / INLIER) ** 2) - 1)).sum(axis=1)
    best = int(np.argmin(np.where(slope[:, 0] < 0, cost, np.inf)))
    chosen = floor[best], offset[best], slope[best]
    return lambda at: _evaluate(*chosen, np.asarray(at, dtype=float))


def _lines(x: Floats, z: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Fit a weighted straight line to each row of z (k, n); return offsets and slopes, (k, 1)."""
    total = weights.sum(axis=1, keepdims=True)
    mean_x = (weights * x).sum(axis=1, keepdims=True) / total
    mean_z = (weights * z).sum(axis=1, keepdims=True) / total
    square = (weights * (x - mean_x) ** 2).sum(axis=1, keepdims=True)
    product = (weights * (x - mean_x) * (z - mean_z)).sum(axis=1, keepdims=True)
    slope = product / np.maximum(square, np.finfo(float).tiny)
    return mean_z - slope * mean_x, slope


def _evaluate(floor: Floats, offset: Floats, slope: Floats, x: Floats) -> Floats:
    """Return ln(E + exp(a + b x)) without overflow."""
    return np.log(floor + np.exp(np.clip(offset + slope * x, -LARGEST_LOG, LARGEST_LOG)))


def _huber_weights(residual: Floats) -> Floats:
    """Return Huber's weights of residuals (k, n), scaled by each row's median absolute residual."""
    size = np.abs(residual)
    deviation = 1.4826 * np.median(size, axis=1, keepdims=True) + SMALLEST_DEVIATION
    return np.minimum(1.0, HUBER * deviation / np.maximum(size, np.finfo(float).tiny))
