"""Which runs to add: those that most narrow the interval of one prediction, for their compute.

Takes the fit that speaks for a study, the computes of its runs and of runs that could be added;
gives a choice. The one
idea: to first order a run's place along x, not its outcome, decides what it will tell (optimal
design for one prediction, c-optimality: Elfving 1952; Atkinson, Donev and Tobias 2007, chapter 10),
so designs can be compared before anything is trained.
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
"""Half-width of a log that stands for an infinite one."""


class Design(NamedTuple):
    """Places along x at which runs lie or could lie, and what each would tell."""

    x: Floats
    "(n,)"
    slopes: Floats
    "derivatives of the log of the law at x by the parameters, (n, p)"
    gradient: Floats
    "the same at the place of the prediction, (p,)"
    noise: float
    "standard deviation of a run's log loss"

    @classmethod
    def build(cls, fit: Fit, x: Floats, at: float) -> "Design":
        """Linearise a fit of one predictor at x (n,) and at the place of the prediction."""
        scaled = np.append(x, at)[None] / fit.problem.scales[:, None]
        slopes = differentiate(
            lambda theta: fit.problem.log_values(theta, scaled), fit.theta[None]
        )[1][0]
        return cls(x, slopes[:-1], slopes[-1], fit.likelihood.noise)

    def half_width(self, runs: npt.NDArray[np.int64]) -> float:
        """Give the 95 % half-width of the log of the prediction from some of the runs, to first
        order.

        The largest level is held out, as the analysis of a study does. Infinite where too few runs
        remain.
        """
        below = runs[self.x[runs] < LARGEST_LEVEL_SHARE * self.x[runs].max()]
        fitted = self.slopes[below if len(below) >= MIN_FITTED_RUNS else runs]
        freedom = len(fitted) - len(self.gradient)
        if freedom < 1:
            return np.inf
        spread = np.linalg.pinv(fitted.T @ fitted, rcond=1e-14, hermitian=True)
        variance = float(self.gradient @ spread @ self.gradient)
        return float(stdtrit(freedom, 0.975) * self.noise * np.sqrt(max(variance, 0.0)))


def choose_runs(
    fit: Fit, x: Floats, candidates: Floats, budget: float, at: float
) -> tuple[list[int], float]:
    """Choose which of `candidates` (k,), computes in FLOP, to add to runs at x (n,) within a budget
    in FLOP.

    One run or two at a time join the choice: in one attempt those that narrow the interval most for
    their compute, in another those that narrow it most; the better attempt wins.

    Returns the places of the chosen among the candidates, in the order in which they joined, and
    the factor by which the interval at `at` is expected to shrink; nothing and 1 where no choice
    narrows it by `LEAST_GAIN`.
    """
    design = Design.build(fit, np.concatenate([x, candidates]), at)
    before = design.half_width(np.arange(len(x)))
    attempts = [_add_greedily(design, len(x), budget, by_cost) for by_cost in (True, False)]
    chosen, width = min(attempts, key=lambda attempt: attempt[1])
    factor = width / before if np.isfinite(before) else 0.0
    return (chosen, factor) if chosen and factor < 1 - LEAST_GAIN else ([], 1.0)


def _add_greedily(
    design: Design, done: int, budget: float, by_cost: bool
) -> tuple[list[int], float]:
    """Add the best one or two candidates, those after the first `done` places, until none narrows
    the interval.

    Returns the choice and its half-width.
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
    """Give the fall of the log of a width, infinite ones taken as very wide; none where it is too
    small to pay.
    """
    fall = float(np.log(min(before, WIDEST)) - np.log(min(after, WIDEST)))
    return fall if fall > LEAST_GAIN else 0.0
