"""Intervals of a fit: profile likelihood by F, and a residual bootstrap to check it.

Takes a `Problem` at its optimum; gives (low, high) for any smooth quantity of the parameters. The one idea:
move a quantity away from its best value, let all parameters follow, and stop where the data object.

The default Huber delta is far below the noise, where costs are too kinked for a likelihood. Intervals
therefore profile a Huber cost with delta = 1.345 noise sd (95 % efficient on normal noise), tested as
Schrader and Hettmansperger (1980) do; with nothing clipped this is exactly the F test of least squares.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import fdtri, stdtrit

from clue_ray.scaling.laws import Floats
from clue_ray.scaling.problem import Problem, Rows, differentiate, huber, minimise

Quantity = Callable[[Any], Any]
"""An analytic function of points (..., p) -> (...,)."""
Probe = Callable[[Floats], tuple[Floats, Floats]]
"""Maps wanted values of a quantity to the values reached and the roots of F there."""

EFFICIENT = 1.345  # Huber's delta over the noise sd for 95 % efficiency
SMALLEST_NOISE = 1e-9  # keeps exact data from dividing by zero
LADDER = (0.7, 1.4, 2.2, 3.2, 5.0, 9.0, 20.0, 80.0)  # first steps out, in standard errors
PULL = 10.0  # how hard a quantity is pulled to where it is wanted, over its own stiffness
REFINEMENTS = 2
DRAWS = 200
MANY_RUNS = 40  # below, drawing whole runs breaks the design and overstates intervals


@dataclass(frozen=True)
class Likelihood:
    """The neighbourhood of an optimum, as the data see it.

    Attributes:
        problem: law and data.
        theta: optimum of the interval cost, (p,).
        delta: Huber delta of each run, (n,).
        cost: interval cost at theta.
        dispersion: what twice a rise in cost is divided by to be F(1, n - p).
        noise: standard deviation of log residuals.
        spread: covariance of theta to first order, (p, p).
    """

    problem: Problem
    theta: Floats
    delta: Floats
    cost: float
    dispersion: float
    noise: float
    spread: Floats

    @classmethod
    def build(cls, problem: Problem, theta: Floats, delta: float) -> "Likelihood":
        """Find the optimum of the interval cost from a fit's theta (p,), and measure the noise there."""
        residual, _ = problem.rows()(theta[None])
        runs, count = len(problem.log_y), len(theta)
        # The p smallest residuals are near 0 by construction and would understate the noise.
        sd = float(np.median(np.sort(np.abs(residual[0]))[count - 1 :])) / 0.6745
        deltas = np.full(runs, max(delta, EFFICIENT * sd, SMALLEST_NOISE))
        points, costs = minimise(problem.rows(), theta[None], deltas, problem.bounds)
        residuals, slopes = problem.rows()(points)
        pull = np.clip(residuals[0], -deltas, deltas)
        kept = max(float((np.abs(residuals[0]) <= deltas).mean()), 1 / runs)
        correction = 1 + count / runs * (1 - kept) / kept
        variance = max(correction**2 * float(pull @ pull) / (runs - count), SMALLEST_NOISE**2)
        spread = np.linalg.pinv(slopes[0].T @ slopes[0], rcond=1e-14) * variance / kept**2
        noise = float(np.sqrt(variance)) / kept
        return cls(problem, points[0], deltas, float(costs[0]), variance / kept, noise, spread)

    @property
    def freedom(self) -> int:
        """Degrees of freedom left, n - p."""
        return len(self.problem.log_y) - len(self.theta)

    def interval(self, quantity: Quantity, level: float) -> tuple[float, float]:
        """Bracket a quantity by profile likelihood; an end no data object to is its bound, or infinite."""
        centre, gradient = self._linear(quantity)
        direction = self.spread @ gradient
        error = float(np.sqrt(max(float(gradient @ direction), 1e-24)))

        def probe(wanted: Floats) -> tuple[Floats, Floats]:
            # Where the pull comes to rest, no other point of that quantity fits better: it is on the profile.
            starts = self.theta + np.outer((wanted - centre) / error**2, direction)
            points, _ = self._refit(quantity, wanted, starts, PULL * self.noise / error)
            costs = huber(self.problem.log_values(points) - self.problem.log_y, self.delta)
            return np.real(quantity(points)), self._root(costs)

        return self._search(centre, error, probe, level)

    def run_interval(self, quantity: Quantity, level: float) -> tuple[float, float]:
        """Bracket the log of what one new run measures, `quantity` being the log of what is expected of it.

        The new run joins the data as a row of its own; its outcome is bracketed where the data object to it.
        """
        centre, gradient = self._linear(quantity)
        direction = self.spread @ gradient
        error = float(np.sqrt(gradient @ direction + self.noise**2))

        def probe(wanted: Floats) -> tuple[Floats, Floats]:
            starts = self.theta + np.outer((wanted - centre) / error**2, direction)
            _, costs = self._refit(quantity, wanted, starts, np.sqrt(self.dispersion) / self.noise)
            return wanted, self._root(costs)

        return self._search(centre, error, probe, level)

    def _linear(self, quantity: Quantity) -> tuple[float, Floats]:
        """Evaluate a quantity and its gradient at the optimum."""
        value, gradient = differentiate(lambda theta: quantity(theta)[..., None], self.theta[None])
        return float(value[0, 0]), gradient[0, 0]

    def _refit(self, quantity: Quantity, wanted: Floats, starts: Floats, weight: float) -> tuple[Floats, Floats]:
        """Refit with one more row, weight * (quantity - wanted), for each wanted value."""
        rows = _with_row(self.problem.rows(), quantity, wanted, weight)
        return minimise(rows, starts, np.append(self.delta, np.inf), self.problem.bounds, iterations=40)

    def _root(self, costs: Floats) -> Floats:
        """Give the root of F, the rise in cost that the data object to."""
        with np.errstate(over="ignore"):
            return np.asarray(np.sqrt(np.maximum(2 * (costs - self.cost), 0) / self.dispersion))

    def _search(self, centre: float, error: float, probe: Probe, level: float) -> tuple[float, float]:
        """Walk out on both sides, then close in on where the root of F crosses its limit."""
        limit = float(np.sqrt(fdtri(1, self.freedom, level)))
        sides = [_Side(centre, -1.0, limit), _Side(centre, 1.0, limit)]
        steps = np.array(LADDER) * error
        wanted = centre + np.concatenate([-steps, steps])
        for _ in range(1 + REFINEMENTS):
            reached, roots = probe(wanted)
            for side in sides:
                side.add(reached, roots)
            wanted = np.array([point for side in sides for point in side.guesses()])
            if not len(wanted):
                break
        return sides[0].end(), sides[1].end()

    @cached_property
    def draws(self) -> Floats:
        """Optima of seeded bootstrap refits, (draws, p): of residuals, or of runs where they are many."""
        picks = np.random.default_rng(0).integers(len(self.delta), size=(DRAWS, len(self.delta)))
        starts = np.repeat(self.theta[None], DRAWS, axis=0)
        if len(self.delta) < MANY_RUNS:
            return minimise(self._resampled(picks), starts, self.delta, self.problem.bounds, 60)[0]
        # A run drawn k times counts k times: k huber(r, delta) = huber(r sqrt k, delta sqrt k).
        times = np.sqrt([np.bincount(pick, minlength=len(self.delta)) for pick in picks])
        rows = _weighted(self.problem.rows(), times)
        return minimise(rows, starts, self.delta * times, self.problem.bounds, 60)[0]

    def _resampled(self, picks: npt.NDArray[np.int64]) -> Rows:
        """Give residuals against the law plus drawn residuals, leverage-corrected and centred."""
        residual, slope = self.problem.rows()(self.theta[None])
        leverage = np.einsum("np,pq,nq->n", slope[0], np.linalg.pinv(slope[0].T @ slope[0]), slope[0])
        noise = residual[0] / np.sqrt(1 - np.minimum(leverage, 0.95))
        return self.problem.rows(self.problem.log_values(self.theta) - (noise - noise.mean())[picks])

    def bootstrap(self, quantity: Quantity, level: float) -> tuple[float, float]:
        """Bracket a quantity by bootstrap, widened by t(n - p) over normal quantiles."""
        centre = float(quantity(self.theta))
        tail = (1 + level) / 2
        widening = float(stdtrit(self.freedom, tail) / stdtrit(1e9, tail))
        low, high = np.quantile(quantity(self.draws), [1 - tail, tail])
        return centre + widening * (float(low) - centre), centre + widening * (float(high) - centre)


