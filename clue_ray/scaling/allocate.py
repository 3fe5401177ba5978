"""Split a compute budget between encoder size and the axes of data.

Takes a fit of a sum of power laws and a budget; gives a `Recipe`. The one idea: at the best recipe the last FLOP buys
as much along every axis; that is one equation with one root, analytic in the fitted parameters, so every optimum has
a profile-likelihood interval like any other quantity.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from clue_ray.errors import FitError
from clue_ray.scaling.agreement import disagreement
from clue_ray.scaling.cost import FLOPS_PER_PARAMETER_AND_TOKEN, Cost, token_cost
from clue_ray.scaling.doubts import COLLINEAR
from clue_ray.scaling.fitted import Fit, Prediction
from clue_ray.scaling.law import Floats

NEWTON = 40  # steps; without serving the equation is linear and the first one lands
NEARLY = 0.999  # correlation of logs from which the runs move along one line and hold no split


@dataclass(frozen=True)
class Recipe:
    """The best use of a budget under a fit; intervals are 95 %.

    Attributes:
        train_flops: the budget, serving included where the cost has it.
        non_embedding_params: the size to train.
        train_tokens: the tokens to train it on; training FLOP / (6 * size) where tokens are no axis of the law.
        loss: what the law expects at the recipe. Its interval is that of the law there, not of the best recipe.
        axes: every axis of the law, by column.
        held: axes that cost nothing, held at the largest value seen.
        inference_flops: the part of the budget that serving takes.
        warnings: what a reader should know before spending the budget, a sentence each.
    """

    train_flops: float
    non_embedding_params: Prediction
    train_tokens: Prediction
    loss: Prediction
    axes: dict[str, Prediction]
    held: tuple[str, ...]
    inference_flops: float
    warnings: tuple[str, ...]


def allocate(fit: Fit, train_flops: float, cost: Cost | None = None) -> Recipe:
    """Find the recipe that spends `train_flops` best; by default at a cost of 6 FLOP a parameter and token.

    For E + A N^-alpha + B D^-beta and no serving this is N = G (C / 6)^(beta / (alpha + beta)), D = C / (6 N),
    G = (alpha A / (beta B))^(1 / (alpha + beta)): Hoffmann et al. 2022 (arXiv 2203.15556), equation 4.
    Raises FitError for a law that is no sum of power laws of two axes that cost compute, a bad budget, or runs that
    hold no split.
    """
    cost = _allowed(fit, cost or token_cost(fit))
    if not (np.isfinite(train_flops) and train_flops > 0):
        raise FitError(f"train_flops is {train_flops!r}; a budget is a positive finite number of FLOP.")
    seen = fit.problem.x * fit.problem.scales[:, None]
    axes, held = {}, []
    for column, largest in zip(fit.x, seen.max(axis=1), strict=True):
        if cost.power(column):
            axes[column] = _bracket(fit, partial(_log_best, fit, cost, train_flops, column=column))
        else:
            axes[column] = Prediction(*[float(largest)] * 3)
            held.append(column)
    size = axes[cost.size]
    served = cost.served * size.value
    loss = fit.predict(**{column: place.value for column, place in axes.items()})
    tokens = axes.get("train_tokens") or _tokens(fit, cost, axes, train_flops - served)
    warnings = (*_edges(fit, axes, seen), *_free(held), *_checked(fit, cost, train_flops, axes.keys() - held))
    return Recipe(train_flops, size, tokens, loss, axes, tuple(held), served, warnings)


def best_loss(fit: Fit, train_flops: float, cost: Cost) -> Prediction:
    """Give the loss of the best recipe as `allocate` does, without the recipe's own intervals and doubts."""
    places, cost = {}, _allowed(fit, cost)
    for column, largest in zip(fit.x, (fit.problem.x * fit.problem.scales[:, None]).max(axis=1), strict=True):
        place = np.exp(_log_best(fit, cost, train_flops, fit.theta, column=column)) if cost.power(column) else largest
        places[column] = float(place)
    return fit.predict(**places)


def _log_best(fit: Fit, cost: Cost, budget: float, theta: Any, *, column: str) -> Any:
    """Give the log of one axis at the best recipe, for points theta (..., p).

    With v = log of the multiplier of the data axes: log x_j = (log(a_j b_j / p_j) - v) / b_j for each data axis j of
    power p_j, the budget gives the size N, and N's own condition log(a b) - b log N = v + log(1 + serving / training)
    is the equation in v; its left side minus its right falls everywhere.
    """
    terms = {name: _term(fit, theta, name) for name in fit.x if cost.power(name)}
    log_a, b = terms.pop(cost.size)
    with np.errstate(all="ignore"):  # an exponent of 0 has no best split; no interval reaches there
        heights = {name: np.log(b_j / cost.power(name)) + log_j for name, (log_j, b_j) in terms.items()}
        steepness = sum(cost.power(name) / b_j for name, (_, b_j) in terms.items())
        level = np.log(cost.scale) + sum(cost.power(name) * heights[name] / terms[name][1] for name in terms)
        value = 0 * log_a
        for served in [0.0] + [cost.served] * (NEWTON if cost.served else 0):
            log_share, log_size = _spent(level - value * steepness, served, budget)
            gap = np.log(b) + log_a - b * log_size - value + log_share
            share = np.exp(log_share)
            value = value + gap / (b * steepness * share + 1 + steepness * (1 - share))
        if column == cost.size:
            return _spent(level - value * steepness, cost.served, budget)[1]
        return (heights[column] - value) / terms[column][1]


