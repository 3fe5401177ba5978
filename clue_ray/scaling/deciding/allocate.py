"""Split a compute budget between encoder size and the data axes.

The law is a sum of power laws, one per axis, and training costs scale * size * product of the data
axes. At the best recipe the last FLOP gains as much along every axis. This condition is one
equation with one root, analytic in the fitted parameters, so every optimum has a profile-likelihood
interval like any other quantity.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from clue_ray.errors import FitError, RunsError
from clue_ray.runs import Runs
from clue_ray.scaling.fitting.result import Fit, Prediction
from clue_ray.scaling.fitting.table import Table, as_frame, select
from clue_ray.scaling.fitting.warnings import COLLINEAR, interval_warnings
from clue_ray.scaling.laws.law import Floats

FLOPS_PER_PARAMETER_AND_TOKEN = 6
"""Forward and backward pass of the matrix products, without attention and logits."""
FLOPS_PER_PARAMETER_SERVED = 2  # forward pass only
SIZES = ("non_embedding_params", "total_params")
ROUNDING = 0.2
"""Largest distance of a fitted power from a whole number."""
UNEXPLAINED = 0.25
"""Largest error of the fitted cost, as a share of train_flops."""
NEWTON = 40
"""Newton steps; without serving the equation is linear and one step suffices."""
NEARLY = 0.999
"""Correlation of logs above which the runs lie along one line and identify no split."""


@dataclass(frozen=True)
class Cost:
    """The cost of a recipe: training FLOP as a product of axes, and serving FLOP.

    Training FLOP are scale * size * product of data ** power, serving FLOP 2 * size *
    inference_tokens.

    Attributes:
        size: column of the encoder size.
        powers: the powers of the data axes that cost compute; every other axis of a law is free.
        scale: FLOP per unit of the product; 6 where the data are tokens (Kaplan et al. 2020,
            arXiv 2001.08361).
        inference_tokens: tokens that the trained encoder will read in total (Sardana et al. 2024,
            arXiv 2401.00448).
    """

    size: str
    powers: Mapping[str, float]
    scale: float = FLOPS_PER_PARAMETER_AND_TOKEN
    inference_tokens: float = 0.0

    @property
    def served(self) -> float:
        """Serving FLOP per parameter in total."""
        return FLOPS_PER_PARAMETER_SERVED * self.inference_tokens

    def power(self, column: str) -> float:
        """Return the power of an axis in the training FLOP; 0 for a free axis."""
        return 1.0 if column == self.size else self.powers.get(column, 0.0)

    def with_inference(self, inference_tokens: float) -> "Cost":
        """Return this cost with a number of inference tokens.

        Raises:
            FitError: the number is negative or not finite.
        """
        if not (np.isfinite(inference_tokens) and inference_tokens >= 0):
            raise FitError(
                f"inference_tokens is {inference_tokens!r}; give a number of tokens, 0 or more."
            )
        return replace(self, inference_tokens=float(inference_tokens))


def token_cost(fit: Fit) -> Cost:
    """Return the cost 6 N D of a law over a size and tokens.

    `parametric_loss` has both by its form, whatever its columns are called. Other laws have them by
    the names of their columns.

    Raises:
        FitError: the law lacks an encoder size or train_tokens.
    """
    if fit.law.name == "parametric_loss":
        return Cost(fit.x[0], {fit.x[1]: 1.0})
    size = [column for column in fit.x if column in SIZES]
    if len(size) == 1 and "train_tokens" in fit.x:
        return Cost(size[0], {"train_tokens": 1.0})
    raise FitError(
        f"An allocation needs encoder size and train_tokens, but {fit.law.name} is fitted to "
        f"{', '.join(fit.x)}; fit parametric_loss, or give cost=calibrate_cost(table, columns)."
    )


def calibrate_cost(table: Table, columns: Sequence[str]) -> Cost:
    """Fit the cost of a recipe to the train_flops of a table.

    The powers of the columns are fitted by least squares of logs and rounded to whole numbers. The
    scale is the geometric mean of the rest.

    Raises:
        FitError: a product of whole powers does not describe the runs.
        RunsError: a column is missing, or the runs are too few.
    """
    sizes = [column for column in columns if column in SIZES]
    if len(sizes) != 1:
        raise FitError(
            f"A cost needs one size, {' or '.join(SIZES)}, among its columns; found "
            f"{', '.join(columns)}."
        )
    done = Runs(as_frame(table)).done
    if done.duplicated(list(columns)).all() or len(done) <= len(columns) + 1:
        raise RunsError(
            f"{len(done)} runs are too few to fit the cost of {len(columns)} axes; add runs."
        )
    sample = select(table, columns, "train_flops")
    logs, flops = np.log(sample.x), np.log(sample.y)
    design = np.vstack([logs, np.ones(len(flops))]).T
    fitted = np.linalg.lstsq(design, flops, rcond=None)[0][:-1]
    powers = np.round(fitted)
    rest = flops - powers @ logs
    missed = float(np.exp(np.abs(rest - rest.mean()).max()) - 1)
    named = dict(zip(columns, map(float, powers), strict=True))
    if (
        np.abs(fitted - powers).max() > ROUNDING
        or missed > UNEXPLAINED
        or named[sizes[0]] != 1
        or powers.min() < 0
    ):
        found = ", ".join(
            f"{name}^{power:.2f}" for name, power in zip(columns, fitted, strict=True)
        )
        raise FitError(
            f"train_flops grows as {found} and differs from whole powers by up to {missed:.0%}; a "
            "cost needs size^1 and whole powers within 25 %: name the columns that cost compute, "
            "or build a Cost."
        )
    paid = {name: power for name, power in named.items() if power > 0 and name != sizes[0]}
    return Cost(sizes[0], paid, float(np.exp(rest.mean())))


@dataclass(frozen=True)
class Recipe:
    """The best use of a budget under a fit, with 95 % intervals.

    Attributes:
        train_flops: the budget in FLOP, including serving where the cost has it.
        non_embedding_params: the encoder size to train.
        train_tokens: the tokens to train on; training FLOP / (6 * size) where tokens are not an
            axis of the law.
        loss: the predicted loss at the recipe; the interval is that of the law at this place.
        axes: every axis of the law, by column.
        held: axes that cost nothing, held at the largest value of the runs.
        inference_flops: the part of the budget for serving.
        warnings: one sentence each.
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
    """Find the recipe with the lowest predicted loss for a compute budget.

    For E + A N^-alpha + B D^-beta without serving it is N = G (C / 6)^(beta / (alpha + beta)), D =
    C / (6 N), G = (alpha A / (beta B))^(1 / (alpha + beta)): Hoffmann et al. 2022 (arXiv
    2203.15556), equation 4.

    Args:
        fit: a law that is a sum of power laws over at least two axes that cost compute.
        train_flops: the budget in FLOP.
        cost: the cost of a recipe; 6 FLOP per parameter and token by default.

    Raises:
        FitError: the law or the budget does not fit, or the runs do not identify a split.

    Example:
        >>> from itertools import product
        >>> from clue_ray import allocate, fit_law
        >>> n, d = zip(*product([1e5, 1e6, 1e7], [1e8, 1e9, 1e10]))
        >>> loss = [1.7 + 400 * a**-0.34 + 410 * b**-0.28 for a, b in zip(n, d)]
        >>> fit = fit_law("parametric_loss", {"n": n, "d": d, "loss": loss}, x=["n", "d"], y="loss")
        >>> {axis: f"{best.value:.3g}" for axis, best in allocate(fit, 1e16).axes.items()}
        {'n': '9.84e+06', 'd': '1.69e+08'}
    """
    cost = _allowed(fit, cost or token_cost(fit))
    if not (np.isfinite(train_flops) and train_flops > 0):
        raise FitError(
            f"train_flops is {train_flops!r}; a budget is a positive finite number of FLOP."
        )
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
    warnings = (
        *_edges(fit, axes, seen),
        *_free(held),
        *_checked(fit, cost, train_flops, axes.keys() - held),
    )
    return Recipe(train_flops, size, tokens, loss, axes, tuple(held), served, warnings)


