"""What a recipe costs in FLOP: training as a product of axes, serving as an optional term.

Takes a fit or a runs table; gives a `Cost`. The one idea: training costs scale * size * product of the data axes, so
the best recipe of a sum of power laws follows from one equation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clue_ray.errors import FitError, RunsError
from clue_ray.runs import Runs
from clue_ray.scaling.fitted import Fit
from clue_ray.scaling.sample import Table, as_frame, select

FLOPS_PER_PARAMETER_AND_TOKEN = 6  # forward and backward of the matrix products; attention and logits left out
FLOPS_PER_PARAMETER_SERVED = 2  # forward alone
SIZES = ("non_embedding_params", "total_params")
ROUNDING = 0.2  # how far a fitted power may lie from a whole number
UNEXPLAINED = 0.25  # largest miss of the product, as a share of train_flops


@dataclass(frozen=True)
class Cost:
    """Training FLOP = scale * size * product of data ** power; serving = 2 * size * inference_tokens.

    Attributes:
        size: column of the encoder size.
        powers: data axes that cost compute, with their powers; any other axis of a law is free.
        scale: FLOP of one unit of the product; 6 where the data are tokens (Kaplan et al. 2020, arXiv 2001.08361).
        inference_tokens: tokens the encoder will read once trained, over its life (Sardana et al. 2024,
            arXiv 2401.00448).
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
        """Return the cost with serving; FitError unless the number of tokens is finite and not negative."""
        if not (np.isfinite(inference_tokens) and inference_tokens >= 0):
            raise FitError(f"inference_tokens is {inference_tokens!r}; give the tokens to be read, 0 or more.")
        return replace(self, inference_tokens=float(inference_tokens))


def token_cost(fit: Fit) -> Cost:
    """Give the cost 6 N D of a law that has a size and tokens; FitError where its axes do not say so.

    `parametric_loss` has them by its form, whatever its columns are called; other laws by column names.
    """
    if fit.law.name == "parametric_loss":
        return Cost(fit.x[0], {fit.x[1]: 1.0})
    size = [column for column in fit.x if column in SIZES]
    if len(size) == 1 and "train_tokens" in fit.x:
        return Cost(size[0], {"train_tokens": 1.0})
    raise FitError(
        f"An allocation needs encoder size and train_tokens, but {fit.law.name} is fitted to {', '.join(fit.x)}; "
        "fit parametric_loss, or give cost=calibrate_cost(table, columns)."
    )


def calibrate_cost(table: Table, columns: Sequence[str]) -> Cost:
    """Learn from a table's train_flops how it grows along the columns of a law: which are paid for, and the scale.

    Powers of log train_flops are fitted by least squares and rounded to whole numbers; the scale is the geometric mean
    of what is left. Raises FitError where that does not describe the runs, RunsError where a column is missing.
    """
    sizes = [column for column in columns if column in SIZES]
    if len(sizes) != 1:
        raise FitError(f"A cost needs one size, {' or '.join(SIZES)}, among its columns; found {', '.join(columns)}.")
    done = Runs(as_frame(table)).done
    if done.duplicated(list(columns)).all() or len(done) <= len(columns) + 1:
        raise RunsError(f"{len(done)} runs are too few to learn the cost of {len(columns)} axes; add runs.")
    sample = select(table, columns, "train_flops")
    logs, flops = np.log(sample.x), np.log(sample.y)
    design = np.vstack([logs, np.ones(len(flops))]).T
    fitted = np.linalg.lstsq(design, flops, rcond=None)[0][:-1]
    powers = np.round(fitted)
    rest = flops - powers @ logs
    missed = float(np.exp(np.abs(rest - rest.mean()).max()) - 1)
    named = dict(zip(columns, map(float, powers), strict=True))
    if np.abs(fitted - powers).max() > ROUNDING or missed > UNEXPLAINED or named[sizes[0]] != 1 or powers.min() < 0:
        found = ", ".join(f"{name}^{power:.2f}" for name, power in zip(columns, fitted, strict=True))
        raise FitError(
            f"train_flops goes as {found} and misses whole powers by up to {missed:.0%}; a cost needs size^1 and whole "
            "powers within 25 %: name the columns that cost compute, or build a Cost."
        )
    paid = {name: power for name, power in named.items() if power > 0 and name != sizes[0]}
    return Cost(sizes[0], paid, float(np.exp(rest.mean())))