def _spent(log_training: Any, served: float, budget: float) -> tuple[Any, Any]:
    """Give the logs of training's share of the budget and of the size, from training FLOP a parameter."""
    log_share = -np.log1p(served * np.exp(-log_training))
    return log_share, np.log(budget) - log_training + log_share


def _term(fit: Fit, theta: Any, column: str) -> tuple[Any, Any]:
    """Read log coefficient and exponent of a predictor's term off theta (..., p)."""
    coefficient, exponent = fit.law.terms[fit.x.index(column)]
    return fit.problem.natural(theta, coefficient), fit.problem.natural(theta, exponent)


def _bracket(fit: Fit, log_value: Any) -> Prediction:
    """Give the exponential of a quantity with its interval; an end that no data bound is 0 or infinite."""
    value = float(log_value(fit.theta))
    low, high = fit.likelihood.interval(log_value, 0.95)
    with np.errstate(over="ignore"):
        return Prediction(*map(float, np.exp([value, min(low, value), max(high, value)])))


def _tokens(fit: Fit, cost: Cost, axes: dict[str, Prediction], spent: float) -> Prediction:
    """Give the tokens of a recipe whose data axes are not called so."""
    if fit.law.name == "parametric_loss":
        return axes[fit.x[1]]
    value, low, high = axes[cost.size]
    return Prediction(*(spent / FLOPS_PER_PARAMETER_AND_TOKEN / size for size in (value, high, low)))


def _allowed(fit: Fit, cost: Cost) -> Cost:
    """Pass a cost through; raise FitError where law, cost and runs hold no best split."""
    paid = [column for column in fit.x if cost.power(column)]
    if len(paid) < 2 or cost.size not in fit.x:
        raise FitError(
            f"{fit.law.name} over {', '.join(fit.x)} has {len(paid)} axes that cost compute; a split needs the size "
            "and at least one more: fit parametric_loss."
        )
    if not _is_sum(fit):
        raise FitError(f"{fit.law.name} is no sum of power laws, one a predictor; fit parametric_loss to allocate.")
    flat = [column for column in paid if not fit.parameters[fit.law.terms[fit.x.index(column)][1]] > 1e-6]
    if flat:
        raise FitError(f"The fitted exponent of {', '.join(flat)} is 0, so no budget is well spent there; add runs.")
    logs = np.log(fit.problem.x[[fit.x.index(column) for column in paid]])
    together = float(np.abs(np.corrcoef(logs))[np.triu_indices(len(paid), 1)].max())
    if together > NEARLY:
        raise FitError(
            f"{' and '.join(paid)} rise together in all runs (correlation of logs {together:.4f}), so the runs hold no "
            f"split between them; vary them apart, below {COLLINEAR}."
        )
    return cost


def _is_sum(fit: Fit) -> bool:
    """Tell whether the law is its floor plus one term a predictor, by evaluating it."""
    if len(fit.law.terms) != len(fit.x):
        return False
    values = np.full(fit.problem.x.shape[1], fit.parameters[fit.law.floor] if fit.law.floor else 0.0)
    for column, log_x in zip(fit.x, np.log(fit.problem.x * fit.problem.scales[:, None]), strict=True):
        log_a, b = _term(fit, fit.theta, column)
        values = values + np.exp(log_a - b * log_x)
    return bool(np.allclose(np.log(values), fit.problem.log_values(fit.theta), rtol=0, atol=1e-9))


def _edges(fit: Fit, axes: dict[str, Prediction], seen: Floats) -> list[str]:
    """Say which axes of the recipe lie outside the runs, or have no end that the data bound."""
    said = []
    for column, (low, high) in zip(fit.x, zip(seen.min(axis=1), seen.max(axis=1), strict=True), strict=True):
        place = axes[column]
        if not low <= place.value <= high:
            ratio = place.value / high if place.value > high else low / place.value
            side = "above" if place.value > high else "below"
            said.append(f"{column} of {place.value:.3g} is {ratio:.3g} times {side} any run: an extrapolation.")
        if not (place.low > 0 and np.isfinite(place.high)):
            said.append(f"The runs do not bound the best {column} on both sides.")
    return said


def _checked(fit: Fit, cost: Cost, budget: float, columns: Iterable[str]) -> Iterator[str]:
    """Say of which axes the interval by bootstrap differs much in width from that by profile."""
    readers = {f"best {name}": partial(_log_best, fit, cost, budget, column=name) for name in sorted(columns)}
    return disagreement(fit.law, fit.likelihood, readers)


def _free(held: list[str]) -> list[str]:
    """Say which axes cost nothing and so were held."""
    return [f"{column} costs no compute; it is held at the largest value seen." for column in held]
