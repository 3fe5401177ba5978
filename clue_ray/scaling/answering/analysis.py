"""Analyse a runs table: laws of held-out loss in compute, their backtest, the effect of every axis.

The answer is a forecast at ten times the compute, which combines laws and is calibrated by backtest
(scaling/forecasting). The laws one by one are the evidence next to it. They are fitted to the
compute frontier without its largest level, which is held out. The law with the lowest backtest
error is preferred, provided that its loss falls with compute. The panels (BIC, sensitivity,
influence, identifiability) all examine one number: the prediction of the preferred law at ten times
the compute.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from clue_ray.errors import FitError, nearest
from clue_ray.runs import Runs, chance_loss
from clue_ray.scaling.answering import warnings as checks
from clue_ray.scaling.answering.axes import AxisEffect, axis_effects
from clue_ray.scaling.answering.sentences import few, forecasted, law_words, lowest, measured
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.frontier import LARGEST_LEVEL_SHARE, MIN_FITTED_RUNS, X, Y, mark
from clue_ray.scaling.fitting.result import Fit, Prediction
from clue_ray.scaling.fitting.table import candidates_of, select
from clue_ray.scaling.forecasting.forecast import Forecast, Forecaster
from clue_ray.scaling.judging.backtest import (
    BASELINE_LAW,
    LOOK_AHEAD,
    Backtest,
    backtest,
    no_backtest,
    select_law,
)
from clue_ray.scaling.judging.identifiability import Identifiability, identifiability
from clue_ray.scaling.judging.panels import compare_bic, influence, sensitivity
from clue_ray.scaling.laws.catalogue import find_law
from clue_ray.spec.columns import noun

FEWEST_TO_BACKTEST = 6  # frontier runs that give three predictions of a three-parameter law
HOLD_OUTS = ["largest_compute"]
_SHOWN = ["run_id", X, Y, "frontier", "held_out"]


@dataclass(frozen=True)
class Panels:
    """Further checks of the prediction of the preferred law.

    Attributes:
        at: the place of the prediction, one value per predictor.
        bic: see `compare_bic`.
        sensitivity: see `sensitivity`.
        influence: see `influence`.
        identifiability: by law name.
    """

    at: dict[str, float]
    bic: pd.DataFrame
    sensitivity: pd.DataFrame
    influence: pd.DataFrame
    identifiability: dict[str, Identifiability]

    def to_dict(self) -> dict[str, Any]:
        """Return the panels as JSON-able values."""
        return {
            "at": self.at,
            "bic": _records(self.bic),
            "sensitivity": _records(self.sensitivity),
            "influence": _records(self.influence),
            "identifiability": {
                law: found.to_dict() for law, found in self.identifiability.items()
            },
        }


@dataclass(frozen=True)
class Analysis:
    """Everything that a report states about the laws of a runs table.

    Attributes:
        points: the done runs, with bool columns `frontier` and `held_out`.
        candidates: the number of evaluation candidates K behind every loss; None for other losses.
        chance: the loss at chance, ln K; None where it is not known.
        fits: laws of the loss in train_flops by name, fitted without the held-out runs.
        backtest: how well each law predicted larger runs.
        preferred: the law selected by `select_law`; without an answer, the law to draw.
        no_answer_reason: why there is no forecast; empty where there is one.
        forecaster: forecasts at any compute beyond the runs; None without an answer.
        axes: the effect of each swept axis.
        panels: BIC, sensitivity, influence, identifiability of the preferred law's prediction.
        warnings: at most one sentence per subject, the most serious first.
    """

    points: pd.DataFrame
    candidates: int | None
    chance: float | None
    fits: dict[str, Fit]
    backtest: Backtest
    preferred: str
    no_answer_reason: str
    forecaster: Forecaster | None
    axes: list[AxisEffect]
    panels: Panels
    warnings: list[str]

    @cached_property
    def forecast(self) -> Forecast | None:
        """The loss forecast at `LOOK_AHEAD` times the largest compute; None without an answer."""
        if self.forecaster is None:
            return None
        return self.forecaster.at(LOOK_AHEAD * float(self.points[X].max()))

    def law_table(self) -> list[dict[str, Any]]:
        """List the laws, the preferred one first, with errors and intervals; None where unknown."""
        return [dict(row) for row in self._law_rows]

    @cached_property
    def _law_rows(self) -> list[dict[str, Any]]:
        order = [law for law in self.backtest.summary["law"] if law in self.fits]
        names = [self.preferred, *order, *self.fits]
        return [self._law_row(name, self.fits[name]) for name in dict.fromkeys(names)]

    def _law_row(self, name: str, fit: Fit) -> dict[str, Any]:
        judged = self.backtest.summary.set_index("law")
        exponent = fit.law.exponents[0] if fit.law.exponents else None
        ends = fit.known_interval(exponent) if exponent else (None, None)
        ahead = _reach(fit, LOOK_AHEAD * float(self.points[X].max()))
        return {
            "law": name,
            "formula": fit.law.describe(fit.parameters),
            "backtest_error": _known(judged["mean_absolute_relative_error"].get(name)),
            "backtest_error_nats": _known(judged["mean_absolute_error"].get(name)),
            "coverage": _known(judged["coverage"].get(name)),
            **self._held_out_errors(fit),
            "exponent": fit.parameters[exponent] if exponent else None,
            "exponent_low": ends[0],
            "exponent_high": ends[1],
            "loss_at_10x": ahead and _known(ahead.value),
            # A low end of 0 is a log of the loss without a bound.
            "loss_at_10x_low": (ahead and _known(ahead.low)) or None,
            "loss_at_10x_high": ahead and _known(ahead.high),
        }

    def _held_out_errors(self, fit: Fit) -> dict[str, float | None]:
        """Return the error on the best held-out run, predicted - measured, relative and in nats."""
        held = self.points[self.points["held_out"]]
        if held.empty:
            return {"held_out_error": None, "held_out_error_nats": None}
        best = held.iloc[int(held[Y].argmin())]
        gap = float(fit.curve([best[X]])[0]) - float(best[Y])
        return {"held_out_error": gap / float(best[Y]), "held_out_error_nats": gap}

    def answer(self) -> str:
        """Describe the gain from compute so far and the forecast at ten times the compute."""
        scored = (self.points, self.candidates, self.chance)
        if self.forecast is None:
            return f"{self.no_answer_reason} {lowest(*scored)}"
        return f"{measured(*scored)} {forecasted(self.forecast)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the analysis as JSON-able values, the content of fits.json."""
        return {
            "answer": self.answer(),
            "preferred": self.preferred,
            "no_answer_reason": self.no_answer_reason,
            "forecast": self.forecast and self.forecast.to_dict(),
            "candidates": self.candidates,
            "chance": self.chance,
            "laws": self.law_table(),
            "fits": {name: fit.to_dict() for name, fit in self.fits.items()},
            "backtest": {
                "rows": _records(self.backtest.rows),
                "summary": _records(self.backtest.summary),
            },
            **self.panels.to_dict(),
            "points": _records(self.points[[c for c in _SHOWN if c in self.points]]),
            "axes": [
                {
                    "column": axis.column,
                    "lines": len(axis.lines),
                    "fit": axis.fit and axis.fit.to_dict(),
                }
                for axis in self.axes
            ],
            "warnings": self.warnings,
        }


