"""Select the runs to add to a study: those that narrow the interval of one prediction the most.

To first order, the information of a run depends on its place along x and not on its outcome, so
designs can be compared before anything is trained (c-optimal design: Elfving 1952; Atkinson, Donev
and Tobias 2007, chapter 10).

The disagreement between laws is not part of the criterion: adding it did not improve forecasts
(docs/reference/statistics.md, "Which runs to add is still judged by one law").
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from clue_ray.scaling.fitting.frontier import LARGEST_LEVEL_SHARE, MIN_FITTED_RUNS
from clue_ray.scaling.fitting.problem import differentiate
from clue_ray.scaling.fitting.result import Fit
from clue_ray.scaling.laws.law import Floats

LEAST_GAIN = 0.01
"""Relative narrowing below which runs are not worth their compute."""
WIDEST = 1e3
"""Half-width of a log that replaces an infinite one."""


class Design(NamedTuple):
    """Places along x of existing and possible runs, with the linearised law at each.

    Attributes:
        x: places along the predictor, (n,).
        slopes: derivatives of the log of the law at x by the parameters, (n, p).
        gradient: the same derivatives at the place of the prediction, (p,).
        noise: standard deviation of the log loss of a run.
    """

    x: Floats
    slopes: Floats
    gradient: Floats
    noise: float

    @classmethod
    def build(cls, fit: Fit, x: Floats, predict_at: float) -> "Design":
        """Linearise a fit of one predictor at x (n,) and at the place of the prediction."""
        scaled = np.append(x, predict_at)[None] / fit.problem.scales[:, None]
        slopes = differentiate(
            lambda theta: fit.problem.log_values(theta, scaled), fit.theta[None]
        )[1][0]
        return cls(x, slopes[:-1], slopes[-1], fit.likelihood.noise)

    def half_width(self, runs: npt.NDArray[np.int64]) -> float:
        """Return the 95 % half-width of the log of the prediction, to first order.

        Args:
            runs: indices of the places that have a run.

        The largest level is held out, as in the analysis of a study. The half-width is infinite
        where too few runs remain.
        """
        below = runs[self.x[runs] < LARGEST_LEVEL_SHARE * self.x[runs].max()]
        fitted = self.slopes[below if len(below) >= MIN_FITTED_RUNS else runs]
        freedom = len(fitted) - len(self.gradient)
        if freedom < 1:
            return np.inf
        # The pseudo-inverse keeps the variance finite where the runs do not identify a parameter
        # that the prediction does not depend on.
        spread = np.linalg.pinv(fitted.T @ fitted, rcond=1e-14, hermitian=True)
        variance = float(self.gradient @ spread @ self.gradient)
        return float(stdtrit(freedom, 0.975) * self.noise * np.sqrt(max(variance, 0.0)))


def choose_runs(
    fit: Fit, x: Floats, candidates: Floats, budget: float, predict_at: float
) -> tuple[list[int], float]:
    """Select the candidates to add to a study within a compute budget.

    The search is greedy, one or two runs per step. One attempt takes the largest narrowing per
    FLOP, the other the largest narrowing; the better attempt wins.

    Args:
        fit: the preferred law of the study.
        x: compute of the existing runs in FLOP, (n,).
        candidates: compute of the possible runs in FLOP, (k,).
        budget: compute for the added runs in FLOP.
        predict_at: the compute whose prediction is to be narrowed, in FLOP.

    Returns:
        The indices of the selected candidates in the order of selection, and the expected factor
        on the width of the interval at `predict_at`; an empty list and 1 where no selection narrows
        it by `LEAST_GAIN`.
    """
    design = Design.build(fit, np.concatenate([x, candidates]), predict_at)
    before = design.half_width(np.arange(len(x)))
    attempts = [_add_greedily(design, len(x), budget, by_cost) for by_cost in (True, False)]
    chosen, width = min(attempts, key=lambda attempt: attempt[1])
    factor = width / before if np.isfinite(before) else 0.0
    return (chosen, factor) if chosen and factor < 1 - LEAST_GAIN else ([], 1.0)


def _add_greedily(
    design: Design, done: int, budget: float, by_cost: bool
) -> tuple[list[int], float]:
    """Add the best one or two candidates until none narrows the interval.

    The candidates are the places after the first `done`. Returns the choice and its half-width.
    """
    runs = np.arange(done)
    width = design.half_width(runs)
    while True:
        left = budget - float(design.x[runs[done:]].sum())
        free = [
            place
            for place in range(done, len(design.x))
            if place not in runs and design.x[place] <= left
        ]
        # Pairs too: two runs may identify a parameter that neither identifies alone.
        moves = [
            list(move)
            for size in (1, 2)
            for move in combinations(free, size)
            if sum(design.x[list(move)]) <= left
        ]
        widths = [design.half_width(np.append(runs, move)) for move in moves]
        gains = [_fall(width, after) for after in widths]
        if by_cost:
            gains = [gain / sum(design.x[move]) for gain, move in zip(gains, moves, strict=True)]
        if not gains or max(gains) <= 0:
            return [int(place) - done for place in runs[done:]], width
        best = int(np.argmax(gains))
        runs, width = np.append(runs, moves[best]), widths[best]


def _fall(before: float, after: float) -> float:
    """Return the decrease of the log of a width, or 0 where it is below `LEAST_GAIN`.

    An infinite width counts as `WIDEST`, so that the first finite one is a finite gain.
    """
    fall = float(np.log(min(before, WIDEST)) - np.log(min(after, WIDEST)))
    return fall if fall > LEAST_GAIN else 0.0
