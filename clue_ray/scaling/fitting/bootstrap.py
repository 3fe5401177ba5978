"""Bootstrap of a fit: refits of drawn data, and the interval that they span.

Takes a `Problem`, the optimum and which runs share a configuration; gives draws (draws, p). The one
idea: seeds of one configuration err together, so what is drawn is always a whole configuration, or
its miss.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from clue_ray.scaling.fitting.problem import Problem, Rows, minimise
from clue_ray.scaling.laws.law import Floats

DRAWS = 200
STEPS = 40  # of each refit, which starts at the optimum of the data
LARGEST_LEVERAGE = 0.95  # beyond, a correction by leverage would blow up rounding


Places = npt.NDArray[np.int64]


def draw_residuals(problem: Problem, theta: Floats, delta: Floats, configuration: Places) -> Floats:
    """Refit to the law at theta (p,) plus drawn noise, corrected for leverage -> optima (draws, p).

    What a configuration misses the law by on average is drawn from all configurations, centred; its
    seeds share it and keep how they differ. Where every run has its own configuration this draws
    residuals.
    """
    residual, slope = problem.rows()(theta[None])
    sizes, place = np.bincount(configuration), configuration
    leverage = np.einsum("np,pq,nq->n", slope[0], np.linalg.pinv(slope[0].T @ slope[0]), slope[0])
    taken = np.bincount(place, leverage)  # what the fit took out of each mean's variance
    missed = np.bincount(place, residual[0]) / sizes
    corrected = missed / np.sqrt(1 - np.minimum(taken, LARGEST_LEVERAGE))
    picks = np.random.default_rng(0).integers(len(sizes), size=(DRAWS, len(sizes)))
    drawn = (corrected - corrected.mean())[picks][:, place] + residual[0] - missed[place]
    rows = problem.rows(problem.log_values(theta) - drawn)
    return minimise(rows, np.repeat(theta[None], DRAWS, axis=0), delta, problem.bounds, STEPS)[0]


def draw_configurations(
    problem: Problem, theta: Floats, delta: float, configuration: Places
) -> Floats:
    """Refit to configurations drawn with replacement, from theta (p,) and with its Huber delta ->
    optima (draws, p).
    """
    count = int(configuration.max()) + 1
    picks = np.random.default_rng(0).integers(count, size=(DRAWS, count))
    # A run drawn k times counts k times: k huber(r, delta) = huber(r sqrt k, delta sqrt k).
    times = np.sqrt([np.bincount(pick, minlength=count)[configuration] for pick in picks])
    bends = np.multiply(times, delta, out=np.zeros_like(times), where=times > 0)
    starts = np.repeat(theta[None], DRAWS, axis=0)
    return minimise(_weighted(problem.rows(), times), starts, bends, problem.bounds, STEPS)[0]


def percentiles(
    values: Floats, centre: Floats, level: float, freedom: int
) -> tuple[Floats, Floats]:
    """Bracket quantities at centre (...) by their draws (draws, ...), widened by t over normal
    quantiles.

    A draw in which the quantity is undefined lies beyond both ends.
    """
    tail = (1 + level) / 2
    widening = float(stdtrit(max(freedom, 1), tail) / stdtrit(1e9, tail))
    how = (
        "linear" if np.isfinite(values).all() else "closest_observation"
    )  # which needs no infinite difference
    # type: ignore[call-overload]
    low = np.quantile(np.where(np.isnan(values), -np.inf, values), 1 - tail, axis=0, method=how)
    # type: ignore[call-overload]
    high = np.quantile(np.where(np.isnan(values), np.inf, values), tail, axis=0, method=how)
    return centre + widening * (low - centre), centre + widening * (high - centre)


def _weighted(rows: Rows, weights: Floats) -> Rows:
    """Multiply residuals and derivatives by weights (k, n)."""

    def scaled(theta: Floats) -> tuple[Floats, Floats]:
        residual, slope = rows(theta)
        return residual * weights, slope * weights[:, :, None]

    return scaled