class _Side:
    """One side of a profile: points found so far, and where the root of F reaches its limit."""

    def __init__(self, centre: float, sign: float, limit: float):
        self.centre, self.sign, self.limit = centre, sign, limit
        self.points: list[tuple[float, float]] = [(0.0, 0.0)]

    def add(self, reached: Floats, roots: Floats) -> None:
        """Keep the points of this side, ordered by distance from the centre."""
        away = self.sign * (reached - self.centre)
        found = [(float(a), float(r)) for a, r in zip(away, roots, strict=True) if a > 0 and np.isfinite(r)]
        self.points = sorted(self.points + found)

    def bracket(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """Give the neighbouring points between which the limit is first crossed."""
        for inner, outer in zip(self.points, self.points[1:], strict=False):
            if inner[1] <= self.limit < outer[1]:
                return inner, outer
        return None

    def crossing(self) -> float | None:
        """Interpolate the crossing; the root of F is close to a straight line."""
        found = self.bracket()
        if found is None:
            return None
        (near, low), (far, high) = found
        return near + (far - near) * (self.limit - low) / (high - low)

    def guesses(self) -> list[float]:
        """Propose values that narrow the bracket round the crossing."""
        found, crossing = self.bracket(), self.crossing()
        if found is None or crossing is None:
            return []
        width = 0.1 * (found[1][0] - found[0][0])
        if width <= 1e-5 * crossing:
            return []
        return [self.centre + self.sign * (crossing + shift) for shift in (-width, 0.0, width)]

    def end(self) -> float:
        """Give the end of the interval: the crossing, the bound where points pile up, or infinity."""
        crossing = self.crossing()
        if crossing is not None:
            return self.centre + self.sign * crossing
        last = self.points[-3:]
        piled_up = last[-1][0] - last[0][0] <= 1e-3 * max(last[-1][0], 1e-12)
        return self.centre + self.sign * (last[-1][0] if piled_up else np.inf)


def _with_row(rows: Rows, quantity: Quantity, wanted: Floats, weight: float) -> Rows:
    """Add one row to the residuals: weight * (quantity - wanted)."""

    def extended(theta: Floats) -> tuple[Floats, Floats]:
        residual, slope = rows(theta)
        value, gradient = differentiate(lambda t: quantity(t)[..., None], theta)
        extra = weight * (value - wanted[:, None])
        return np.concatenate([residual, extra], 1), np.concatenate([slope, weight * gradient], 1)

    return extended


def _weighted(rows: Rows, weights: Floats) -> Rows:
    """Multiply residuals and derivatives by weights (k, n)."""

    def scaled(theta: Floats) -> tuple[Floats, Floats]:
        residual, slope = rows(theta)
        return residual * weights, slope * weights[:, :, None]

    return scaled
