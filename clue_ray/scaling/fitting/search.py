"""The search for the best fit: a grid of starts, screened, and the best ones followed to a minimum.

Most laws are linear in all but their exponents, so only the exponents need a grid; the linear
parameters are solved for at each grid point (variable projection, Golub and Pereyra 1973). Robust
costs have several local minima. Many starts are followed, so chance does not choose the minimum,
and rival minima of nearly the same cost are counted: a fit that has rivals is not one answer.
"""

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np

from clue_ray.scaling.fitting.problem import Problem, huber, minimise
from clue_ray.scaling.laws.law import Floats

MAX_GRID_POINTS = 630
"""Shared by all searched parameters: 25 values of one, 25 x 25 of two, 5 each of four."""
MIN_VALUES, MAX_VALUES = 3, 25
"""Grid values of one parameter."""
MIN_EXPONENT, MAX_EXPONENT = 0.03, 2.0
"""Range of the grid for exponents of terms."""
FLOOR_SHARES = (0.02, 0.5, 0.8, 0.95)
"""Starts of a floor, as shares of the smallest loss."""
COEFFICIENT_SHARES = (0.02, 0.07, 0.25, 0.9, 3.0)
"""Starts of a term at the predictor's geometric mean, as shares of the mean loss."""
MAGNITUDES = (0.1, 1.0, 10.0)
"""Starts of a parameter of unknown role."""
AXIS_FACTORS = (1.0, 1e3, 1e6)
"""More such starts, as multiples of a predictor's geometric mean."""
MAX_UNGUIDED = 4
"""Parameters of unknown role beyond which the grid would be too large for `AXIS_FACTORS` too."""

SCREENED_ROWS = 240
"""Runs that suffice to tell good starts from bad ones."""
MIN_COEFFICIENT_SHARE = 1e-3
"""Share of the mean loss given to a coefficient that is solved to be 0, as its log is searched."""
MIN_STARTS, STARTS_PER_SQUARE = 12, 3
"""Starts kept: the latter times the square of the number of searched parameters."""
MIN_POLISHED, POLISHED_SHARE = 4, 1 / 6
"""Starts followed to the minimum: at least so many, and this share of them."""

EQUAL_COST = 1e-9
"""Relative difference of costs that counts as none."""
DISTINCT = 1e-2
"""Difference of a coordinate, over 1 + its size, from which two optima are distinct."""
RIVAL_COSTS = (0.01, 0.05)
"""Relative differences of cost within which a rival optimum is counted."""


class Optimum(NamedTuple):
    """The lowest minimum found.

    Attributes:
        theta: the point, (p,).
        cost: the sum of costs there.
        rivals: distinct optima with a cost within 1 % and within 5 % of it, itself included.
        converged: whether the minimiser converged there.
    """

    theta: Floats
    cost: float
    rivals: tuple[int, int]
    converged: bool


def find_optimum(problem: Problem, delta: float) -> Optimum | None:
    """Find the lowest minimum of the Huber cost; None where the law is positive at no start."""
    starts = screen(problem, delta)
    if not len(starts):
        return None
    rows, deltas = problem.rows(), np.full(len(problem.log_y), delta)
    rough = minimise(rows, starts, deltas, problem.bounds, iterations=20)
    polished = max(MIN_POLISHED, int(len(starts) * POLISHED_SHARE))
    basins = rough.theta[np.argsort(rough.cost, kind="stable")[:polished]]
    # With few runs a small delta can leave a flat minimum. Least squares is not flat, so the point
    # reached from it comes first: of equal costs it is taken, whatever the order of the runs.
    squares = minimise(rows, basins, np.full_like(deltas, np.inf), problem.bounds, iterations=100)
    candidates = np.concatenate([squares.theta[[np.argmin(squares.cost)]], basins])
    found = minimise(rows, candidates, deltas, problem.bounds, iterations=400)
    best = int(np.argmax(found.cost <= found.cost.min() * (1 + EQUAL_COST)))
    return Optimum(
        theta=found.theta[best],
        cost=float(found.cost[best]),
        rivals=_count_rivals(found.theta, found.cost),
        converged=bool(found.converged[best]),
    )


def _count_rivals(points: Floats, costs: Floats) -> tuple[int, int]:
    """Count distinct optima with a cost close to the lowest, for both of `RIVAL_COSTS`."""
    distinct: list[int] = []
    for index in np.argsort(costs, kind="stable"):
        gaps = np.abs(points[index] - points[distinct]) / (1 + np.abs(points[index]))
        if not (gaps.max(axis=1, initial=0.0) < DISTINCT).any():
            distinct.append(int(index))
    one, five = (int((costs[distinct] <= costs.min() * (1 + share)).sum()) for share in RIVAL_COSTS)
    return one, five


