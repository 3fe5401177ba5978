"""Intervals of a fit: profile likelihood by F where runs are few, a bootstrap where they are many.

Takes a `Problem` at its optimum; gives (low, high) for any smooth quantity of the parameters. The
one idea: move a quantity away from its best value, let all parameters follow, and stop where the
data object.

The default Huber delta is far below the noise, where costs are too kinked for a likelihood.
Intervals therefore profile a Huber cost with delta = 2 noise sd (99 % efficient on normal noise),
tested as Schrader and Hettmansperger (1980) do; with nothing clipped this is exactly the F test of
least squares. With fewer than `ENOUGH_FREEDOM` runs more than parameters nothing is clipped: so few
residuals cannot tell an outlier from noise, and a clipped run would let the curve leave it at no
price.

F takes the noise to be alike in all runs and near normal; a few runs cannot say otherwise. With
more than `MANY_CONFIGURATIONS` the runs themselves are drawn instead, which supposes neither, and
refitted with the delta of the fit, so that estimate and interval belong to one estimator. The
profile is then the check.

Runs at equal predictors are seeds of one configuration. What the law misses there they share, so
they do not
count as so many runs: see `_between` for the profile; the bootstrap draws whole configurations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import fdtri

from clue_ray.scaling.fitting.bootstrap import draw_configurations, draw_residuals, percentiles
from clue_ray.scaling.fitting.problem import Problem, Rows, differentiate, huber, minimise
from clue_ray.scaling.fitting.profile_likelihood import End, Solved, profile_likelihood
from clue_ray.scaling.fitting.search import screen
from clue_ray.scaling.laws.law import Floats

Quantity = Callable[[Any], Any]
"""An analytic function of points (..., p) -> (...,)."""


# Huber's delta over the noise sd: 99 % efficient on normal noise; 1.345 (95 %) covered less at n =
# 8
CLIP = 2.0
SMALLEST_NOISE = 1e-9  # keeps exact data from dividing by zero
ENOUGH_FREEDOM = 4  # runs more than parameters from which an outlier can be told from noise
# how hard a quantity is pulled to where it is wanted: a miss by step / PULL costs the whole limit
PULL = 10.0
MANY_CONFIGURATIONS = (
    40  # up to here, drawing whole configurations breaks the design and overstates intervals
)


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
        spread: joint covariance of theta to first order, (p, p).
        freedom: degrees of freedom of the dispersion.
        configuration: number of each run's configuration, (n,); seeds share one.
        estimate: theta of the fit, (p,).
        bend: Huber delta of the fit.
    """

    problem: Problem
    theta: Floats
    delta: Floats
    cost: float
    dispersion: float
    noise: float
    spread: Floats
    freedom: int
    configuration: npt.NDArray[np.int64]
    estimate: Floats
    bend: float

    @classmethod
    def build(cls, problem: Problem, theta: Floats, delta: float) -> "Likelihood":
        """Find the optimum of the interval cost from a fit's theta (p,), and measure the noise
        there.
        """
        residual, _ = problem.rows()(theta[None])
        runs, count = len(problem.log_y), len(theta)
        # The p smallest residuals are near 0 by construction and would understate the noise.
        sd = float(np.median(np.sort(np.abs(residual[0]))[count - 1 :])) / 0.6745
        robust = max(delta, CLIP * sd, SMALLEST_NOISE)
        deltas = np.full(runs, robust if runs - count >= ENOUGH_FREEDOM else np.inf)
        points, costs = minimise(
            problem.rows(), _starts(problem, theta, deltas[0]), deltas, problem.bounds
        )
        points, costs = points[[np.argmin(costs)]], costs[[np.argmin(costs)]]
        residuals, slopes = problem.rows()(points)
        pull = np.clip(residuals[0], -deltas, deltas)
        kept = max(float((np.abs(residuals[0]) <= deltas).mean()), 1 / runs)
        correction = 1 + count / runs * (1 - kept) / kept
        noise = max(correction * float(np.sqrt(pull @ pull / (runs - count))), SMALLEST_NOISE)
        configuration = np.unique(problem.x, axis=1, return_inverse=True)[1].ravel()
        inflation, freedom = _between(pull, configuration, count)
        variance = noise**2 * inflation
        spread = np.linalg.pinv(slopes[0].T @ slopes[0], rcond=1e-14) * variance / kept**2
        rest = (variance / kept, noise / kept, spread, freedom, configuration, theta, delta)
        return cls(problem, points[0], deltas, float(costs[0]), *rest)

    @property
    def configurations(self) -> int:
        """Count the distinct configurations."""
        return int(self.configuration.max()) + 1

    @property
    def many(self) -> bool:
        """Whether the configurations are so many that the interval shown is the bootstrap's."""
        return self.configurations > MANY_CONFIGURATIONS

    def interval(self, quantity: Quantity, level: float) -> tuple[float, float]:
        """Bracket a quantity: by bootstrap where configurations are many, else by profile
        likelihood.
        """
        return (self.bootstrap if self.many else self.profile)(quantity, level)

    def profile(self, quantity: Quantity, level: float) -> tuple[float, float]:
        """Bracket a quantity by profile likelihood; an end no data object to is its bound, or
        infinite.
        """
        low, high = self.ends(quantity, level)
        return low.value, high.value

    def ends(self, quantity: Quantity, level: float) -> tuple[End, End]:
        """Find both ends of a quantity's profile interval, with the points theta at which it takes
        them.
        """
        centre, gradient = self._linear(quantity)
        direction = self.spread @ gradient
        error = float(np.sqrt(max(float(gradient @ direction), 1e-24)))
        limit = self._limit(level)

        def solve(wanted: Floats, steps: Floats, warm: Floats) -> Solved:
            # Where the pull comes to rest, no other point of that quantity fits better: it is on
            # the profile.
            straight = self.theta + np.outer((wanted - centre) / error**2, direction)
            weights = PULL * limit * np.sqrt(self.dispersion) / steps
            points, _ = self._refit(quantity, wanted, (warm, straight), weights)
            costs = huber(self.problem.log_values(points) - self.problem.log_y, self.delta)
            return Solved(np.real(quantity(points)), self._root(costs), points)

        return profile_likelihood(solve, End(centre, self.theta), error, limit)

    def run_interval(self, quantity: Quantity, level: float) -> tuple[float, float]:
        """Bracket the log of what one new run measures, `quantity` being the log of what is
        expected of it.

        The new run joins the data as a row of its own; its outcome is bracketed where the data
        object to it.
        """
        centre, gradient = self._linear(quantity)
        direction = self.spread @ gradient
        error = float(np.sqrt(gradient @ direction + self.noise**2))

        def solve(wanted: Floats, steps: Floats, warm: Floats) -> Solved:
            straight = self.theta + np.outer((wanted - centre) / error**2, direction)
            weights = np.full_like(steps, np.sqrt(self.dispersion) / self.noise)
            points, costs = self._refit(quantity, wanted, (warm, straight), weights)
            return Solved(wanted, self._root(costs), points)

        low, high = profile_likelihood(solve, End(centre, self.theta), error, self._limit(level))
        return low.value, high.value

    def _limit(self, level: float) -> float:
        """Give the root of F at which the data object."""
        return float(np.sqrt(fdtri(1, self.freedom, level)))

    def _linear(self, quantity: Quantity) -> tuple[float, Floats]:
        """Evaluate a quantity and its gradient at the optimum."""
        value, gradient = differentiate(lambda theta: quantity(theta)[..., None], self.theta[None])
        return float(value[0, 0]), gradient[0, 0]

    def _refit(
        self, quantity: Quantity, wanted: Floats, starts: tuple[Floats, ...], weights: Floats
    ) -> tuple[Floats, Floats]:
        """Refit with one more row, weight * (quantity - wanted), for each wanted value; the best of
        all starts.
        """
        count, tries = len(wanted), len(starts)
        rows = _with_row(
            self.problem.rows(), quantity, np.tile(wanted, tries), np.tile(weights, tries)
        )
        delta = np.append(self.delta, np.inf)
        points, costs = minimise(
            rows, np.concatenate(starts), delta, self.problem.bounds, iterations=40
        )
        best = np.argmin(costs.reshape(tries, count), axis=0) * count + np.arange(count)
        return points[best], costs[best]

    def _root(self, costs: Floats) -> Floats:
        """Give the root of F, the rise in cost that the data object to."""
        with np.errstate(over="ignore"):
            return np.asarray(np.sqrt(np.maximum(2 * (costs - self.cost), 0) / self.dispersion))

    @cached_property
    def draws(self) -> Floats:
        """Optima of seeded bootstrap refits, (draws, p): of configurations where these are many,
        else of residuals.
        """
        if self.many:
            return draw_configurations(self.problem, self.estimate, self.bend, self.configuration)
        return draw_residuals(self.problem, self.theta, self.delta, self.configuration)

    def bootstrap(self, quantity: Quantity, level: float) -> tuple[float, float]:
        """Bracket a quantity by bootstrap, widened by t over normal quantiles, with configurations
        - p of freedom.
        """
        low, high = self.bootstrap_band(quantity, level)
        return float(low), float(high)

    def bootstrap_band(self, quantities: Quantity, level: float) -> tuple[Floats, Floats]:
        """Bracket quantities by bootstrap, one by one: points (..., p) -> (..., m) gives ends
        (m,).
        """
        centre = quantities(self.estimate if self.many else self.theta)
        return percentiles(
            quantities(self.draws), centre, level, self.configurations - len(self.theta)
        )


