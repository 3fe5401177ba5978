"""The best fit of a law: many starts, a few basins, one bottom.

Takes a `Problem` and a `ResidualCost`; gives an `Optimum`. The one idea: a fit that other basins match within a percent
is not one answer, so the rivals are counted, not only beaten.
"""

from typing import NamedTuple

import numpy as np

from clue_ray.errors import FitError, nearest
from clue_ray.scaling.law import Floats
from clue_ray.scaling.problem import Problem, Rows, minimise
from clue_ray.scaling.starts import screen

LOSSES = ("log_huber", "log_least_squares", "quantile")
ENVELOPE = 0.1  # share of runs that the curve of a quantile fit leaves below it
FEWEST_POLISHED, POLISHED = 4, 1 / 6  # basins followed to the bottom: at least, and as a share of the starts
FLAT = 1e-9  # relative difference of costs that counts as none
APART = 1e-2  # difference of a coordinate, over 1 + its size, from which two optima are two
CLOSE_COSTS = (0.01, 0.05)  # relative differences of cost within which a rival optimum is counted


class ResidualCost(NamedTuple):
    """What a residual of log loss costs: Huber's cost with a bend at delta, tilted where a quantile is given.

    With a quantile q, runs below the curve weigh 1 - q and runs above it q, which in the limit of a small delta is
    the quantile regression of Koenker and Bassett (1978).
    """

    delta: float
    quantile: float | None = None

    @classmethod
    def named(cls, loss: str, delta: float) -> "ResidualCost":
        """Make the cost of a loss by name; FitError for another name or a delta that is no positive number."""
        if loss not in LOSSES:
            raise FitError(f"There is no loss {loss!r} to fit with; {nearest(loss, list(LOSSES))}")
        if not 0 < delta < np.inf:
            raise FitError(f"delta is {delta!r}; it must be a positive number of log units, such as 1e-3.")
        if loss == "quantile":
            return cls(delta, ENVELOPE)
        return cls(delta if loss == "log_huber" else np.inf)  # least squares is Huber without a bend

    @property
    def bend(self) -> float:
        """Where the cost turns linear, in units of residuals as `rows` gives them."""
        return self.delta if self.quantile is None else self.delta * min(self.quantile, 1 - self.quantile)

    def rows(self, problem: Problem) -> Rows:
        """Give log residuals as the minimiser wants them: stretched by q above the curve, by 1 - q below it."""
        plain = problem.rows()
        if self.quantile is None:
            return plain
        above, below = self.quantile, 1 - self.quantile

        def tilted(theta: Floats) -> tuple[Floats, Floats]:
            residual, slope = plain(theta)
            stretch = np.where(residual > 0, below, above)
            return residual * stretch, slope * stretch[:, :, None]

        return tilted


class Optimum(NamedTuple):
    """Where the cost is lowest.

    Attributes:
        theta: the point, (p,).
        cost: the sum of costs there.
        rivals: distinct optima found with a cost within 1 % and within 5 % of it, itself included.
    """

    theta: Floats
    cost: float
    rivals: tuple[int, int]


def find_optimum(problem: Problem, cost: ResidualCost) -> Optimum | None:
    """Follow the best basins to the bottom; None where the law is positive at no start.

    With few runs a small delta can leave a flat bottom; the point reached from least squares is then taken,
    which does not depend on the order of the runs or on rounding.
    """
    starts = screen(problem, cost.delta)
    if not len(starts):
        return None
    rows, bends = cost.rows(problem), np.full(len(problem.log_y), cost.bend)
    points, costs = minimise(rows, starts, bends, problem.bounds, iterations=20)
    basins = points[np.argsort(costs, kind="stable")[: max(FEWEST_POLISHED, int(len(starts) * POLISHED))]]
    # Least squares of the plain residuals also for a quantile: tilted, their cost has a kink at every run's zero.
    smooth, costs = minimise(problem.rows(), basins, np.full_like(bends, np.inf), problem.bounds, iterations=100)
    candidates = np.concatenate([smooth[[np.argmin(costs)]], basins])
    points, costs = minimise(rows, candidates, bends, problem.bounds, iterations=400)
    best = int(np.argmax(costs <= costs.min() * (1 + FLAT)))
    return Optimum(points[best], float(costs[best]), _rivals(points, costs))


def _rivals(points: Floats, costs: Floats) -> tuple[int, int]:
    """Count distinct optima whose cost is close to the lowest."""
    distinct: list[int] = []
    for place in np.argsort(costs, kind="stable"):
        gaps = np.abs(points[place] - points[distinct]) / (1 + np.abs(points[place]))
        if not (gaps.max(axis=1, initial=0.0) < APART).any():
            distinct.append(int(place))
    one, five = (int((costs[distinct] <= costs.min() * (1 + share)).sum()) for share in CLOSE_COSTS)
    return one, five