def best_loss(fit: Fit, train_flops: float, cost: Cost) -> Prediction:
    """Predict the loss of the best recipe, without the intervals and warnings of `allocate`."""
    places, cost = {}, _allowed(fit, cost)
    for column, largest in zip(
        fit.x, (fit.problem.x * fit.problem.scales[:, None]).max(axis=1), strict=True
    ):
        place = (
            np.exp(_log_best(fit, cost, train_flops, fit.theta, column=column))
            if cost.power(column)
            else largest
        )
        places[column] = float(place)
    return fit.predict(**places)


def _log_best(fit: Fit, cost: Cost, budget: float, theta: Any, *, column: str) -> Any:
    """Return the log of one axis at the best recipe, for parameters theta (..., p).

    Let v be the log of the Lagrange multiplier of the data axes. Each data axis j with power p_j
    satisfies log x_j = (log(a_j b_j / p_j) - v) / b_j, and the budget determines the size N. The
    condition of N, log(a b) - b log N = v + log(1 + serving / training), is the equation in v. Its
    left side minus its right side decreases everywhere, so Newton's method finds the one root.
    """
    terms = {name: _term(fit, theta, name) for name in fit.x if cost.power(name)}
    log_a, b = terms.pop(cost.size)
    with np.errstate(all="ignore"):  # an exponent of 0 has no best split and is in no interval
        heights = {
            name: np.log(b_j / cost.power(name)) + log_j for name, (log_j, b_j) in terms.items()
        }
        steepness = sum(cost.power(name) / b_j for name, (_, b_j) in terms.items())
        level = np.log(cost.scale) + sum(
            cost.power(name) * heights[name] / terms[name][1] for name in terms
        )
        value = 0 * log_a  # 0 with the shape of theta without its last axis
        # The first step solves the linear equation without serving; the others start from there.
        for served in [0.0] + [cost.served] * (NEWTON if cost.served else 0):
            log_share, log_size = _spent(level - value * steepness, served, budget)
            gap = np.log(b) + log_a - b * log_size - value + log_share
            share = np.exp(log_share)
            value = value + gap / (b * steepness * share + 1 + steepness * (1 - share))
        if column == cost.size:
            return _spent(level - value * steepness, cost.served, budget)[1]
        return (heights[column] - value) / terms[column][1]


