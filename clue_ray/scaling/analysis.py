"""A study's answer: laws of held-out loss in compute, their backtest, the effect of every axis.

Takes a runs table and law names; gives an `Analysis`. The one idea: laws are fitted to the compute frontier
without its largest level, and the one that predicted larger runs best speaks for the study.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clue_ray.errors import FitError
from clue_ray.runs import Runs
from clue_ray.scaling.axes import AxisEffect, axis_effects
from clue_ray.scaling.backtest import Backtest, backtest, no_backtest
from clue_ray.scaling.fit import Fit, Prediction, fit_law
from clue_ray.scaling.laws import find_law
from clue_ray.scaling.sample import candidates_of, select
from clue_ray.spec import chance_loss, nearest

X, Y = "train_flops", "loss"
FEWEST = 4  # runs under a headline fit
FEWEST_TO_BACKTEST = 6  # frontier runs that give three predictions of a three-parameter law
SAME_LEVEL = 0.99  # share of the largest compute that still counts as the largest level
FURTHER = 10  # how many times more compute the answer looks ahead
HOLD_OUTS = ["largest_compute"]


@dataclass(frozen=True)
class Analysis:
    """Everything a report says about a runs table.

    Attributes:
        points: the done runs, with bool columns `frontier` and `held_out`.
        candidates: size of the pool behind every loss.
        chance: loss of a guess, ln(candidates).
        fits: by law name, loss against train_flops without the held-out runs.
        backtest: how well each law predicted larger runs.
        preferred: the law the backtest prefers.
        axes: what each swept axis did.
        warnings: what a reader should know, a sentence each.
    """

    points: pd.DataFrame
    candidates: int
    chance: float
    fits: dict[str, Fit]
    backtest: Backtest
    preferred: str
    axes: list[AxisEffect]
    warnings: list[str]

    def law_table(self) -> list[dict[str, Any]]:
        """List the laws, preferred first: numbers, errors, intervals; None where one does not apply."""
        return [dict(row) for row in self._law_rows]

    @cached_property
    def _law_rows(self) -> list[dict[str, Any]]:
        order = [law for law in self.backtest.summary["law"] if law in self.fits]
        names = [self.preferred, *order, *self.fits]
        return [self._law_row(name, self.fits[name]) for name in dict.fromkeys(names)]

    def _law_row(self, name: str, fit: Fit) -> dict[str, Any]:
        judged = self.backtest.summary.set_index("law")
        exponent = fit.law.exponents[0] if fit.law.exponents else None
        ends = fit.interval(exponent) if exponent else (None, None)
        ahead = reach(fit, FURTHER * float(self.points[X].max()))
        return {
            "law": name,
            "formula": fit.law.describe(fit.parameters),
            "backtest_error": _known(judged["mean_absolute_relative_error"].get(name)),
            "coverage": _known(judged["coverage"].get(name)),
            "held_out_error": self._held_out_error(fit),
            "exponent": fit.parameters[exponent] if exponent else None,
            "exponent_low": _known(ends[0]),
            "exponent_high": _known(ends[1]),
            "loss_at_10x": ahead and _known(ahead.value),
            "loss_at_10x_low": ahead and _known(ahead.low),
            "loss_at_10x_high": ahead and _known(ahead.high),
        }

    def _held_out_error(self, fit: Fit) -> float | None:
        """Compare with the best held-out run: predicted over measured - 1, or None."""
        held = self.points[self.points["held_out"]]
        if held.empty:
            return None
        best = held.iloc[int(held[Y].argmin())]
        return float(fit.curve([best[X]])[0]) / float(best[Y]) - 1

    def answer(self) -> str:
        """Say in two sentences what compute bought so far and what ten times more is predicted to buy."""
        fit, row = self.fits[self.preferred], self._law_rows[0]
        low, high = float(self.points[X].min()), float(self.points[X].max())
        start, now, ahead = reach(fit, low), reach(fit, high), reach(fit, FURTHER * high)
        if start is None or now is None or ahead is None:
            raise FitError(f"{self.preferred} cannot be evaluated at the runs' compute; fit another law.")
        return (
            f"Raising training compute {high / low:.3g}-fold, from {low:.2e} to {high:.2e} FLOP, lowered "
            f"held-out loss from {_spoken(start)} to {_spoken(now)} nats by {self.preferred}, "
            f"where a guess among {self.candidates} costs {self.chance:.3f}. "
            f"{FURTHER} times more ({FURTHER * high:.2e} FLOP) is predicted to reach {_spoken(ahead)} nats"
            f"{self._rivals()}, {self._trust(row)}."
        )

    def _rivals(self) -> str:
        """Give the range of all laws' predictions: the choice of form is often the larger doubt."""
        values = [row["loss_at_10x"] for row in self._law_rows if row["loss_at_10x"] is not None]
        if len(values) < 2:
            return ""
        return f" (the {len(values)} laws fitted say {min(values):.3f} to {max(values):.3f})"

    def _trust(self, row: dict[str, Any]) -> str:
        """Say how wrong the preferred law was where it could be checked."""
        if row["backtest_error"] is None:
            return "with too few runs to backtest the law"
        count = int(self.backtest.summary["num_predictions"].iloc[0])
        return (
            f"by a law that was wrong by {row['backtest_error']:.2%} on average over {count} predictions "
            f"of larger runs, {row['coverage']:.0%} of them inside its 95 % interval"
        )

    def to_dict(self) -> dict[str, Any]:
        """Describe the analysis in JSON-able values, as fits.json holds it."""
        return {
            "answer": self.answer(),
            "preferred": self.preferred,
            "candidates": self.candidates,
            "chance": self.chance,
            "laws": self.law_table(),
            "fits": {name: fit.to_dict() for name, fit in self.fits.items()},
            "backtest": {
                "rows": _records(self.backtest.rows),
                "summary": _records(self.backtest.summary),
            },
            "points": _records(self.points[[c for c in _SHOWN if c in self.points]]),
            "axes": [
                {"column": axis.column, "lines": len(axis.lines), "fit": axis.fit and axis.fit.to_dict()}
                for axis in self.axes
            ],
            "warnings": self.warnings,
        }


