"""Where a fit begins: a coarse grid over the whole plausible range, screened to its most promising points.

Takes a `Problem`; gives starts (k, p). The one idea: robust costs have several basins; none is chosen by
luck.
"""

from dataclasses import replace
from itertools import product

import numpy as np

from clue_ray.scaling.laws import Floats
from clue_ray.scaling.problem import Problem, huber

EXPONENTS = (0.05, 0.1, 0.2, 0.4, 0.8)
FLOORS = (0.02, 0.5, 0.8, 0.95)  # shares of the smallest loss
COEFFICIENTS = (0.02, 0.07, 0.25, 0.9, 3.0)  # shares of the mean loss, at the predictor's geometric mean
MAGNITUDES = (0.1, 1.0, 10.0)  # for the parameters of a law that declares no terms
SCREENED_ROWS = 240  # enough to tell good starts from bad


def screen(problem: Problem, delta: float, keep: int = 12) -> Floats:
    """Return the `keep` grid points with the lowest Huber cost, best first: (k, p)."""
    grid = _term_grid(problem) if problem.terms else _plain_grid(problem)
    rows = np.unique(np.linspace(0, len(problem.log_y) - 1, SCREENED_ROWS).astype(int))
    thin = replace(problem, x=problem.x[:, rows], log_y=problem.log_y[rows])
    costs = huber(thin.log_values(grid) - thin.log_y, np.full(len(rows), delta))
    order = np.argsort(costs, kind="stable")[:keep]
    return np.asarray(grid[order][np.isfinite(costs[order])])


def _term_grid(problem: Problem) -> Floats:
    """Span floor, coefficients and exponents of a law of terms."""
    losses, law = np.exp(problem.log_y), problem.law
    values = {law.floor: np.multiply(FLOORS, losses.min())}
    for coefficient, exponent in law.terms:
        values[coefficient] = np.log(np.multiply(COEFFICIENTS, losses.mean()))
        values[exponent] = np.array(EXPONENTS)
    return np.array(list(product(*(values.get(name, np.array([1.0])) for name in law.parameters))))


def _plain_grid(problem: Problem) -> Floats:
    """Span magnitudes of every parameter, and start flat at the mean loss in the first parameter."""
    count = len(problem.law.parameters)
    flat = np.zeros((1, count))
    flat[0, 0] = np.exp(problem.log_y).mean()
    return np.concatenate([flat, np.array(list(product(MAGNITUDES, repeat=count)))])