def screen(problem: Problem, delta: float) -> Floats:
    """Return the grid points with the lowest Huber cost, best first: (k, p).

    More points are kept where more parameters are searched. Points at which the law is undefined
    are left out, so k may be 0.
    """
    rows = np.unique(np.linspace(0, len(problem.log_y) - 1, SCREENED_ROWS).astype(int))
    thin = replace(problem, x=problem.x[:, rows], log_y=problem.log_y[rows])
    grid = _grid(thin)
    if problem.law.linear:
        grid = _project(thin, grid)
    costs = huber(thin.log_values(grid) - thin.log_y, np.full(len(rows), delta))
    keep = max(MIN_STARTS, STARTS_PER_SQUARE * len(_searched(problem)) ** 2)
    order = np.argsort(costs, kind="stable")[:keep]
    return np.asarray(grid[order][np.isfinite(costs[order])])


def unguided(problem: Problem) -> list[str]:
    """List the searched parameters that have neither a hint nor a role to start from."""
    law = problem.law
    known = {*law.guesses, *law.places, *law.exponents, *(name for name, _ in law.terms), law.floor}
    bounded = {
        name
        for name, *ends in zip(law.parameters, *problem.bounds, strict=True)
        if np.isfinite(ends).all()
    }
    return [name for name in _searched(problem) if name not in known | bounded]


def _searched(problem: Problem) -> list[str]:
    """List the parameters that are not solved for."""
    return [name for name in problem.law.parameters if name not in problem.law.linear]


def _grid(problem: Problem) -> Floats:
    """Build the grid over all searched parameters; those solved for are 1: (points, p)."""
    law, searched = problem.law, _searched(problem)
    count = int(np.clip(MAX_GRID_POINTS ** (1 / max(len(searched), 1)), MIN_VALUES, MAX_VALUES))
    values = {name: _values(problem, name, count) for name in searched}
    return np.array(list(product(*(values.get(name, np.ones(1)) for name in law.parameters))))


def _values(problem: Problem, name: str, count: int) -> Floats:
    """Return the starting values of one coordinate, from its hints or else from its role."""
    law, index = problem.law, problem.law.parameters.index(name)
    losses = np.exp(problem.log_y)
    if name in law.guesses:
        return np.array([problem.coordinate(name, value) for value in law.guesses[name]])
    if name in law.places:
        ends = np.log(problem.x[law.places[name]])
        return np.linspace(ends.min(), ends.max(), count + 2)[1:-1]
    if name == law.floor:
        return np.multiply(FLOOR_SHARES, losses.min() / problem.unit)
    if name in law.exponents:
        return np.geomspace(MIN_EXPONENT, MAX_EXPONENT, count)
    if problem.is_log(name):
        return np.log(np.multiply(COEFFICIENT_SHARES, losses.mean()))
    lower, upper = (float(bound[index]) for bound in problem.bounds)
    if np.isfinite([lower, upper]).all():
        return np.linspace(lower, upper, count + 2)[1:-1]
    return _blind_values(problem, index, lower, upper)


def _blind_values(problem: Problem, index: int, lower: float, upper: float) -> Floats:
    """Return starting values of a parameter of unknown role."""
    loss = problem.coordinate(problem.law.parameters[index], float(np.exp(problem.log_y).mean()))
    first = loss if index == 0 else 1.0
    values = np.unique(np.clip([first, *MAGNITUDES], lower, upper))
    if len(unguided(problem)) > MAX_UNGUIDED:
        return values
    # It may be a position on a predictor's axis, among the runs or far beyond them, as in the
    # (Nc / N) of Kaplan et al. 2020, where Nc is 1e13.
    positions = np.outer(np.exp(np.log(problem.x).mean(axis=1)), AXIS_FACTORS).ravel()
    return np.unique(np.clip([*values, *positions], lower, upper))


def _project(problem: Problem, grid: Floats) -> Floats:
    """Solve for the linear parameters at every grid point (points, p).

    This is non-negative least squares of relative residuals, which are close to log residuals.
    """
    law = problem.law
    indices = [law.parameters.index(name) for name in law.linear]
    logs = np.array([problem.is_log(name) for name in law.linear])
    bases = []
    for index in indices:
        # The law with one linear parameter at 1 and the others at 0 is a column of the design.
        alone = grid.copy()
        alone[:, indices] = np.where(logs, -np.inf, 0.0)
        alone[:, index] = 0.0 if problem.is_log(law.parameters[index]) else 1.0
        bases.append(problem.values(alone) / np.exp(problem.log_y))
    ones = np.ones(len(problem.log_y))
    solved = np.array([_solve(basis, ones) for basis in np.stack(bases, axis=-1)])
    least = MIN_COEFFICIENT_SHARE * np.exp(problem.log_y).mean()
    projected = grid.copy()
    projected[:, indices] = np.where(logs, np.log(np.maximum(solved, least)), solved)
    return projected


def _solve(basis: Floats, target: Floats) -> Floats:
    """Solve one non-negative least squares (n, q) -> (q,); nan where the law is undefined."""
    if not np.isfinite(basis).all():
        return np.full(basis.shape[1], np.nan)  # screened out, as its cost is infinite
    from scipy.optimize import nnls  # takes longer to import than all of this package

    return np.asarray(nnls(basis, target)[0])