_SHOWN = ["run_id", X, Y, "frontier", "held_out"]


def analyse(runs: Runs, laws: Sequence[str], hold_out: str = "largest_compute") -> Analysis:
    """Fit, backtest and explain a runs table.

    Raises:
        FitError: a law or hold-out is unknown, or no law can be fitted.
        RunsError: the table lacks loss, train_flops or loss_candidates, or holds values no law can fit.
    """
    if hold_out not in HOLD_OUTS:
        raise FitError(f"There is no hold-out {hold_out!r}; {nearest(hold_out, HOLD_OUTS)}")
    for law in laws:
        find_law(law)
    select(runs, [X, "loss_candidates"], Y)
    points = _mark(runs.done.reset_index(drop=True))
    warnings = _counted(runs)
    fitted, points = _headline(points, warnings)
    fits = _fit_all(fitted, laws, warnings)
    judged = _judge(points, list(fits), warnings)
    candidates = candidates_of(points) or 0
    warnings += [doubt for fit in fits.values() for doubt in _doubts(fit, float(points[X].max()))]
    return Analysis(
        points=points,
        candidates=candidates,
        chance=chance_loss(candidates),
        fits=fits,
        backtest=judged,
        preferred=judged.preferred or _closest(fits),
        axes=axis_effects(points),
        warnings=list(dict.fromkeys(warnings)),
    )


def frontier(table: pd.DataFrame, x: str = X, y: str = Y) -> npt.NDArray[np.bool_]:
    """Mark the runs that no run with at most as much x beats in y: (rows,) booleans, ties included."""
    order = np.lexsort((table[y], table[x]))
    best = np.minimum.accumulate(table[y].to_numpy(dtype=float)[order])
    mask = np.empty(len(table), dtype=bool)
    mask[order] = table[y].to_numpy(dtype=float)[order] <= best
    return mask


