"""Find the compute budget that reaches a loss, and the gain of doubling each axis.

The interval of a budget is the range of budgets for which the interval of the predicted loss
contains the requested loss, so the two never contradict each other.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from clue_ray.errors import FitError
from clue_ray.scaling.deciding.allocate import Cost, best_loss, token_cost
from clue_ray.scaling.fitting.result import Fit, Prediction
from clue_ray.scaling.fitting.table import is_number, place_of

COMPUTE = "train_flops"
DECADES = 12
"""Search range for a budget around the compute of the runs, in powers of ten."""
DECADE = float(np.log(10))
FINE = DECADE / 10
"""Step for a law of one predictor, which may have a minimum or a maximum."""
RETURN_COLUMNS = ["axis", "value", "gain", "low", "high", "cost_factor"]

Along = Callable[[float], Prediction]
"""The predicted loss at the log of a budget."""


def budget_for_loss(fit: Fit, loss: float, cost: Cost | None = None) -> Prediction:
    """Find the compute at which the law predicts a loss, with a 95 % interval.

    A law of one predictor is inverted along it, whether it falls or rises; the answer is in the
    units of the predictor, FLOP for train_flops. A law of several predictors is evaluated at the
    recipe of `allocate`. The interval holds every budget, within 12 decades of the runs, for which
    the predicted loss does not exclude `loss`; an end without a bound is infinite. Where the law
    itself never takes `loss` but its interval contains it at some budgets, the value is infinite
    (or 0, where these are the smallest budgets).

    Raises:
        FitError: no budget's interval contains the loss, or the law cannot be allocated.

    Example:
        >>> from clue_ray import budget_for_loss, fit_law
        >>> flops = [1e12, 1e13, 1e14, 1e15, 1e16, 1e17]
        >>> table = {"flops": flops, "loss": [2 + 3 * (c / 1e12) ** -0.2 for c in flops]}
        >>> fit = fit_law("power_law_plus_constant", table, x="flops", y="loss")
        >>> f"{budget_for_loss(fit, 2.1).value:.3g}"
        '2.43e+19'
    """
    if not (is_number(loss) and np.isfinite(loss) and loss > 0):
        raise FitError(
            f"loss is {loss!r}; it must be a positive finite number in the units of {fit.y}."
        )
    predict_at, centre = _loss_along(fit, cost)
    reach = centre - DECADES * DECADE, centre + DECADES * DECADE
    value = (
        _inverse(fit, loss, centre)
        if len(fit.x) == 1
        else _passing(lambda log_c: predict_at(log_c).value, loss, centre)
    )
    # A law that never takes the loss is checked at the end of the range: its interval may hold it.
    inside = float(np.clip(value, *reach))
    if not reach[0] <= value <= reach[1] and not _margin(predict_at, loss, inside) > 0:
        raise FitError(_unreached(fit, loss))
    low, high = (
        _edge(predict_at, loss, inside, sign, end)
        for sign, end in zip((-1.0, 1.0), reach, strict=True)
    )
    with np.errstate(over="ignore"):
        return Prediction(*map(float, np.exp([value, min(low, value), max(high, value)])))


def _unreached(fit: Fit, loss: float) -> str:
    """Explain why no budget reaches the loss."""
    floor = fit.parameters[fit.law.floor] if fit.law.floor else 0.0
    if loss <= floor:
        return (
            f"No budget reaches {fit.y} {loss:g}: the floor of the law is {floor:.4g}; ask for a "
            "higher loss."
        )
    return (
        f"The law does not reach {fit.y} {loss:g} within {DECADES} decades of the runs; "
        "ask for a loss closer to the measured ones."
    )


def _loss_along(fit: Fit, cost: Cost | None) -> tuple[Along, float]:
    """Return the predicted loss along the log budget, and the log of a central budget."""
    x = fit.problem.x * fit.problem.scales[:, None]
    if len(fit.x) == 1:
        return lambda log_c: _predicted(fit, float(np.exp(log_c))), float(np.log(x).mean())
    paid = cost or token_cost(fit)
    powers = np.array([paid.power(column) for column in fit.x])
    amid = np.log(paid.scale) + float(powers @ np.log(x).mean(axis=1))
    return lambda log_c: best_loss(fit, float(np.exp(log_c)), paid), amid


def _predicted(fit: Fit, x: float) -> Prediction:
    """Predict at x; where the law is not positive, with the interval of the value, not its log."""
    try:
        return fit.predict(**{fit.x[0]: x})
    except FitError:
        scaled = np.array([[x]]) / fit.problem.scales[:, None]
        value = float(fit.problem.values(fit.theta, scaled)[0])
        if not np.isfinite(value):
            return Prediction(value, -np.inf, np.inf)
        low, high = fit.likelihood.interval(
            lambda theta: fit.problem.values(theta, scaled)[..., 0], 0.95
        )
        return Prediction(value, min(low, value), max(high, value))


def _inverse(fit: Fit, loss: float, centre: float) -> float:
    """Return the log of the predictor at which a law of one predictor takes a loss.

    Infinite, with the sign of the closer side, where the law never takes it.
    """
    if fit.law.inverse is not None:
        x = float(fit.law.invert(loss, [fit.parameters[name] for name in fit.law.parameters]))
        if np.isfinite(x) and x > 0:
            return float(np.log(x))
    return _passing(lambda log_x: float(fit.curve([np.exp(log_x)])[0]), loss, centre, FINE)


def _passing(
    curve: Callable[[float], float], loss: float, centre: float, step: float = DECADE
) -> float:
    """Find the place nearest to `centre` where a curve of log compute takes a loss.

    The curve is evaluated in steps on both sides; places where it is not finite are skipped. The
    result is infinite, with the sign of the closer side, where the curve never takes the loss.
    """
    sides = {sign: (centre, curve(centre) - loss) for sign in (1.0, -1.0)}
    for _ in range(round(DECADES * DECADE / step)):
        for sign, (near, before) in sides.items():
            far = near + sign * step
            after = curve(far) - loss
            if np.isfinite([before, after]).all() and before * after <= 0:
                return float(
                    brentq(lambda place: curve(place) - loss, near, far, xtol=1e-12, rtol=1e-12)
                )
            sides[sign] = far, after
    return float(
        min(sides, key=lambda sign: np.nan_to_num(abs(sides[sign][1]), nan=np.inf)) * np.inf
    )


def _edge(predict_at: Along, loss: float, inside: float, sign: float, end: float) -> float:
    """Find where the predicted interval stops containing a loss, between `inside` and `end`."""
    if _margin(predict_at, loss, inside) <= 0:  # exact data: the interval is a point
        return inside
    near = inside
    while sign * (end - near) > 0:
        far = near + sign * min(DECADE, abs(end - near))
        if _margin(predict_at, loss, far) < 0:
            return float(
                brentq(
                    lambda place: _margin(predict_at, loss, place),
                    near,
                    far,
                    xtol=1e-6,
                    rtol=1e-10,
                )
            )
        near = far
    return sign * np.inf


def _margin(predict_at: Along, loss: float, place: float) -> float:
    """Return the distance of a loss to the closer end of the interval; negative outside.

    It is at most the loss itself, so that it is finite where an end is not.
    """
    found = predict_at(place)
    return float(min(found.high - loss, loss - found.low, loss))


def marginal_returns(fit: Fit, cost: Cost | None = None, **at: float) -> pd.DataFrame:
    """Compute the gain of doubling each axis alone, the largest first.

    Args:
        fit: the law.
        cost: the cost of a recipe; 6 FLOP per parameter and token by default.
        **at: the recipe, one keyword per predictor column.

    Returns:
        One row per axis: axis; value (before doubling); gain (decrease of the law, in its units)
        with low and high (95 %, profile likelihood); cost_factor (training FLOP after over before;
        nan where the axes do not determine it).

    Raises:
        FitError: `at` lacks a positive finite number for one of the predictors.

    Example:
        >>> from itertools import product
        >>> from clue_ray import fit_law, marginal_returns
        >>> n, d = zip(*product([1e5, 1e6, 1e7], [1e8, 1e9, 1e10]))
        >>> loss = [1.7 + 400 * a**-0.34 + 410 * b**-0.28 for a, b in zip(n, d)]
        >>> fit = fit_law("parametric_loss", {"n": n, "d": d, "loss": loss}, x=["n", "d"], y="loss")
        >>> marginal_returns(fit, n=1e6, d=1e9)[["axis", "gain", "cost_factor"]].round(3)
          axis   gain  cost_factor
        0    n  0.766          2.0
        1    d  0.218          2.0
    """
    here = place_of(fit.x, at) / fit.problem.scales
    rows = []
    for place, column in enumerate(fit.x):
        there = here.copy()
        there[place] *= 2

        def gain(theta: np.ndarray, there: np.ndarray = there) -> np.ndarray:
            fall = fit.problem.values(theta, here[:, None]) - fit.problem.values(
                theta, there[:, None]
            )
            return np.asarray(fall[..., 0])

        value = float(gain(fit.theta))
        low, high = fit.likelihood.interval(gain, 0.95)
        rows.append(
            [
                column,
                at[column],
                value,
                min(low, value),
                max(high, value),
                _cost_factor(fit, cost, column),
            ]
        )
    return pd.DataFrame(rows, columns=RETURN_COLUMNS).sort_values(
        "gain", ascending=False, ignore_index=True
    )


def _cost_factor(fit: Fit, cost: Cost | None, column: str) -> float:
    """Return the factor on training FLOP of doubling a column."""
    if fit.x == (COMPUTE,):
        return 2.0
    try:
        return float(2 ** (cost or token_cost(fit)).power(column))
    except FitError:
        return float("nan")
