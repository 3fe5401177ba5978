"""What a recipe costs in FLOP: training as a product of axes, serving as an optional term.

Takes a fit or a runs table; gives a `Cost`. The one idea: training costs scale * size * product of
the data axes, so the best recipe of a sum of power laws follows from one equation.


Split a compute budget between encoder size and the axes of data.

Takes a fit of a sum of power laws and a budget; gives a `Recipe`. The one idea: at the best recipe
the last FLOP buys as much along every axis; that is one equation with one root, analytic in the
fitted parameters, so every optimum has a profile-likelihood interval like any other quantity.
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

FLOPS_PER_PARAMETER_AND_TOKEN = (
    6  # forward and backward of the matrix products; attention and logits left out
)
FLOPS_PER_PARAMETER_SERVED = 2  # forward alone
SIZES = ("non_embedding_params", "total_params")
ROUNDING = 0.2  # how far a fitted power may lie from a whole number
UNEXPLAINED = 0.25  # largest miss of the product, as a share of train_flops


@dataclass(frozen=True)
class Cost:
    """Training FLOP = scale * size * product of data ** power; serving = 2 * size *
    inference_tokens.

    Attributes:
        size: column of the encoder size.
        powers: data axes that cost compute, with their powers; any other axis of a law is free.
        scale: FLOP of one unit of the product; 6 where the data are tokens (Kaplan et al. 2020,
            arXiv 2001.08361).
        inference_tokens: tokens the encoder will read once trained, over its life (Sardana et al.
            2024, arXiv 2401.00448).
    """

    size: str
    powers: Mapping[str, float]
    scale: float = FLOPS_PER_PARAMETER_AND_TOKEN
    inference_tokens: float = 0.0

    @property
    def served(self) -> float:
        """FLOP of serving a parameter over the encoder's life."""
        return FLOPS_PER_PARAMETER_SERVED * self.inference_tokens

    def power(self, column: str) -> float:
        """Give the power with which training FLOP grow along an axis; 0 for a free one."""
        return 1.0 if column == self.size else self.powers.get(column, 0.0)

    def with_inference(self, inference_tokens: float) -> "Cost":
        """Return the cost with serving; FitError unless the number of tokens is finite and not
        negative.
        """
        if not (np.isfinite(inference_tokens) and inference_tokens >= 0):
            raise FitError(
                f"inference_tokens is {inference_tokens!r}; give the tokens to be read, 0 or more."
            )
        return replace(self, inference_tokens=float(inference_tokens))


def token_cost(fit: Fit) -> Cost:
    """Give the cost 6 N D of a law that has a size and tokens; FitError where its axes do not say
    so.

    `parametric_loss` has them by its form, whatever its columns are called; other laws by column
    names.
    """
    if fit.law.name == "parametric_loss":
        return Cost(fit.x[0], {fit.x[1]: 1.0})
    size = [column for column in fit.x if column in SIZES]
    if len(size) == 1 and "train_tokens" in fit.x:
        return Cost(size[0], {"train_tokens": 1.0})
    raise FitError(
        f"An allocation needs encoder size and train_tokens, but {fit.law.name} is fitted to "
        f"{', '.join(fit.x)}; "
        "fit parametric_loss, or give cost=calibrate_cost(table, columns)."
    )


def calibrate_cost(table: Table, columns: Sequence[str]) -> Cost:
    """Learn from a table's train_flops how it grows along the columns of a law: which are paid for,
    and the scale.

    Powers of log train_flops are fitted by least squares and rounded to whole numbers; the scale is
    the geometric mean of what is left. Raises FitError where that does not describe the runs,
    RunsError where a column is missing.
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
            f"{len(done)} runs are too few to learn the cost of {len(columns)} axes; add runs."
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
            f"train_flops goes as {found} and misses whole powers by up to {missed:.0%}; a cost "
            f"needs size^1 and whole "
            "powers within 25 %: name the columns that cost compute, or build a Cost."
        )
    paid = {name: power for name, power in named.items() if power > 0 and name != sizes[0]}
    return Cost(sizes[0], paid, float(np.exp(rest.mean())))


NEWTON = 40  # steps; without serving the equation is linear and the first one lands
NEARLY = 0.999  # correlation of logs from which the runs move along one line and hold no split


@dataclass(frozen=True)
class Recipe:
    """The best use of a budget under a fit; intervals are 95 %.

    Attributes:
        train_flops: the budget, serving included where the cost has it.
        non_embedding_params: the size to train.
        train_tokens: the tokens to train it on; training FLOP / (6 * size) where tokens are no axis
            of the law.
        loss: what the law expects at the recipe. Its interval is that of the law there, not of the
            best recipe.
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
    """Find the recipe that spends `train_flops` best; by default at a cost of 6 FLOP a parameter
    and token.

    For E + A N^-alpha + B D^-beta and no serving this is N = G (C / 6)^(beta / (alpha + beta)), D =
    C / (6 N), G = (alpha A / (beta B))^(1 / (alpha + beta)): Hoffmann et al. 2022 (arXiv
    2203.15556), equation 4. Raises FitError for a law that is no sum of power laws of two axes that
    cost compute, a bad budget, or runs that hold no split.
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
    """Give the loss of the best recipe as `allocate` does, without the recipe's own intervals and
    doubts.
    """
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
    """Give the log of one axis at the best recipe, for points theta (..., p).

    With v = log of the multiplier of the data axes: log x_j = (log(a_j b_j / p_j) - v) / b_j for
    each data axis j of power p_j, the budget gives the size N, and N's own condition log(a b) - b
    log N = v + log(1 + serving / training) is the equation in v; its left side minus its right
    falls everywhere.
    """
    terms = {name: _term(fit, theta, name) for name in fit.x if cost.power(name)}
    log_a, b = terms.pop(cost.size)
    with np.errstate(all="ignore"):  # an exponent of 0 has no best split; no interval reaches there
        heights = {
            name: np.log(b_j / cost.power(name)) + log_j for name, (log_j, b_j) in terms.items()
        }
        steepness = sum(cost.power(name) / b_j for name, (_, b_j) in terms.items())
        level = np.log(cost.scale) + sum(
            cost.power(name) * heights[name] / terms[name][1] for name in terms
        )
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
    """Give the logs of training's share of the budget and of the size, from training FLOP a
    parameter.
    """
    log_share = -np.log1p(served * np.exp(-log_training))
    return log_share, np.log(budget) - log_training + log_share


def _term(fit: Fit, theta: Any, column: str) -> tuple[Any, Any]:
    """Read log coefficient and exponent of a predictor's term off theta (..., p)."""
    coefficient, exponent = fit.law.terms[fit.x.index(column)]
    return fit.problem.natural(theta, coefficient), fit.problem.natural(theta, exponent)