def reach(fit: Fit, train_flops: float) -> Prediction | None:
    """Predict at a compute budget; None where the law is not positive there."""
    try:
        return fit.predict(**{fit.x[0]: train_flops})
    except FitError:
        return None


def _mark(done: pd.DataFrame) -> pd.DataFrame:
    """Add the columns `frontier` and `held_out`."""
    return done.assign(frontier=frontier(done), held_out=done[X] >= SAME_LEVEL * done[X].max())


def _counted(runs: Runs) -> list[str]:
    """Say how many runs are left out."""
    absent = len(runs) - len(runs.done)
    return [f"{absent} of {len(runs)} runs are not done and were left out."] if absent else []


def _headline(points: pd.DataFrame, warnings: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Choose the runs of the headline fits; give them, and the points with held_out as it came to be."""
    best = points[points["frontier"] & ~points["held_out"]]
    if len(best) >= FEWEST:
        return best, points
    below = points[~points["held_out"]]
    if len(below) >= FEWEST:
        warnings.append(
            f"Only {len(best)} frontier runs lie below the largest compute, so the laws were fitted to all "
            f"{len(below)} runs there; they describe average, not best, use of compute."
        )
        return below, points
    warnings.append(
        f"Only {len(below)} runs lie below the largest compute, so all {len(points)} done runs were fitted "
        "and none was held out."
    )
    return points, points.assign(held_out=False)


def _fit_all(fitted: pd.DataFrame, laws: Sequence[str], warnings: list[str]) -> dict[str, Fit]:
    """Fit every law that the runs can identify; raise FitError when there is none."""
    fits, reasons = {}, []
    for law in laws:
        try:
            fits[law] = fit_law(law, fitted, x=X, y=Y)
        except FitError as error:
            reasons.append(str(error))
    if not fits:
        raise FitError(f"No law could be fitted: {reasons[0] if reasons else 'no law was named.'}")
    warnings += [f"Left out: {reason}" for reason in reasons]
    return fits


def _judge(points: pd.DataFrame, laws: list[str], warnings: list[str]) -> Backtest:
    """Backtest on the frontier, or on all runs where it is too short; the largest is only ever predicted."""
    best = points[points["frontier"]]
    if len(best) < FEWEST_TO_BACKTEST:
        warnings.append(f"The frontier has only {len(best)} runs, so the backtest uses all {len(points)}.")
        best = points
    try:
        judged = backtest(laws, best, x=X, y=Y)
    except FitError as error:
        warnings.append(f"No backtest: {error}")
        return no_backtest()
    if judged.tied:
        warnings.append(
            f"The backtest prefers {judged.preferred}, but its {len(judged.rows) // len(laws)} "
            f"predictions cannot tell it from {' and '.join(judged.tied)}."
        )
    return judged


def _closest(fits: dict[str, Fit]) -> str:
    """Name the law with the lowest cost, where no backtest can choose."""
    return min(fits, key=lambda law: fits[law].objective)


def _doubts(fit: Fit, largest: float) -> list[str]:
    """Collect a fit's own warnings and the disagreement of its two kinds of interval."""
    name = (fit.law.exponents or fit.law.parameters)[-1]
    ahead = FURTHER * largest
    return [*fit.warnings, *(fit.cross_check(name, **{X: ahead}) if reach(fit, ahead) else [])]


def _known(value: Any) -> float | None:
    """Give a number JSON can hold, or None."""
    return float(value) if value is not None and np.isfinite(value) else None


def _spoken(prediction: Prediction) -> str:
    value, low, high = prediction
    return f"{value:.3f} (95 % {low:.3f} to {high:.3f})"


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """List a frame's rows as JSON-able mappings."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=15) or "[]")
    return rows
