"""Walk along a profile from its centre outwards until the data object.

Takes a solver of "best fit with the quantity at ..." and where to begin; gives both ends of the
interval. The one
idea: each point starts from its neighbour nearer the centre, so the profile is followed and never
jumped to.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from clue_ray.scaling.laws.law import Floats

RUNGS = 50  # solves on one side; steps double, so a side that takes them all is unbounded
STRIDE = 0.5  # first step, as a share of where a straight profile would reach the limit
CLOSE = 1e-3  # relative distance from the limit at which interpolation finishes
SHORT = 0.5  # share of a step; less twice running means that the quantity is held by a bound


class End(NamedTuple):
    """A value of the quantity and the point theta (p,) that takes it."""

    value: float
    theta: Floats


class Solved(NamedTuple):
    """Points of the profile: quantity reached (k,), root of F there (k,), theta (k, p)."""

    reached: Floats
    roots: Floats
    points: Floats


Solve = Callable[[Floats, Floats, Floats], Solved]
"""Maps wanted values (k,), step widths (k,) and warm starts (k, p) to points of the profile."""


def profile_likelihood(solve: Solve, centre: End, error: float, limit: float) -> tuple[End, End]:
    """Walk out on both sides together to where the root of F crosses its limit; give the lower and
    upper end.
    """
    sides = [_Side(centre, sign, STRIDE * limit * error, limit) for sign in (-1.0, 1.0)]
    for _ in range(RUNGS):
        active = [side for side in sides if side.end is None]
        if not active:
            break
        wanted = np.array([side.wanted() for side in active])
        steps, warm = (
            np.array([side.step for side in active]),
            np.array([side.theta for side in active]),
        )
        for side, *found in zip(active, *solve(wanted, steps, warm), strict=True):
            side.add(float(found[0]), float(found[1]), np.asarray(found[2]))
    return sides[0].finish(), sides[1].finish()


class _Side:
    """One side of a profile: the outermost point the data accept, and the innermost they object
    to.
    """

    def __init__(self, centre: End, sign: float, step: float, limit: float):
        self.centre, self.sign, self.step, self.limit = centre.value, sign, step, limit
        self.near, self.theta = (0.0, 0.0), centre.theta
        self.far: tuple[float, float] | None = None
        self.short = 0
        self.end: float | None = None

    def wanted(self) -> float:
        """Give the next value to try, one step out from the last accepted point."""
        return self.centre + self.sign * (self.near[0] + self.step)

    def add(self, reached: float, root: float, theta: Floats) -> None:
        """Take a solved point; settle the end, or choose the next step."""
        away = self.sign * (reached - self.centre)
        if abs(root - self.limit) <= CLOSE * self.limit:
            slope = (root - self.near[1]) / max(away - self.near[0], 1e-300)
            self.end, self.theta = away + (self.limit - root) / slope if slope > 0 else away, theta
        elif not root < self.limit:
            self.far = (
                away if np.isfinite(root) and away > self.near[0] else self.near[0] + self.step,
                root,
            )
            self._close_in()
        else:
            self._advance(away, root, theta)

    def _advance(self, away: float, root: float, theta: Floats) -> None:
        """Move the accepted point out; twice short of what was wanted, it is held by a bound."""
        self.short = self.short + 1 if away - self.near[0] < SHORT * self.step else 0
        if away > self.near[0]:
            self.near, self.theta = (away, root), theta
        if self.short >= 2:
            self.end = self.near[0]
        elif self.far is not None:
            self._close_in()
        else:
            left = (self.limit - root) * away / root if root > 0 else np.inf
            self.step = max(min(1.02 * left, 2 * away), 0.1 * self.step)

    def _close_in(self) -> None:
        """Step to where a straight root of F meets the limit; only part of the way where it is far
        from straight.
        """
        assert self.far is not None
        (near, low), (far, high) = self.near, self.far
        share = (self.limit - low) / (high - low) if high < 4 * self.limit else 0.2
        self.step = float(np.clip(share, 0.02, 0.98)) * (far - near)
        if self.step <= 1e-9 * max(abs(self.centre), far):
            self.end = near

    def finish(self) -> End:
        """Give the end of this side: infinite where no data object, the last accepted point where
        none is closer.
        """
        if self.end is None:
            self.end = np.inf if self.far is None else self.near[0]
        return End(self.centre + self.sign * self.end, self.theta)
