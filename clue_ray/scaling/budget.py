"""Questions around a recipe: the budget that a loss takes, and what to double next.

Takes a fit; gives a `Prediction` in FLOP, or one row an axis. The one idea: a budget's interval is where the loss asked
for enters and leaves the interval of the loss, so the two can never contradict each other.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from clue_ray.errors import FitError
from clue_ray.scaling.allocate import allocate
from clue_ray.scaling.cost import Cost, token_cost
from clue_ray.scaling.fit import Fit, Prediction
from clue_ray.scaling.sample import as_names

COMPUTE = "train_flops"
SEARCHED = 12 * np.log(10)  # how far beyond the runs' own compute a budget is sought, in log FLOP
RETURN_COLUMNS = ["axis", "value", "gain", "low", "high", "cost_factor"]


def budget_for_loss(fit: Fit, loss: float, cost: Cost | None = None) -> Prediction:
    """Find the compute at which the law expects `loss`, with a 95 % interval; infinite where nothing bounds it.

    A law of one predictor is inverted along it (the answer is in its units, FLOP for train_flops); a law of several is
    spent as `allocate` would. The interval holds every budget whose predicted loss does not exclude `loss`.
    Raises FitError for a loss at or below the law's floor, above any within reach, or a law that cannot be allocated.
    """
    if not (np.isfinite(loss) and loss > 0):
        raise FitError(f"loss is {loss!r}; it must be a positive finite number in the units of {fit.y}.")
    floor = fit.parameters[fit.law.floor] if fit.law.floor else 0.0
    if loss <= floor:
        raise FitError(
            f"No budget reaches {fit.y} {loss:g}: the floor of the law is {floor:.4g}; ask for a higher loss."
        )
    at, centre = _loss_along(fit, cost)
    value = _crossing(lambda log_c: at(log_c).value - loss, centre)
    if not np.isfinite(value) or value == -np.inf:
        raise FitError(
            f"The law does not pass {fit.y} {loss:g} within {SEARCHED / np.log(10):.0f} decades of the runs; "
            "ask for a loss nearer to those measured."
        )
    low = _crossing(lambda log_c: at(log_c).low - loss, value)
    high = _crossing(lambda log_c: at(log_c).high - loss, value)
    with np.errstate(over="ignore"):
        return Prediction(*map(float, np.exp([value, min(low, value), max(high, value)])))


def _loss_along(fit: Fit, cost: Cost | None) -> tuple[Callable[[float], Prediction], float]:
    """Give the predicted loss at a log budget, and the log of a budget amid the runs."""
    x = fit.problem.x * fit.problem.scales[:, None]
    if len(fit.x) == 1:
        return lambda log_c: fit.predict(**{fit.x[0]: float(np.exp(log_c))}), float(np.log(x).mean())
    paid = cost or token_cost(fit)
    powers = np.array([paid.power(column) for column in fit.x])
    amid = np.log(paid.scale) + float(powers @ np.log(x).mean(axis=1))
    return lambda log_c: allocate(fit, float(np.exp(log_c)), paid).loss, amid


def _crossing(excess: Callable[[float], float], start: float) -> float:
    """Find where a falling function of log compute crosses 0, stepping out from `start`; infinite where it does not."""
    sign = 1.0 if excess(start) > 0 else -1.0
    near, step = start, np.log(10)
    while abs(near - start) < SEARCHED:
        far = near + sign * step
        if excess(far) * sign <= 0:
            return float(brentq(excess, *sorted((near, far)), xtol=1e-8, rtol=1e-10))
        near = far
    return sign * np.inf


def marginal_returns(fit: Fit, cost: Cost | None = None, **at: float) -> pd.DataFrame:
    """Tell what doubling each axis alone would gain at a recipe, a keyword a predictor column; the best first.

    Columns: axis; value (where it stands); gain (fall of the law's value, in its units) with low and high (95 %,
    profile likelihood); cost_factor (training FLOP after over before; nan where the axes do not tell it).
    Raises FitError where `at` does not name the law's predictors.
    """
    if set(at) != set(as_names(fit.x)):
        raise FitError(f"The law predicts from {', '.join(fit.x)}, but the recipe names {', '.join(at) or 'nothing'}.")
    here = np.array([at[column] for column in fit.x]) / fit.problem.scales
    rows = []
    for place, column in enumerate(fit.x):
        there = here.copy()
        there[place] *= 2

        def gain(theta: np.ndarray, there: np.ndarray = there) -> np.ndarray:
            fall = fit.problem.values(theta, here[:, None]) - fit.problem.values(theta, there[:, None])
            return np.asarray(fall[..., 0])

        value = float(gain(fit.theta))
        low, high = fit.likelihood.interval(gain, 0.95)
        rows.append([column, at[column], value, min(low, value), max(high, value), _cost_factor(fit, cost, column)])
    return pd.DataFrame(rows, columns=RETURN_COLUMNS).sort_values("gain", ascending=False, ignore_index=True)


def _cost_factor(fit: Fit, cost: Cost | None, column: str) -> float:
    """Give what doubling a column multiplies training FLOP by."""
    if fit.x == (COMPUTE,):
        return 2.0
    try:
        return float(2 ** (cost or token_cost(fit)).power(column))
    except FitError:
        return float("nan")