def analyse(runs: Runs, laws: Sequence[str], hold_out: str = "largest_compute") -> Analysis:
    """Fit the laws to a runs table, backtest them and collect the warnings.

    Raises:
        FitError: a law or hold-out is unknown, or no law can be fitted.
        RunsError: the table lacks loss or train_flops, or has values that no law can be fitted to.

    Example:
        >>> import pandas as pd
        >>> from clue_ray import Runs, analyse
        >>> table = pd.DataFrame({"train_flops": [1e12, 1e13, 1e14, 1e15, 1e16, 1e17]})
        >>> table["loss"] = 2 + 3 * (table["train_flops"] / 1e12) ** -0.2
        >>> analysis = analyse(Runs(table.assign(loss_candidates=256)), ["power_law_plus_constant"])
        >>> analysis.preferred
        'power_law_plus_constant'
    """
    if hold_out not in HOLD_OUTS:
        raise FitError(f"There is no hold-out {hold_out!r}; {nearest(hold_out, HOLD_OUTS)}")
    # A law that loses to the plain power law is never preferred, so that one is always backtested.
    laws = list(dict.fromkeys([*laws, BASELINE_LAW]))
    pooled = "loss_candidates" in runs.table and runs.table["loss_candidates"].notna().any()
    # Without candidates chance is not known, so no law can start from it.
    laws = [law for law in laws if not find_law(law).lacks_ceiling or pooled]
    select(runs, [X, "loss_candidates"] if pooled else [X], Y)
    points = mark(runs.done.reset_index(drop=True))
    fitted, points, basis = headline(points)
    fits, left_out = _fit_all(fitted, laws)
    judged, limits = _judge(points, list(fits))
    preferred, no_answer_reason = select_law(judged, fits, points[X])
    candidates = candidates_of(points)
    chance = chance_loss(candidates) if candidates else None
    forecaster, no_answer_reason = _forecaster(points, chance, no_answer_reason)
    fit, far = fits[preferred], LOOK_AHEAD * float(points[X].max())
    ahead = None if no_answer_reason else _reach(fit, far)
    made = forecaster.at(far) if forecaster else None
    panels = _build_panels(preferred, fits, fitted, list(fits), {X: far})
    warnings = [
        *(made.warnings if made else ()),
        *checks.open_question(points, made),
        *(basis or checks.few_runs(fit)),
        *limits,
        *checks.influential(panels.influence, ahead),
        *checks.levers(points),
        *checks.one_seed(points),
        *checks.above_chance(points, chance),
        *checks.floors(fits, checks.decades_of(fitted[X])),
        *checks.at_bound(fit),
        *panels.identifiability[preferred].warnings,
        *left_out,
        *_counted(runs),
    ]
    return Analysis(
        points=points,
        candidates=candidates,
        chance=chance,
        fits=fits,
        backtest=judged,
        preferred=preferred,
        no_answer_reason=no_answer_reason,
        forecaster=forecaster,
        axes=axis_effects(points),
        panels=panels,
        warnings=warnings,
    )