def _bracket(fit: Fit, log_value: Any) -> Prediction:
    """Give the exponential of a quantity with its interval; an end that no data bound is 0 or
    infinite.
    """
    value = float(log_value(fit.theta))
    low, high = fit.likelihood.interval(log_value, 0.95)
    with np.errstate(over="ignore"):
        return Prediction(*map(float, np.exp([value, min(low, value), max(high, value)])))


def _tokens(fit: Fit, cost: Cost, axes: dict[str, Prediction], spent: float) -> Prediction:
    """Give the tokens of a recipe whose data axes are not called so."""
    if fit.law.name == "parametric_loss":
        return axes[fit.x[1]]
    value, low, high = axes[cost.size]
    return Prediction(
        *(spent / FLOPS_PER_PARAMETER_AND_TOKEN / size for size in (value, high, low))
    )


def _allowed(fit: Fit, cost: Cost) -> Cost:
    """Pass a cost through; raise FitError where law, cost and runs hold no best split."""
    paid = [column for column in fit.x if cost.power(column)]
    if len(paid) < 2 or cost.size not in fit.x:
        raise FitError(
            f"{fit.law.name} over {', '.join(fit.x)} has {len(paid)} axes that cost compute; a "
            f"split needs the size "
            "and at least one more: fit parametric_loss."
        )
    if not _is_sum(fit):
        raise FitError(
            f"{fit.law.name} is no sum of power laws, one a predictor; fit parametric_loss to "
            f"allocate."
        )
    flat = [
        column
        for column in paid
        if not fit.parameters[fit.law.terms[fit.x.index(column)][1]] > 1e-6
    ]
    if flat:
        raise FitError(
            f"The fitted exponent of {', '.join(flat)} is 0, so no budget is well spent there; add "
            f"runs."
        )
    logs = np.log(fit.problem.x[[fit.x.index(column) for column in paid]])
    together = float(np.abs(np.corrcoef(logs))[np.triu_indices(len(paid), 1)].max())
    if together > NEARLY:
        raise FitError(
            f"{' and '.join(paid)} rise together in all runs (correlation of logs {together:.4f}), "
            f"so the runs hold no "
            f"split between them; vary them apart, below {COLLINEAR}."
        )
    return cost


def _is_sum(fit: Fit) -> bool:
    """Tell whether the law is its floor plus one term a predictor, by evaluating it."""
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
    """Say which axes of the recipe lie outside the runs, or have no end that the data bound."""
    said = []
    for column, (low, high) in zip(
        fit.x, zip(seen.min(axis=1), seen.max(axis=1), strict=True), strict=True
    ):
        place = axes[column]
        if not low <= place.value <= high:
            ratio = place.value / high if place.value > high else low / place.value
            side = "above" if place.value > high else "below"
            said.append(
                f"{column} of {place.value:.3g} is {ratio:.3g} times {side} any run: an "
                f"extrapolation."
            )
        if not (place.low > 0 and np.isfinite(place.high)):
            said.append(f"The runs do not bound the best {column} on both sides.")
    return said


def _checked(fit: Fit, cost: Cost, budget: float, columns: Iterable[str]) -> Iterator[str]:
    """Say of which axes the interval by bootstrap differs much in width from that by profile."""
    readers = {
        f"best {name}": partial(_log_best, fit, cost, budget, column=name)
        for name in sorted(columns)
    }
    return interval_warnings(fit.law, fit.likelihood, readers)


def _free(held: list[str]) -> list[str]:
    """Say which axes cost nothing and so were held."""
    return [f"{column} costs no compute; it is held at the largest value seen." for column in held]
