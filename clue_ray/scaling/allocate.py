"""Split a compute budget between encoder size and data.

Takes a fit of `parametric_loss` and a budget; gives a `Recipe`. The one idea: where C = 6 N D, the loss E +
A N^-alpha + B D^-beta has its minimum in closed form, and its interval follows from the fit's likelihood.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from clue_ray.errors import FitError
from clue_ray.scaling.fit import Fit, Prediction

FLOPS_PER_PARAMETER_AND_TOKEN = 6  # forward and backward of the matrix products; attention and logits left out


@dataclass(frozen=True)
class Recipe:
    """The best use of a budget under a fit.

    Attributes:
        train_flops: the budget.
        non_embedding_params: the size to train, with its 95 % interval.
        train_tokens: the tokens to train it on, with its 95 % interval.
        loss: what the law expects there, with its 95 % interval.
    """

    train_flops: float
    non_embedding_params: Prediction
    train_tokens: Prediction
    loss: Prediction


def allocate(fit: Fit, train_flops: float) -> Recipe:
    """Find the size and tokens that spend `train_flops` best.

    N = G (C / 6)^(beta / (alpha + beta)), D = C / (6 N), G = (alpha A / (beta B))^(1 / (alpha + beta)):
    Hoffmann et al. 2022 (arXiv 2203.15556), equation 4.
    Raises FitError for a fit of another law or a bad budget.
    """
    if fit.law.name != "parametric_loss":
        raise FitError(f"An allocation needs a fit of parametric_loss, not of {fit.law.name}; fit that.")
    if not (np.isfinite(train_flops) and train_flops > 0):
        raise FitError(f"train_flops is {train_flops!r}; a budget is a positive finite number of FLOP.")
    budget = float(np.log(train_flops / FLOPS_PER_PARAMETER_AND_TOKEN))

    def log_size(theta: Any) -> Any:
        log_a, log_b, alpha, beta = (fit.problem.natural(theta, name) for name in ("A", "B", "alpha", "beta"))
        with np.errstate(all="ignore"):  # an exponent of 0 has no best split; no interval reaches there
            return (np.log(alpha) + log_a - np.log(beta) - log_b + beta * budget) / (alpha + beta)

    value = float(log_size(fit.theta))
    low, high = fit.likelihood.interval(log_size, 0.95)
    size = np.exp([value, min(low, value), max(high, value)])
    tokens = np.exp(budget) / size[[0, 2, 1]]
    place = dict(zip(fit.x, (float(size[0]), float(tokens[0])), strict=True))
    return Recipe(train_flops, Prediction(*map(float, size)), Prediction(*map(float, tokens)), fit.predict(**place))