def _forecaster(
    points: pd.DataFrame, chance: float | None, no_answer_reason: str
) -> tuple[Forecaster | None, str]:
    """Return what forecasts beyond the runs, or None with the reason why nothing does."""
    if no_answer_reason:
        return None, no_answer_reason
    try:
        return Forecaster.build(points, x=X, y=Y, chance=chance), ""
    except FitError as error:
        return None, f"There is no answer yet for more {noun(X)}. {error}"


def _reach(fit: Fit, train_flops: float) -> Prediction | None:
    """Predict the loss at a compute budget; None where the law is not positive there."""
    try:
        return fit.predict(**{fit.x[0]: train_flops})
    except FitError:
        return None


def _counted(runs: Runs) -> list[str]:
    """Count the runs that are left out because they are not done."""
    absent = len(runs) - len(runs.finished)
    are, were = ("is", "was") if absent == 1 else ("are", "were")
    return [f"{absent} of {len(runs)} runs {are} not done and {were} left out."] if absent else []


def headline(points: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Select the runs of the headline fits.

    Returns the runs to fit, the points with their final column `held_out`, and a warning where the
    fit had to leave the frontier.
    """
    # Runs above the frontier's largest compute did worse, so a law of the frontier is tested on the
    # largest run of the frontier.
    top = points[X] >= LARGEST_LEVEL_SHARE * points.loc[points["frontier"], X].max()
    best = points[points["frontier"] & ~top]
    if len(best) >= MIN_FITTED_RUNS:
        return best, points.assign(held_out=top), []
    below = points[~points["held_out"]]
    if len(below) >= MIN_FITTED_RUNS:
        why = (
            f"{few(len(best), 'frontier run', 'lies', 'lie')} below the largest {noun(X)}, "
            f"so the laws were fitted to all {len(below)} runs there; they describe average, "
            f"not best, use of {noun(X)}."
        )
        return below, points, [why]
    why = (
        f"{few(len(below), 'run', 'lies', 'lie')} below the largest {noun(X)}, "
        f"so all {len(points)} done runs were fitted and none was held out."
    )
    return points, points.assign(held_out=False), [why]


def _fit_all(fitted: pd.DataFrame, laws: Sequence[str]) -> tuple[dict[str, Fit], list[str]]:
    """Fit every law that has enough runs, and name those left out with the reason.

    Raises:
        FitError: no law can be fitted.
    """
    fits, reasons = {}, {}
    for law in laws:
        try:
            fits[law] = fit_law(law, fitted, x=X, y=Y)
        except FitError as error:
            reasons[law] = str(error)
    if not fits:
        raise FitError(
            f"No law could be fitted: {next(iter(reasons.values()), 'no law was named.')}"
        )
    named = [reason.replace(law, law_words(law)) for law, reason in reasons.items()]
    return fits, [f"Left out: {' '.join(named)}"] if named else []


def _judge(points: pd.DataFrame, laws: list[str]) -> tuple[Backtest, list[str]]:
    """Backtest on the frontier, or on all runs, with a warning, where it has too few."""
    best, limits = points[points["frontier"]], []
    if len(best) < FEWEST_TO_BACKTEST:
        limits = [
            f"The frontier has only {len(best)} run{'s' * (len(best) != 1)}, so the backtest uses "
            f"all {len(points)}."
        ]
        best = points
    try:
        return backtest(laws, best, x=X, y=Y), limits
    except FitError as error:
        return no_backtest(), [f"No backtest: {error}"]


def _build_panels(
    law: str,
    fits: Mapping[str, Fit],
    table: pd.DataFrame,
    laws: Sequence[str],
    at: dict[str, float],
) -> Panels:
    """Evaluate every panel for the prediction of a law, on the runs that the law was fitted to."""
    columns: dict[str, Any] = {"x": fits[law].x, "y": fits[law].y}
    return Panels(
        at,
        compare_bic(laws, table, **columns),
        sensitivity(law, table, at=at, laws=laws, **columns),
        influence(law, table, at=at, **columns),
        {name: identifiability(fit) for name, fit in fits.items()},
    )


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """List the rows of a frame as JSON-able mappings."""
    rows: list[dict[str, Any]] = json.loads(
        frame.to_json(orient="records", double_precision=15) or "[]"
    )
    return rows


def _known(value: Any) -> float | None:
    """Return a number that JSON can hold, or None."""
    return float(value) if value is not None and np.isfinite(value) else None
