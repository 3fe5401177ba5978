"""Fit a law to runs: robust and deterministic.

The sum of Huber costs of log residuals is minimised from many screened starts at once. Arguments,
runs or functions that would end in a traceback, or in meaningless numbers, are refused first, in
one sentence. The result is a `Fit` (see `result.py`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clue_ray.errors import FitError, nearest
from clue_ray.runs import chance_loss
from clue_ray.scaling.fitting.intervals import DELTA_PER_NOISE
from clue_ray.scaling.fitting.problem import Problem, differentiate
from clue_ray.scaling.fitting.result import Fit
from clue_ray.scaling.fitting.search import find_optimum
from clue_ray.scaling.fitting.table import (
    Sample,
    Table,
    as_names,
    check_once,
    check_width,
    finished,
    is_number,
    select,
)
from clue_ray.scaling.fitting.warnings import fit_warnings
from clue_ray.scaling.laws.catalogue import find_law
from clue_ray.scaling.laws.law import Floats, Law

LOSSES = ("log_huber", "log_least_squares")
DEFAULT_DELTA = 1e-3
"""Huber's delta where nothing is known of the noise (Hoffmann et al. 2022, arXiv 2203.15556)."""
MIN_SEED_FREEDOM = 3
"""Degrees of freedom between seeds from which they tell the noise."""
DIFFERENCE_STEP = 1e-6
"""Step of a central difference, over 1 + the size of the coordinate."""
DERIVATIVE_TOLERANCE = 1e-2
"""Difference of two derivatives, over the largest, that rounding cannot explain."""


def fit_law(
    law: str | Law,
    table: Table,
    *,
    x: str | Sequence[str],
    y: str,
    loss: str = "log_huber",
    delta: float | None = None,
) -> Fit:
    """Fit a law to the done runs of a table.

    Args:
        law: a name of `LAWS`, or a custom `Law`: any function of predictors and parameters.
        table: Runs, a DataFrame or a mapping of columns.
        x: predictor columns, as many as the law has, in its order.
        y: the column that the law predicts.
        loss: log_huber (sum of Huber costs of log residuals) or log_least_squares.
        delta: where Huber's cost turns linear, in log units. By default 1e-3, or twice the standard
            deviation between seeds where that is known and larger.

    Raises:
        FitError: the law is unknown, or the runs cannot identify it.
        RunsError: the table lacks a column, lists a run twice, or holds values that a law cannot
            be fitted to.

    Example:
        >>> from clue_ray import fit_law
        >>> flops = [1e12, 1e13, 1e14, 1e15, 1e16, 1e17]
        >>> table = {"flops": flops, "loss": [2 + 3 * (c / 1e12) ** -0.2 for c in flops]}
        >>> fit = fit_law("power_law_plus_constant", table, x="flops", y="loss")
        >>> f"{fit.parameters['irreducible_loss']:.3f}, {fit.predict(flops=1e18).value:.3f}"
        '2.000, 2.189'
    """
    columns = as_names(x)
    found = find_law(law).over(columns)
    _check_cost(loss, delta)
    check_width(found.name, found.num_predictors, columns)
    check_once(finished(table))
    sample = select(table, columns, y)
    if found.lacks_ceiling:
        found = found.with_ceiling(_ceiling(found, sample))
    return _fit_sample(found, sample, columns, y, _huber_delta(sample, loss, delta))


def _fit_sample(law: Law, sample: Sample, x: tuple[str, ...], y: str, delta: float) -> Fit:
    """Fit a law with a known ceiling to checked rows; FitError where they are too few."""
    _check_design(law, sample, x)
    problem = Problem.build(law, sample.x, sample.y)
    _check_callable(problem)
    best = find_optimum(problem, delta)
    if best is None:
        raise FitError(
            f"{law.name} is not positive at any start; check its formula and the units of x."
        )
    _check_smooth(problem, best.theta)
    warnings = [*fit_warnings(problem, best.theta, sample)]
    if best.rivals[0] > 1:
        warnings.append(
            f"{law.words}: {best.rivals[0]} distinct optima have a cost within 1 % of the lowest; "
            f"the fit is not unique."
        )
    return Fit(
        law=law,
        x=x,
        y=y,
        parameters=problem.parameters(best.theta),
        objective=best.cost,
        num_runs=len(sample.y),
        fit_warnings=tuple(warnings),
        problem=problem,
        theta=best.theta,
        delta=delta,
        rivals=best.rivals,
        converged=best.converged,
    )


