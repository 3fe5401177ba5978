"""Follow a profile from its centre outwards until the data reject it.

A profile is the best fit under the condition that a quantity has a given value, as a function of
that value. Its height is the root of F, the rise in cost on the scale of a t statistic: 0 at the
centre, and near a straight line on each side (Bates and Watts 1988, chapter 6). An interval ends
where it crosses a limit. Each point starts from its accepted neighbour nearer the centre, so the
profile is followed continuously and cannot jump to another local minimum.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from clue_ray.scaling.laws.law import Floats

MAX_SOLVES = 50
"""Solves per side. Steps double, so a side that takes them all is unbounded."""
FIRST_STEP = 0.5
"""First step, as a share of the distance at which a straight profile would reach the limit."""
LIMIT_TOLERANCE = 1e-3
"""Relative distance of the root of F from the limit at which interpolation ends the search."""
MIN_PROGRESS = 0.5
"""Share of a step. Less than this twice in a row means that a bound holds the quantity."""


class End(NamedTuple):
    """An end of an interval.

    Attributes:
        value: the value of the quantity there.
        theta: the point that takes it, (p,).
        converged: whether the refit at this point converged.
    """

    value: float
    theta: Floats
    converged: bool


class Solved(NamedTuple):
    """Points of the profile.

    Attributes:
        reached: the quantity there, (k,).
        roots: the root of F there, (k,).
        points: theta, (k, p).
        converged: whether each refit converged, (k,).
    """

    reached: Floats
    roots: Floats
    points: Floats
    converged: npt.NDArray[np.bool_]


Solve = Callable[[Floats, Floats, Floats], Solved]
"""Maps wanted values (k,), step widths (k,) and warm starts (k, p) to points of the profile."""


def profile_likelihood(solve: Solve, centre: End, error: float, limit: float) -> tuple[End, End]:
    """Find the lower and the upper value at which the root of F crosses its limit.

    Args:
        error: the standard error of the quantity to first order; it sets the first step.
    """
    sides = [_Side(centre, sign, FIRST_STEP * limit * error, limit) for sign in (-1.0, 1.0)]
    for _ in range(MAX_SOLVES):
        active = [side for side in sides if side.end is None]
        if not active:
            break
        wanted = np.array([side.wanted() for side in active])
        steps = np.array([side.step for side in active])
        warm = np.array([side.theta for side in active])
        for side, *found in zip(active, *solve(wanted, steps, warm), strict=True):
            side.add(float(found[0]), float(found[1]), np.asarray(found[2]), bool(found[3]))
    return sides[0].finish(), sides[1].finish()


class _Side:
    """One side of a profile, as a bracket of the end.

    `near` is the outermost point that the data accept, `far` the innermost that they reject. Both
    are (distance from the centre, root of F). `theta` belongs to `near`, and later to `end`.
    """

    def __init__(self, centre: End, sign: float, step: float, limit: float):
        self.centre, self.sign, self.step, self.limit = centre.value, sign, step, limit
        self.near, self.theta, self.converged = (0.0, 0.0), centre.theta, centre.converged
        self.far: tuple[float, float] | None = None
        self.short_steps = 0
        self.end: float | None = None

    def wanted(self) -> float:
        """Return the next value to try, one step out from the last accepted point."""
        return self.centre + self.sign * (self.near[0] + self.step)

    def add(self, reached: float, root: float, theta: Floats, converged: bool) -> None:
        """Add a solved point: end the search, or choose the next step."""
        away = self.sign * (reached - self.centre)
        if abs(root - self.limit) <= LIMIT_TOLERANCE * self.limit:
            slope = (root - self.near[1]) / max(away - self.near[0], 1e-300)
            self.end = away + (self.limit - root) / slope if slope > 0 else away
            self.theta, self.converged = theta, converged
        elif not root < self.limit:  # also a root of nan, where the law is undefined
            # The solver may stop short of what was wanted. A rejected point inside the accepted
            # one would turn the bracket inside out, so the wanted place stands for it.
            beyond = np.isfinite(root) and away > self.near[0]
            self.far = (away if beyond else self.near[0] + self.step, root)
            self._close_in()
        else:
            self._advance(away, root, theta, converged)

    def _advance(self, away: float, root: float, theta: Floats, converged: bool) -> None:
        """Move the accepted point outwards and choose the next step."""
        progress = away - self.near[0]
        self.short_steps = self.short_steps + 1 if progress < MIN_PROGRESS * self.step else 0
        if away > self.near[0]:
            self.near, self.theta, self.converged = (away, root), theta, converged
        if self.short_steps >= 2:
            self.end = self.near[0]  # a bound holds the quantity here
        elif self.far is not None:
            self._close_in()
        else:
            # Aim just past where a straight profile meets the limit, so that the end is bracketed,
            # but at most double the distance, as the profile may bend.
            left = (self.limit - root) * away / root if root > 0 else np.inf
            self.step = max(min(1.02 * left, 2 * away), 0.1 * self.step)

    def _close_in(self) -> None:
        """Step into the bracket, to where a straight line between its ends meets the limit."""
        assert self.far is not None
        (near, low), (far, high) = self.near, self.far
        # A root far above the limit says that the profile is not straight there (or undefined):
        # then only part of the way is safe.
        share = (self.limit - low) / (high - low) if high < 4 * self.limit else 0.2
        self.step = float(np.clip(share, 0.02, 0.98)) * (far - near)
        if self.step <= 1e-9 * max(abs(self.centre), far):
            self.end = near

    def finish(self) -> End:
        """Return the end of this side.

        It is infinite where the data reject nothing, and the last accepted point where the solves
        ran out inside a bracket.
        """
        if self.end is None:
            self.end = np.inf if self.far is None else self.near[0]
        return End(self.centre + self.sign * self.end, self.theta, self.converged)
