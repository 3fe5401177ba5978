"""Bootstrap of a fit: refits of drawn data, and the interval that they span.

Seeds of one configuration err together, because they share what the law misses there. So what is
drawn is always a whole configuration, or the mean residual of one, never a single run (Davison and
Hinkley 1997, sections 3.8 and 6.2). Draws are seeded: the same data give the same intervals.
"""

import numpy as np
import numpy.typing as npt

from clue_ray.scaling.fitting.problem import Minima, Problem, Rows, minimise
from clue_ray.scaling.laws.law import Floats

DRAWS = 200
REFIT_ITERATIONS = 40
"""Of each refit. It starts at the optimum of the data, so few are needed."""
MAX_LEVERAGE = 0.95
"""Beyond this the correction by leverage would amplify rounding."""

Configurations = npt.NDArray[np.int64]
"""The number of each run's configuration, (n,); seeds share one."""


def draw_residuals(
    problem: Problem, theta: Floats, delta: Floats, configuration: Configurations
) -> Minima:
    """Refit to the law at theta (p,) plus drawn residuals: `DRAWS` optima.

    The mean residual of a configuration is drawn from those of all configurations, centred and
    corrected for leverage. The seeds of the configuration share the drawn value and keep their
    differences. Where every run has its own configuration this is the usual residual bootstrap.
    """
    residual, slope = problem.rows()(theta[None])
    sizes = np.bincount(configuration)
    leverage = np.einsum("np,pq,nq->n", slope[0], np.linalg.pinv(slope[0].T @ slope[0]), slope[0])
    # A fit absorbs part of the noise: a residual has variance s^2 (1 - leverage). Dividing by the
    # root restores s^2 (Davison and Hinkley 1997, section 6.2).
    absorbed = np.bincount(configuration, leverage)
    mean = np.bincount(configuration, residual[0]) / sizes
    corrected = mean / np.sqrt(1 - np.minimum(absorbed, MAX_LEVERAGE))
    picks = np.random.default_rng(0).integers(len(sizes), size=(DRAWS, len(sizes)))
    drawn = (corrected - corrected.mean())[picks][:, configuration]
    drawn = drawn + residual[0] - mean[configuration]
    rows = problem.rows(problem.log_values(theta) - drawn)
    starts = np.repeat(theta[None], DRAWS, axis=0)
    return minimise(rows, starts, delta, problem.bounds, REFIT_ITERATIONS)


def draw_configurations(
    problem: Problem, theta: Floats, delta: float, configuration: Configurations
) -> Minima:
    """Refit to configurations drawn with replacement, from theta (p,): `DRAWS` optima.

    This assumes neither equal nor normal noise, but needs many configurations: a draw leaves out a
    third of them, and with few the rest may not identify the law.
    """
    count = int(configuration.max()) + 1
    picks = np.random.default_rng(0).integers(count, size=(DRAWS, count))
    # A run drawn k times counts k times, and k huber(r, delta) = huber(r sqrt k, delta sqrt k). So
    # residuals and deltas are scaled instead of copying rows, and all draws have one shape.
    times = np.sqrt([np.bincount(pick, minlength=count)[configuration] for pick in picks])
    deltas = np.multiply(times, delta, out=np.zeros_like(times), where=times > 0)
    starts = np.repeat(theta[None], DRAWS, axis=0)
    rows = _weighted(problem.rows(), times)
    return minimise(rows, starts, deltas, problem.bounds, REFIT_ITERATIONS)


def percentiles(
    values: Floats, centre: Floats, level: float, freedom: int
) -> tuple[Floats, Floats]:
    """Compute percentile intervals of quantities at centre (...) from their draws (draws, ...).

    The interval is widened by the ratio of the t to the normal quantile, as percentiles of few
    configurations understate the uncertainty of the noise itself. A draw in which a quantity is
    undefined counts as beyond both ends.
    """
    tail = (1 + level) / 2
    from scipy.special import stdtrit  # slow to import

    widening = float(stdtrit(max(freedom, 1), tail) / stdtrit(1e9, tail))
    # Interpolation between infinite draws would give nan, so the closest draw is taken there.
    method: str = "linear" if np.isfinite(values).all() else "closest_observation"
    low = _quantile(np.where(np.isnan(values), -np.inf, values), 1 - tail, method)
    high = _quantile(np.where(np.isnan(values), np.inf, values), tail, method)
    return centre + widening * (low - centre), centre + widening * (high - centre)


def _quantile(values: Floats, share: float, method: str) -> Floats:
    return np.asarray(np.quantile(values, share, axis=0, method=method))  # type: ignore[call-overload]


def _weighted(rows: Rows, weights: Floats) -> Rows:
    """Multiply residuals and derivatives by weights (k, n)."""

    def scaled(theta: Floats) -> tuple[Floats, Floats]:
        residual, slope = rows(theta)
        return residual * weights, slope * weights[:, :, None]

    return scaled