def _huber_delta(sample: Sample, loss: str, delta: float | None) -> float:
    """Return Huber's delta of a fit: infinite for least squares, as asked for, or by the noise."""
    if loss == "log_least_squares":
        return np.inf  # nothing is clipped
    if delta is not None:
        return delta
    configuration = np.unique(sample.x, axis=1, return_inverse=True)[1].ravel()
    freedom = len(configuration) - int(configuration.max()) - 1
    if freedom < MIN_SEED_FREEDOM:
        return DEFAULT_DELTA
    # The pooled variance within configurations: only seeds differ there, so no law is needed.
    log_y = np.log(sample.y)
    mean = np.bincount(configuration, log_y) / np.bincount(configuration)
    residual = log_y - mean[configuration]
    return max(DEFAULT_DELTA, DELTA_PER_NOISE * float(np.sqrt(residual @ residual / freedom)))


def _ceiling(law: Law, sample: Sample) -> float:
    """Return chance level, the ceiling of a bounded law."""
    if sample.candidates is None:
        raise FitError(
            f"{law.name} needs its ceiling, the loss at chance level, but the table lacks "
            f"loss_candidates; add it, or fit LAWS[{law.name!r}].with_ceiling(...)."
        )
    return chance_loss(sample.candidates)


def _check_cost(loss: str, delta: Any) -> None:
    """Raise FitError for an unknown loss, or a delta that is not a positive finite number."""
    if loss not in LOSSES:
        raise FitError(f"There is no loss {loss!r} to fit with; {nearest(loss, list(LOSSES))}")
    if delta is not None and not (is_number(delta) and 0 < delta < np.inf):
        raise FitError(
            f"delta is {delta!r}; it must be a positive number of log units, such as 0.001."
        )


def _check_design(law: Law, sample: Sample, x: tuple[str, ...]) -> None:
    """Raise FitError where runs or distinct predictors are too few for the law's parameters."""
    runs, count = len(sample.y), len(law.parameters)
    if runs <= count:
        are = "run is" if runs == 1 else "runs are"
        raise FitError(
            f"{law.name} has {count} parameters but only {runs} {are} done; it needs {count + 1}."
        )
    values = [np.unique(column) for column in sample.x]
    least = int(np.argmin([len(found) for found in values]))
    distinct, configurations = len(values[least]), len(np.unique(sample.x, axis=1).T)
    if distinct < 2 or configurations < count:
        only = f" ({values[least][0]:g})" if distinct == 1 else ""
        raise FitError(
            f"{law.name} has {count} parameters, which {configurations} distinct points with "
            f"{distinct} distinct values of {x[least]}{only} cannot identify; add runs at other "
            f"values."
        )


def _check_callable(problem: Problem) -> None:
    """Raise FitError unless a law's function takes its arguments as arrays and is elementwise."""
    law, points = problem.law, np.ones((2, len(problem.law.parameters)), dtype=complex)
    wanted = (2, len(problem.log_y))
    try:
        found = np.shape(problem.values(points))
    except (TypeError, ValueError) as error:
        raise FitError(
            f"The function of {law.name} cannot be called with {law.num_predictors} predictor(s), "
            f"then {', '.join(law.parameters)}, as numpy arrays ({error}); write it in numpy with "
            f"these arguments."
        ) from None
    if found != wanted:
        raise FitError(
            f"The function of {law.name} returns an array of shape {found} where {wanted} is "
            f"expected; write it elementwise, with every predictor in it."
        )


def _check_smooth(problem: Problem, theta: Floats) -> None:
    """Raise FitError where complex-step derivatives at theta (p,) are wrong.

    They are wrong where the function is not analytic, as with abs, and then the minimiser would
    stop anywhere. Central differences are inexact, but show it.
    """
    moves = DIFFERENCE_STEP * (1 + np.abs(theta)) * np.eye(len(theta))
    ahead, behind = problem.values(theta + moves), problem.values(theta - moves)
    rough = (ahead - behind) / (2 * np.diag(moves)[:, None])
    exact = differentiate(problem.values, theta[None])[1][0].T
    gap, size = np.abs(rough - exact).max(axis=1), np.abs(rough).max(axis=1)
    rounding = DIFFERENCE_STEP * np.abs(ahead).max(axis=1)
    wrong = np.isfinite(gap) & (gap > DERIVATIVE_TOLERANCE * size + rounding)
    if wrong.any():
        name = problem.law.parameters[int(wrong.argmax())]
        raise FitError(
            f"The function of {problem.law.name} is not smooth in {name}, so it cannot be fitted; "
            f"write it in numpy without abs, maximum or real parts of parameters, and bound "
            f"parameters instead."
        )