def _spent(log_training: Any, served: float, budget: float) -> tuple[Any, Any]:
    """Return the logs of the training share of the budget and of the size.

    `log_training` is the log of the training FLOP per parameter, `served` the serving FLOP per
    parameter.
    """
    log_share = -np.log1p(served * np.exp(-log_training))
    return log_share, np.log(budget) - log_training + log_share


def _term(fit: Fit, theta: Any, column: str) -> tuple[Any, Any]:
    """Return the log coefficient and the exponent of one predictor, from theta (..., p)."""
    coefficient, exponent = fit.law.terms[fit.x.index(column)]
    return fit.problem.natural(theta, coefficient), fit.problem.natural(theta, exponent)


def _bracket(fit: Fit, log_value: Any) -> Prediction:
    """Return the exponential of a quantity with its interval; an unbounded end is 0 or infinite."""
    value = float(log_value(fit.theta))
    low, high = fit.likelihood.interval(log_value, 0.95)
    with np.errstate(over="ignore"):
        return Prediction(*map(float, np.exp([value, min(low, value), max(high, value)])))


def _tokens(fit: Fit, cost: Cost, axes: dict[str, Prediction], spent: float) -> Prediction:
    """Return the training tokens of a recipe without the axis train_tokens."""
    if fit.law.name == "parametric_loss":
        return axes[fit.x[1]]
    value, low, high = axes[cost.size]
    return Prediction(
        *(spent / FLOPS_PER_PARAMETER_AND_TOKEN / size for size in (value, high, low))
    )


