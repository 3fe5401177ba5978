"""What keeps a law from being fitted: arguments that cannot be meant, too few runs, a function that is none.

Takes a law and its data; raises FitError or returns. The one idea: what would end in a traceback, or in numbers that
mean nothing, is refused in one sentence before it is tried. What is wrong with rows, `rows.py` says.
"""

import numpy as np

from clue_ray.errors import FitError
from clue_ray.scaling.law import Floats, Law
from clue_ray.scaling.problem import Problem, differentiate
from clue_ray.scaling.sample import Sample, is_number

STEP = 1e-6  # of a central difference, over 1 + the coordinate's size
FAR_OFF = 1e-2  # difference of two derivatives, over the largest, that rounding cannot explain


def check_law(law: object) -> None:
    """Raise FitError unless a law is one's name or a `Law`."""
    if not isinstance(law, str | Law):
        raise FitError(
            f"A law is a name, such as 'power_law', or a Law, not a {type(law).__name__}; make a Law of a function."
        )


def check_delta(delta: object) -> None:
    """Raise FitError unless delta is a number; whether it may be of that size the cost decides."""
    if not is_number(delta):
        raise FitError(f"delta is {delta!r}; it is a positive number in log units, such as 0.001.")


def check_design(law: Law, sample: Sample, x: tuple[str, ...]) -> None:
    """Raise FitError where runs, or distinct values of a predictor, are fewer than the law's parameters need."""
    runs, count = len(sample.y), len(law.parameters)
    if runs <= count:
        raise FitError(f"{law.name} has {count} parameters but only {runs} runs are done; it needs {count + 1}.")
    values = [np.unique(column) for column in sample.x]
    least = int(np.argmin([len(found) for found in values]))
    distinct, places = len(values[least]), len(np.unique(sample.x, axis=1).T)
    if distinct < 2 or places < count:
        only = f" ({values[least][0]:g})" if distinct == 1 else ""
        raise FitError(
            f"{law.name} has {count} parameters, which {places} distinct places with {distinct} distinct values of "
            f"{x[least]}{only} cannot identify; add runs at other values."
        )


def check_callable(problem: Problem) -> None:
    """Raise FitError unless a law's function takes arrays of its predictors and parameters and works elementwise."""
    law, points = problem.law, np.ones((2, len(problem.law.parameters)), dtype=complex)
    wanted = (2, len(problem.log_y))
    try:
        found = np.shape(problem.values(points))
    except (TypeError, ValueError) as error:
        raise FitError(
            f"The function of {law.name} cannot be called with {law.num_predictors} predictor(s), then "
            f"{', '.join(law.parameters)}, as numpy arrays ({error}); write it in numpy with these arguments."
        ) from None
    if found != wanted:
        raise FitError(
            f"The function of {law.name} gives an array of shape {found} where {wanted} is due; write it elementwise, "
            "with every predictor in it."
        )


def check_smooth(problem: Problem, theta: Floats) -> None:
    """Raise FitError where a law's derivatives by complex step are wrong at theta (p,): its function is not smooth."""
    moves = STEP * (1 + np.abs(theta)) * np.eye(len(theta))
    ahead, behind = problem.values(theta + moves), problem.values(theta - moves)
    rough = (ahead - behind) / (2 * np.diag(moves)[:, None])
    exact = differentiate(problem.values, theta[None])[1][0].T
    gap, size = np.abs(rough - exact).max(axis=1), np.abs(rough).max(axis=1)
    wrong = np.isfinite(gap) & (gap > FAR_OFF * size + STEP * np.abs(ahead).max(axis=1))
    if wrong.any():
        name = problem.law.parameters[int(wrong.argmax())]
        raise FitError(
            f"The function of {problem.law.name} is not smooth in {name}, so it cannot be fitted; write it in numpy "
            "without abs, maximum or real parts of parameters, and bound parameters instead."
        )
