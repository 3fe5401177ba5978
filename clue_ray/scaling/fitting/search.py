"""Where a fit begins: a grid over what must be searched, with the rest solved for, screened to its
best points.

Takes a `Problem`; gives starts (k, p). The one idea: variable projection (Golub and Pereyra 1973):
at given exponents most laws are linear in what is left, so only the exponents need a grid. Robust
costs have several basins; none is chosen by luck.


The best fit of a law: many starts, a few basins, one bottom.

Takes a `Problem` and a `ResidualCost`; gives an `Optimum`. The one idea: a fit that other basins
match within a percent is not one answer, so the rivals are counted, not only beaten.
"""

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from clue_ray.errors import FitError, nearest
from clue_ray.scaling.fitting.problem import Problem, Rows, huber, minimise
from clue_ray.scaling.laws.law import Floats

FLOORS = (0.02, 0.5, 0.8, 0.95)  # shares of the smallest loss
COEFFICIENTS = (
    0.02,
    0.07,
    0.25,
    0.9,
    3.0,
)  # shares of the mean loss, at the predictor's geometric mean
MAGNITUDES = (0.1, 1.0, 10.0)  # for a parameter that nothing is known of
FAR = (1.0, 1e3, 1e6)  # the same, as shares of a predictor's geometric mean
MOST_BLIND = 4  # such parameters, beyond which the grid would be too large to try these too
LOWEST_EXPONENT, HIGHEST_EXPONENT = 0.03, 2.0
GRID_POINTS = (
    630  # at most, shared by all parameters searched: 25 of one, 25 x 25 of two, 5 each of four
)
MOST_VALUES = 25  # of one parameter
LEAST_SHARE = 1e-3  # of the mean loss that a start leaves to a coefficient solved to be 0
FEWEST_KEPT, KEPT = (
    12,
    3,
)  # grid points kept: KEPT times the square of the number of parameters searched
SCREENED_ROWS = 240  # enough to tell good starts from bad


def screen(problem: Problem, delta: float) -> Floats:
    """Return the grid points with the lowest Huber cost, best first: (k, p), more where more is
    searched.
    """
    rows = np.unique(np.linspace(0, len(problem.log_y) - 1, SCREENED_ROWS).astype(int))
    thin = replace(problem, x=problem.x[:, rows], log_y=problem.log_y[rows])
    grid = _grid(thin)
    if problem.law.linear:
        grid = _project(thin, grid)
    costs = huber(thin.log_values(grid) - thin.log_y, np.full(len(rows), delta))
    keep = max(FEWEST_KEPT, KEPT * len(_searched(problem)) ** 2)
    order = np.argsort(costs, kind="stable")[:keep]
    return np.asarray(grid[order][np.isfinite(costs[order])])


def _grid(problem: Problem) -> Floats:
    """Span all parameters that are searched; those solved for are left at 1."""
    law, searched = problem.law, _searched(problem)
    count = int(np.clip(GRID_POINTS ** (1 / max(len(searched), 1)), 3, MOST_VALUES))
    values = {name: _values(problem, name, count) for name in searched}
    return np.array(list(product(*(values.get(name, np.ones(1)) for name in law.parameters))))


def unguided(problem: Problem) -> list[str]:
    """Name the parameters whose starts neither a hint nor a role tells: they begin at
    `MAGNITUDES`.
    """
    law = problem.law
    told = {*law.guesses, *law.places, *law.exponents, *(name for name, _ in law.terms), law.floor}
    bounded = {
        name
        for name, *ends in zip(law.parameters, *problem.bounds, strict=True)
        if np.isfinite(ends).all()
    }
    return [name for name in _searched(problem) if name not in told | bounded]


def _searched(problem: Problem) -> list[str]:
    """Name the parameters that are not solved for."""
    return [name for name in problem.law.parameters if name not in problem.law.linear]


def _values(problem: Problem, name: str, count: int) -> Floats:
    """Give the values of one coordinate that are worth a start."""
    law, place = problem.law, problem.law.parameters.index(name)
    losses = np.exp(problem.log_y)
    if name in law.guesses:
        return np.array([problem.coordinate(name, value) for value in law.guesses[name]])
    if name in law.places:
        ends = np.log(problem.x[law.places[name]])
        return np.linspace(ends.min(), ends.max(), count + 2)[1:-1]
    if name == law.floor:
        return np.multiply(FLOORS, losses.min())
    if name in law.exponents:
        return np.geomspace(LOWEST_EXPONENT, HIGHEST_EXPONENT, count)
    if problem.is_log(name):
        return np.log(np.multiply(COEFFICIENTS, losses.mean()))
    lower, upper = (float(bound[place]) for bound in problem.bounds)
    if np.isfinite([lower, upper]).all():
        return np.linspace(lower, upper, count + 2)[1:-1]
    values = np.unique(
        np.clip([float(losses.mean()) if place == 0 else 1.0, *MAGNITUDES], lower, upper)
    )
    # Nothing is known of it: it may as well be a place on a predictor's axis, inside the runs or
    # far beyond.
    places = np.outer(np.exp(np.log(problem.x).mean(axis=1)), FAR).ravel()
    return (
        values
        if len(unguided(problem)) > MOST_BLIND
        else np.unique(np.clip([*values, *places], lower, upper))
    )


