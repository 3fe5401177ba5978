"""Fit a law to runs: robust and deterministic.

Takes a law, a runs table and column names; gives a `Fit`. The one idea: the sum of Huber costs of log
residuals, minimised from many screened starts at once (decision D12).
"""

from collections.abc import Sequence

import numpy as np

from clue_ray.errors import FitError
from clue_ray.runs import chance_loss
from clue_ray.scaling.checks import check_callable, check_delta, check_design, check_law, check_smooth
from clue_ray.scaling.doubts import doubts
from clue_ray.scaling.fitted import Fit, Prediction
from clue_ray.scaling.intervals import CLIP
from clue_ray.scaling.law import Law
from clue_ray.scaling.laws import find_law
from clue_ray.scaling.problem import Problem
from clue_ray.scaling.rows import check_once
from clue_ray.scaling.sample import Sample, Table, as_names, check_width, finished, select
from clue_ray.scaling.search import ResidualCost, find_optimum

DELTA = 1e-3  # Huber's delta where nothing is known of the noise (Hoffmann et al. 2022, arXiv 2203.15556)
ENOUGH_REPEATS = 3  # degrees of freedom between seeds from which their noise counts as known

__all__ = ["Fit", "Prediction", "fit_law", "fit_sample"]


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
        law: a name of `LAWS`, or a law of one's own: any function of predictors and parameters in a `Law`.
        x: predictor columns, as many as the law has, in its order.
        loss: log_huber (sum of Huber costs of log residuals), log_least_squares, or quantile (lower envelope: the
            curve that a tenth of the runs lie below, which has no intervals).
        delta: where Huber's cost turns linear, in log units; by default 1e-3, or, where seeds tell more noise than
            that, twice their standard deviation.

    Raises:
        FitError: the law is unknown, or the runs cannot identify it.
        RunsError: the table lacks a column, lists a run twice, or holds values no law can be fitted to.
    """
    check_law(law)
    if delta is not None:
        check_delta(delta)
    columns = as_names(x)
    found = find_law(law).over(columns)
    check_width(found.name, found.num_predictors, columns)
    check_once(finished(table))
    sample = select(table, columns, y)
    if found.lacks_ceiling:
        found = found.with_ceiling(_ceiling(found, sample))
    return fit_sample(found, sample, columns, y, ResidualCost.named(loss, _delta(sample, loss, delta)))


def fit_sample(law: Law, sample: Sample, x: tuple[str, ...], y: str, cost: ResidualCost) -> Fit:
    """Fit a law whose ceiling is known to rows already checked; FitError where they are too few."""
    check_design(law, sample, x)
    problem = Problem.build(law, sample.x, sample.y)
    check_callable(problem)
    best = find_optimum(problem, cost)
    if best is None:
        raise FitError(f"{law.name} is not positive at any start; check its formula and the units of x.")
    check_smooth(problem, best.theta)
    parameters = problem.parameters(best.theta)
    noticed = [*doubts(problem, best.theta, sample)]
    if best.rivals[0] > 1:
        noticed.append(f"{law.words}: {best.rivals[0]} distinct optima cost within 1 % of each other; none is settled.")
    objective = best.cost if cost.quantile is None else best.cost / cost.bend
    rest = (problem, best.theta, cost.delta, cost.quantile, best.rivals)
    return Fit(law, x, y, parameters, objective, len(sample.y), tuple(noticed), *rest)


def _delta(sample: Sample, loss: str, delta: float | None) -> float:
    """Give the delta asked for; else `DELTA`, or that of the noise between seeds where they tell it.

    A quantile's delta only rounds the corner of its cost, so noise does not widen it.
    """
    if delta is not None:
        return delta
    place = np.unique(sample.x, axis=1, return_inverse=True)[1].ravel()
    freedom = len(place) - int(place.max()) - 1
    if loss == "quantile" or freedom < ENOUGH_REPEATS:
        return DELTA
    log_y = np.log(sample.y)
    apart = log_y - (np.bincount(place, log_y) / np.bincount(place))[place]
    return max(DELTA, CLIP * float(np.sqrt(apart @ apart / freedom)))


def _ceiling(law: Law, sample: Sample) -> float:
    """Give the loss of a guess, the ceiling of a bounded law."""
    if sample.candidates is None:
        raise FitError(
            f"{law.name} needs its ceiling, the loss of a guess, but the table lacks loss_candidates; "
            f"add it, or fit LAWS[{law.name!r}].with_ceiling(...)."
        )
    return chance_loss(sample.candidates)