def _allowed(fit: Fit, cost: Cost) -> Cost:
    """Return the cost; raise FitError where law, cost and runs determine no best split."""
    paid = [column for column in fit.x if cost.power(column)]
    if len(paid) < 2 or cost.size not in fit.x:
        raise FitError(
            f"{fit.law.name} over {', '.join(fit.x)} has {len(paid)} axes that cost compute; a "
            "split needs the size and at least one more: fit parametric_loss."
        )
    if not _is_sum(fit):
        raise FitError(
            f"{fit.law.name} is not a sum of power laws, one per predictor; fit parametric_loss to "
            "allocate."
        )
    flat = [
        column
        for column in paid
        if not fit.parameters[fit.law.terms[fit.x.index(column)][1]] > 1e-6
    ]
    if flat:
        raise FitError(
            f"The fitted exponent of {', '.join(flat)} is 0, so no compute is well spent there; "
            "add runs."
        )
    logs = np.log(fit.problem.x[[fit.x.index(column) for column in paid]])
    together = float(np.abs(np.corrcoef(logs))[np.triu_indices(len(paid), 1)].max())
    if together > NEARLY:
        raise FitError(
            f"{' and '.join(paid)} rise together in all runs (correlation of logs {together:.4f}), "
            "so the runs do not identify a split between them; vary them independently, to a "
            f"correlation below {COLLINEAR}."
        )
    return cost


def _is_sum(fit: Fit) -> bool:
    """Return whether the law equals its floor plus one term per predictor, by evaluating it."""
    if len(fit.law.terms) != len(fit.x):
        return False
    values = np.full(
        fit.problem.x.shape[1], fit.parameters[fit.law.floor] if fit.law.floor else 0.0
    )
    for column, log_x in zip(
        fit.x, np.log(fit.problem.x * fit.problem.scales[:, None]), strict=True
    ):
        log_a, b = _term(fit, fit.theta, column)
        values = values + np.exp(log_a - b * log_x)
    return bool(np.allclose(np.log(values), fit.problem.log_values(fit.theta), rtol=0, atol=1e-9))


def _edges(fit: Fit, axes: dict[str, Prediction], seen: Floats) -> list[str]:
    """Warn which axes of the recipe lie outside the runs, or are not bounded by them."""
    warnings = []
    for column, (low, high) in zip(
        fit.x, zip(seen.min(axis=1), seen.max(axis=1), strict=True), strict=True
    ):
        place = axes[column]
        if not low <= place.value <= high:
            ratio = place.value / high if place.value > high else low / place.value
            side = "above" if place.value > high else "below"
            warnings.append(
                f"{column} of {place.value:.3g} is {ratio:.3g} times {side} any run: an "
                "extrapolation."
            )
        if not (place.low > 0 and np.isfinite(place.high)):
            warnings.append(f"The runs do not bound the best {column} on both sides.")
    return warnings


def _checked(fit: Fit, cost: Cost, budget: float, columns: Iterable[str]) -> Iterator[str]:
    """Warn on which axes the bootstrap interval differs much in width from the profile interval."""
    readers = {
        f"best {name}": partial(_log_best, fit, cost, budget, column=name)
        for name in sorted(columns)
    }
    return interval_warnings(fit.law, fit.likelihood, readers)


def _free(held: list[str]) -> list[str]:
    """Warn which axes cost no compute and are held."""
    return [
        f"{column} costs no compute; it is held at the largest value of the runs."
        for column in held
    ]