def _starts(problem: Problem, theta: Floats, delta: float) -> Floats:
    """Give a fit's optimum and the starts screened for this delta: another cost may prefer another
    basin.
    """
    return np.concatenate([theta[None], screen(problem, delta)])


def _between(pull: Floats, configuration: npt.NDArray[np.int64], count: int) -> tuple[float, int]:
    """Give what seeds that err together inflate the residual variance by, and its degrees of
    freedom.

    With g configurations of several seeds and p parameters, the mean square between configurations,
    of g - p degrees, is the error term of a law whose misses the seeds share; it is taken where it
    exceeds that of n - p. For equal numbers of seeds and a law linear in its parameters this is the
    exact F test of the random-effects model.
    """
    runs, groups = len(pull), int(configuration.max()) + 1
    total = float(pull @ pull)
    if count < groups < runs and total > 0:
        sums = np.bincount(configuration, pull)
        between = float(sums @ (sums / np.bincount(configuration)))
        ratio = between / (groups - count) / (total / (runs - count))
        if ratio > 1:
            return ratio, groups - count
    return 1.0, runs - count


def _with_row(rows: Rows, quantity: Quantity, wanted: Floats, weights: Floats) -> Rows:
    """Add one row to the residuals of each point: weight * (quantity - wanted)."""

    def extended(theta: Floats) -> tuple[Floats, Floats]:
        residual, slope = rows(theta)
        value, gradient = differentiate(lambda t: quantity(t)[..., None], theta)
        extra = weights[:, None] * (value - wanted[:, None])
        return np.concatenate([residual, extra], 1), np.concatenate(
            [slope, weights[:, None, None] * gradient], 1
        )

    return extended