def _project(problem: Problem, grid: Floats) -> Floats:
    """Solve for the linear parameters of every grid point: non-negative least squares of relative
    residuals.
    """
    law = problem.law
    places = [law.parameters.index(name) for name in law.linear]
    logs = np.array([problem.is_log(name) for name in law.linear])
    bases = []
    for place in places:
        alone = grid.copy()
        alone[:, places] = np.where(logs, -np.inf, 0.0)
        alone[:, place] = 0.0 if problem.is_log(law.parameters[place]) else 1.0
        bases.append(problem.values(alone) / np.exp(problem.log_y))
    ones = np.ones(len(problem.log_y))
    solved = np.array([_solve(basis, ones) for basis in np.stack(bases, axis=-1)])
    least = LEAST_SHARE * np.exp(problem.log_y).mean()
    projected = grid.copy()
    projected[:, places] = np.where(logs, np.log(np.maximum(solved, least)), solved)
    return projected


def _solve(basis: Floats, target: Floats) -> Floats:
    """Solve one non-negative least squares (n, q) -> (q,); nan, and so screened out, where the law
    is undefined.
    """
    if not np.isfinite(basis).all():
        return np.full(basis.shape[1], np.nan)
    return np.asarray(nnls(basis, target)[0])


LOSSES = ("log_huber", "log_least_squares", "quantile")
ENVELOPE = 0.1  # share of runs that the curve of a quantile fit leaves below it
FEWEST_POLISHED, POLISHED = (
    4,
    1 / 6,
)  # basins followed to the bottom: at least, and as a share of the starts
FLAT = 1e-9  # relative difference of costs that counts as none
APART = 1e-2  # difference of a coordinate, over 1 + its size, from which two optima are two
CLOSE_COSTS = (0.01, 0.05)  # relative differences of cost within which a rival optimum is counted


class ResidualCost(NamedTuple):
    """What a residual of log loss costs: Huber's cost with a bend at delta, tilted where a quantile
    is given.

    With a quantile q, runs below the curve weigh 1 - q and runs above it q, which in the limit of a
    small delta is the quantile regression of Koenker and Bassett (1978).
    """

    delta: float
    quantile: float | None = None

    @classmethod
    def named(cls, loss: str, delta: float) -> "ResidualCost":
        """Make the cost of a loss by name; FitError for another name or a delta that is no positive
        number.
        """
        if loss not in LOSSES:
            raise FitError(f"There is no loss {loss!r} to fit with; {nearest(loss, list(LOSSES))}")
        if not 0 < delta < np.inf:
            raise FitError(
                f"delta is {delta!r}; it must be a positive number of log units, such as 1e-3."
            )
        if loss == "quantile":
            return cls(delta, ENVELOPE)
        return cls(
            delta if loss == "log_huber" else np.inf
        )  # least squares is Huber without a bend

    @property
    def bend(self) -> float:
        """Where the cost turns linear, in units of residuals as `rows` gives them."""
        return (
            self.delta
            if self.quantile is None
            else self.delta * min(self.quantile, 1 - self.quantile)
        )

    def rows(self, problem: Problem) -> Rows:
        """Give log residuals as the minimiser wants them: stretched by q above the curve, by 1 - q
        below it.
        """
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

    With few runs a small delta can leave a flat bottom; the point reached from least squares is
    then taken, which does not depend on the order of the runs or on rounding.
    """
    starts = screen(problem, cost.delta)
    if not len(starts):
        return None
    rows, bends = cost.rows(problem), np.full(len(problem.log_y), cost.bend)
    points, costs = minimise(rows, starts, bends, problem.bounds, iterations=20)
    basins = points[
        np.argsort(costs, kind="stable")[: max(FEWEST_POLISHED, int(len(starts) * POLISHED))]
    ]
    # Least squares of the plain residuals also for a quantile: tilted, their cost has a kink at
    # every run's zero.
    smooth, costs = minimise(
        problem.rows(), basins, np.full_like(bends, np.inf), problem.bounds, iterations=100
    )
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
