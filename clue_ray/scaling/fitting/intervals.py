"""Intervals of a fit: profile likelihood where configurations are few, bootstrap where many.

A profile interval of a quantity holds each value v for which refitting under quantity = v raises
the cost by no more than F(1, freedom) allows. All other parameters follow.

The cost of the intervals is not that of the fit. The default Huber delta is far below the noise,
where the cost has a kink at every run and is no likelihood. Intervals therefore use a Huber cost
with delta = 2 standard deviations of the noise, which is 99 % efficient for normal noise, and test
as Schrader and Hettmansperger (1980) do. Where no residual is clipped this is exactly the F test of
least squares. With fewer than `MIN_FREEDOM_TO_CLIP` runs more than parameters nothing is clipped:
so few residuals cannot tell an outlier from noise, and the curve could leave a clipped run at no
cost.

F assumes noise that is equal for all runs and near normal; a few runs cannot show otherwise. With
more than `MAX_PROFILED` configurations the interval comes from drawing configurations, which
assumes neither. It refits with the delta of the fit, so estimate and interval belong to one
estimator. The profile is then the check.

Runs at equal predictors are seeds of one configuration. They share what the law misses there, so
they do not count as that many independent runs: see `_seed_inflation`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from clue_ray.scaling.fitting.bootstrap import (
    Configurations,
    draw_configurations,
    draw_residuals,
    percentiles,
)
from clue_ray.scaling.fitting.problem import Minima, Problem, Rows, differentiate, huber, minimise
from clue_ray.scaling.fitting.profile_likelihood import End, Solved, profile_likelihood
from clue_ray.scaling.fitting.search import screen
from clue_ray.scaling.laws.law import Floats

Quantity = Callable[[Any], Any]
"""An analytic function of points (..., p) -> (...,)."""

DELTA_PER_NOISE = 2.0
"""Huber's delta over the standard deviation of the noise. It is 99 % efficient for normal noise;
1.345 (95 %) had too low coverage with 8 runs (docs/reference/statistics.md)."""
MIN_NOISE = 1e-9
"""Keeps exact data from a division by zero."""
MIN_FREEDOM_TO_CLIP = 4
"""Runs more than parameters from which an outlier can be distinguished from noise."""
STIFFNESS = 10.0
"""Of the soft constraint on a profiled quantity: missing the wanted value by step / STIFFNESS costs
as much as the limit of the interval."""
MAX_PROFILED = 40
"""Configurations up to which drawing them would break the design and overstate the intervals."""


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """The neighbourhood of an optimum of the interval cost.

    Attributes:
        problem: law and data.
        theta: optimum of the interval cost, (p,).
        converged: whether the minimiser converged there.
        huber_delta: Huber's delta of each run in the interval cost, (n,).
        cost: interval cost at theta.
        dispersion: the divisor that makes twice a rise in cost F(1, freedom) distributed.
        noise: standard deviation of log residuals.
        spread: joint covariance of theta to first order, (p, p).
        freedom: degrees of freedom of the dispersion.
        configuration: number of each run's configuration, (n,); seeds share one.
        fit_theta: theta of the fit, (p,).
        fit_delta: Huber's delta of the fit.
    """

    problem: Problem
    theta: Floats
    converged: bool
    huber_delta: Floats
    cost: float
    dispersion: float
    noise: float
    spread: Floats
    freedom: int
    configuration: Configurations
    fit_theta: Floats
    fit_delta: float

    @classmethod
    def build(cls, problem: Problem, theta: Floats, delta: float) -> "Likelihood":
        """Find the optimum of the interval cost from a fit's theta (p,); measure the noise there.

        The formulas are those of M-estimators (Huber 1981, section 7.6): the score is the residual
        clipped to +- delta, `kept` is its mean derivative (the share of runs not clipped), and
        `correction` is Huber's K for the parameters that the fit spends.
        """
        runs, count = len(problem.log_y), len(theta)
        deltas = np.full(runs, _interval_delta(problem, theta, delta))
        # Another cost may prefer another local minimum, so new starts are screened for it too.
        starts = np.concatenate([theta[None], screen(problem, deltas[0])])
        best, cost, converged = minimise(problem.rows(), starts, deltas, problem.bounds).best()
        residual, slope = (found[0] for found in problem.rows()(best[None]))
        score = np.clip(residual, -deltas, deltas)
        kept = max(float((np.abs(residual) <= deltas).mean()), 1 / runs)
        correction = 1 + count / runs * (1 - kept) / kept
        noise = max(correction * float(np.sqrt(score @ score / (runs - count))), MIN_NOISE)
        configuration = np.unique(problem.x, axis=1, return_inverse=True)[1].ravel()
        inflation, freedom = _seed_inflation(score, configuration, count)
        variance = noise**2 * inflation
        return cls(
            problem=problem,
            theta=best,
            converged=converged,
            huber_delta=deltas,
            cost=cost,
            dispersion=variance / kept,
            noise=noise / kept,
            spread=np.linalg.pinv(slope.T @ slope, rcond=1e-14) * variance / kept**2,
            freedom=freedom,
            configuration=configuration,
            fit_theta=theta,
            fit_delta=delta,
        )

    @property
    def configurations(self) -> int:
        """The number of distinct configurations."""
        return int(self.configuration.max()) + 1

    @property
    def many(self) -> bool:
        """Whether there are so many configurations that the bootstrap gives the interval shown."""
        return self.configurations > MAX_PROFILED

    def interval(self, quantity: Quantity, level: float) -> tuple[float, float]:
        """Compute the interval shown: by bootstrap where configurations are many, else by profile.

        Args:
            quantity: the quantity as an analytic function of theta.
            level: the confidence level, such as 0.95.
        """
        return (self.bootstrap if self.many else self.profile)(quantity, level)

    def profile(self, quantity: Quantity, level: float) -> tuple[float, float]:
        """Compute the profile-likelihood interval of a quantity.

        An end that the data do not reject is at the bound of the quantity, or infinite.
        """
        low, high = self.ends(quantity, level)
        return low.value, high.value

    def ends(self, quantity: Quantity, level: float) -> tuple[End, End]:
        """Find both ends of a profile interval, with the points theta at which they are taken."""
        centre, gradient = self._linear(quantity)
        direction = self.spread @ gradient
        error = float(np.sqrt(max(float(gradient @ direction), 1e-24)))
        limit = self._limit(level)

        def solve(wanted: Floats, steps: Floats, warm: Floats) -> Solved:
            # The constraint quantity = wanted is soft: one more row, with squared cost. The refit
            # may stop at another value v of the quantity. Of all points with that v it still has
            # the lowest cost of the data, since they share the cost of the extra row. So it lies on
            # the profile, at v, and nothing is lost.
            straight = self.theta + np.outer((wanted - centre) / error**2, direction)
            weights = STIFFNESS * limit * np.sqrt(self.dispersion) / steps
            found = self._refit(quantity, wanted, (warm, straight), weights)
            residual = self.problem.log_values(found.theta) - self.problem.log_y
            costs = huber(residual, self.huber_delta)
            reached = np.real(quantity(found.theta))
            return Solved(reached, self._root(costs), found.theta, found.converged)

        return profile_likelihood(solve, End(centre, self.theta, self.converged), error, limit)

    def run_interval(self, quantity: Quantity, level: float) -> tuple[float, float]:
        """Compute the profile interval of the log of what one new run measures.

        The new run joins the data as one more row, whose outcome is profiled.

        Args:
            quantity: the log of the value that the law expects of the run.
        """
        centre, gradient = self._linear(quantity)
        direction = self.spread @ gradient
        error = float(np.sqrt(gradient @ direction + self.noise**2))

        def solve(wanted: Floats, steps: Floats, warm: Floats) -> Solved:
            # The weight makes a miss by one noise standard deviation of the new run cost as much as
            # a root of F of 1. Here the extra row is part of the data, so its cost counts.
            straight = self.theta + np.outer((wanted - centre) / error**2, direction)
            weights = np.full_like(steps, np.sqrt(self.dispersion) / self.noise)
            found = self._refit(quantity, wanted, (warm, straight), weights)
            return Solved(wanted, self._root(found.cost), found.theta, found.converged)

        start = End(centre, self.theta, self.converged)
        low, high = profile_likelihood(solve, start, error, self._limit(level))
        return low.value, high.value

    def _limit(self, level: float) -> float:
        """Return the root of F at which the data reject a value."""
        from scipy.special import fdtri  # slow to import

        return float(np.sqrt(fdtri(1, self.freedom, level)))

    def _linear(self, quantity: Quantity) -> tuple[float, Floats]:
        """Evaluate a quantity and its gradient (p,) at the optimum."""
        value, gradient = differentiate(lambda theta: quantity(theta)[..., None], self.theta[None])
        return float(value[0, 0]), gradient[0, 0]

    def _refit(
        self, quantity: Quantity, wanted: Floats, starts: tuple[Floats, ...], weights: Floats
    ) -> Minima:
        """Refit with one more row, weight * (quantity - wanted), for each wanted value (k,).

        Every wanted value is tried from each of `starts`, (k, p) each; the lowest minimum is kept.
        """
        count, tries = len(wanted), len(starts)
        rows = _with_row(
            self.problem.rows(), quantity, np.tile(wanted, tries), np.tile(weights, tries)
        )
        delta = np.append(self.huber_delta, np.inf)
        found = minimise(rows, np.concatenate(starts), delta, self.problem.bounds, iterations=40)
        best = np.argmin(found.cost.reshape(tries, count), axis=0) * count + np.arange(count)
        return Minima(*(values[best] for values in found))

    def _root(self, costs: Floats) -> Floats:
        """Return the root of F for costs (k,): sqrt(2 (cost - lowest cost) / dispersion)."""
        with np.errstate(over="ignore"):
            return np.asarray(np.sqrt(np.maximum(2 * (costs - self.cost), 0) / self.dispersion))

    @cached_property
    def refits(self) -> Minima:
        """Seeded bootstrap refits: of configurations where these are many, else of residuals."""
        if self.many:
            return draw_configurations(
                self.problem, self.fit_theta, self.fit_delta, self.configuration
            )
        return draw_residuals(self.problem, self.theta, self.huber_delta, self.configuration)

    @property
    def draws(self) -> Floats:
        """Optima of the bootstrap refits, (draws, p)."""
        return self.refits.theta

    def bootstrap(self, quantity: Quantity, level: float) -> tuple[float, float]:
        """Compute the bootstrap interval of a quantity."""
        low, high = self.bootstrap_band(quantity, level)
        return float(low), float(high)

    def bootstrap_band(self, quantities: Quantity, level: float) -> tuple[Floats, Floats]:
        """Compute bootstrap intervals of several quantities, each on its own.

        Args:
            quantities: an analytic function of points (..., p) -> (..., m).

        Returns:
            Lower and upper ends, (m,) each, widened by t with configurations - p degrees of
            freedom.
        """
        centre = quantities(self.fit_theta if self.many else self.theta)
        return percentiles(
            quantities(self.draws), centre, level, self.configurations - len(self.theta)
        )


def _interval_delta(problem: Problem, theta: Floats, delta: float) -> float:
    """Return Huber's delta of the interval cost from the residuals of a fit; inf for few runs."""
    runs, count = len(problem.log_y), len(theta)
    if runs - count < MIN_FREEDOM_TO_CLIP:
        return np.inf
    residual, _ = problem.rows()(theta[None])
    # A robust fit passes through p runs, so p residuals are near 0 and would understate the noise.
    # The median of the others over .6745 is the standard deviation for normal noise.
    noise = float(np.median(np.sort(np.abs(residual[0]))[count - 1 :])) / 0.6745
    return max(delta, DELTA_PER_NOISE * noise, MIN_NOISE)


def _seed_inflation(score: Floats, configuration: Configurations, count: int) -> tuple[float, int]:
    """Return the factor by which shared errors of seeds raise the variance, and its freedom.

    With g configurations of several seeds and p parameters, the mean square between configurations,
    with g - p degrees of freedom, is the error term of a law whose error at a configuration is
    shared by its seeds. It replaces the mean square of all runs, with n - p, where it is larger.
    For equal numbers of seeds and a law linear in its parameters this is the exact F test of the
    random-effects model.

    Args:
        score: clipped residuals, (n,).
        count: the number of parameters p.
    """
    runs, groups = len(score), int(configuration.max()) + 1
    total = float(score @ score)
    if count < groups < runs and total > 0:
        sums = np.bincount(configuration, score)
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
