"""Two sections on the laws: which law is preferred and why, and what would change the answer.

The interval of the answer assumes one law and one cost function. The second section shows the
predictions of the other defensible choices on the same scale.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from clue_ray.report import numbers, tables
from clue_ray.report.figures.files import NARROW, Picture, picture
from clue_ray.report.figures.laws import Alternative, backtest_errors, draw_alternatives
from clue_ray.report.figures.style import law_label
from clue_ray.report.section import Section
from clue_ray.report.tables import Cell, Table, text, written
from clue_ray.scaling.answering.analysis import Analysis
from clue_ray.scaling.answering.sentences import listing, number
from clue_ray.scaling.fitting.result import Fit
from clue_ray.scaling.forecasting.forecast import Forecast
from clue_ray.scaling.judging.backtest import LOOK_AHEAD
from clue_ray.spec.columns import in_unit, noun, short_label, with_unit

AUTHORS = (
    "The CLUE authors\N{RIGHT SINGLE QUOTATION MARK} own pre-publication curve is log-linear in "
    "compute rather than a power law, so no form of law is assumed here."
)
BIC = (
    "BIC weighs the fit of a law to the same runs against its number of parameters; the weights "
    "add up to 100%. It does not measure predictions of larger runs, so the backtest decides."
)
FOREST = (6.8, 3.6)
MOST_INFLUENTIAL = 8
TOGETHER = 0.95
"""Correlation above which two parameters are not identified separately."""
CHOICES = {
    "log least squares": "least squares",
    "delta x 10": "Huber delta \N{MULTIPLICATION SIGN} 10",
    "delta / 10": "Huber delta / 10",
    "without the worst run": "worst run dropped",
    "embeddings counted": "embeddings counted",
}


def laws(analysis: Analysis) -> Section:
    """Show the fitted laws with their backtest errors."""
    rows = analysis.backtest.rows
    drawn: tuple[Picture, ...] = ()
    if len(rows):
        caption = (
            "Error of each law, fitted to cheaper runs only, on a more expensive run. Above zero "
            "the predicted loss is too high. Bars: 95% interval of a run, "
            f"{law_label(analysis.preferred)}."
        )
        draw = partial(backtest_errors, rows, preferred=analysis.preferred)
        drawn = (picture("backtest", caption, draw, sizes=((5.2, 3.6), NARROW)),)
    # The sentence is about encoders of users, so runs of other models go without it.
    words = (f"{_law_sentence(analysis)} {AUTHORS if analysis.candidates else ''}".rstrip(),)
    after = (BIC,) if len(analysis.panels.bic) > 1 else ()
    table = tables.law_table(analysis)
    return Section("laws", "Which law", "laws", words, drawn, (table,), after=after)


def _law_sentence(analysis: Analysis) -> str:
    """State which law is preferred, its backtest error, and that of the next best law."""
    summary = analysis.backtest.summary
    errors = dict(zip(summary["law"], summary["mean_absolute_error"], strict=True))
    best, name = errors.pop(analysis.preferred, None), law_label(analysis.preferred)
    if best is None:
        return (
            f"There were too few runs for a backtest. The {name} is shown: the law with the fewest "
            "parameters, and among those the closest fit."
        )
    error = f"its error on more expensive runs was {_mean_error(analysis, best)}"
    if analysis.no_answer_reason:
        return f"No law is preferred. The {name} is drawn; {error}."
    lowest = all(best <= error for error in errors.values())
    start = f"The {name} is preferred{': it has the lowest backtest error' if lowest else ''}"
    sentence = f"{start}. Fitted to cheaper runs, {error}"
    if errors:
        rival = min(errors, key=lambda law: errors[law])
        sentence += f", and that of the {law_label(rival)} {_nats(errors[rival])}"
    return f"{sentence}."


def _mean_error(analysis: Analysis, mean: float) -> str:
    """Format a mean error with its range."""
    rows = analysis.backtest.rows
    own = rows[rows["law"] == analysis.preferred]
    each = (own["predicted"] - own["actual"]).abs()
    ends = f"{numbers.significant(each.min(), 2)} to {numbers.significant(each.max(), 2)}"
    return f"{_nats(mean)} on average ({ends} in {number(len(each))} predictions)"


def _nats(error: float) -> str:
    return f"{numbers.significant(error, 2)}{in_unit('loss')}"


def alternatives(analysis: Analysis) -> Section:
    """Show the predictions of other choices and without each run, and the identified parameters."""
    fit = analysis.fits[analysis.preferred]
    known = _identified(fit, analysis.panels.identifiability[analysis.preferred].condition)
    base: dict[str, Any] = {
        "anchor": "alternatives",
        "title": "What would change the answer",
        "nav": "alternatives",
    }
    ahead = analysis.forecast
    if ahead is None:
        return Section(**base, tables=(known,))
    drawn = picture(
        "alternatives",
        _caption(),
        partial(draw_alternatives, _choices(analysis, ahead)),
        sizes=(FOREST, NARROW),
    )
    words = (_spread(analysis, ahead), *_most_influential(analysis, ahead))
    shown = (known, _sensitivity_table(analysis), _influence_table(analysis))
    return Section(**base, words=words, pictures=(drawn,), tables=shown)


def _caption() -> str:
    return (
        f"{short_label('loss').capitalize()} predicted at {LOOK_AHEAD} times the "
        f"{noun('train_flops')}: the forecast with its 80% interval (top, shaded), the preferred "
        "law, other ways to fit it, other laws, and the preferred law with each run left out in "
        "turn."
    )


def _choices(analysis: Analysis, ahead: Forecast) -> list[Alternative]:
    """List the forecast and its alternatives, in the order of the figure."""
    panels = analysis.panels
    rest = panels.sensitivity.dropna(subset=["predicted"])
    named = [
        Alternative(_choice_label(row), [float(row["predicted"])]) for _, row in rest.iterrows()
    ]
    left_out = Alternative("each run left out", panels.influence["predicted"].dropna().to_list())
    low, high = ahead.interval(0.8)
    return [Alternative("the forecast", [ahead.value], low, high), *named, left_out]


def _choice_label(row: Any) -> str:
    """Return the name of a row of the sensitivity table."""
    if row["variant"] == "as fitted":
        return f"{law_label(row['law'])} (preferred)"
    if row["variant"] == "another law":
        return law_label(row["law"])
    return CHOICES.get(row["variant"], row["variant"])


def _spread(analysis: Analysis, ahead: Forecast) -> str:
    """State the range of single laws, and which lie outside the interval of the forecast."""
    rest = analysis.panels.sensitivity.dropna(subset=["predicted"])
    if rest.empty:
        return "No single law could be fitted."
    low, high = float(rest["predicted"].min()), float(rest["predicted"].max())
    lowest, highest = ahead.interval(0.8)
    outside = rest[~rest["predicted"].between(lowest, highest)]
    start = (
        f"The forecast is {numbers.significant(ahead.value)}{in_unit('loss')} (80 % interval: "
        f"{_two(lowest, highest)}); {number(len(rest))} single fits give {_two(low, high)}"
    )
    if outside.empty:
        return f"{start}, all within that interval."
    names = listing([_choice_label(row) for _, row in outside.iterrows()])
    return f"{start}; outside the interval: {names}."


def _most_influential(analysis: Analysis, ahead: Forecast) -> list[str]:
    moved = analysis.panels.influence.dropna(subset=["change"])
    if moved.empty:
        return []
    first = moved.iloc[0]
    low, high = ahead.interval(0.8)
    inside = "within" if low <= first["predicted"] <= high else "outside"
    where = analysis.points.loc[analysis.points["run_id"] == first["run"]]
    name = tables.describe(where.iloc[0]) if len(where) else str(first["run"])
    return [
        f"The run with the largest influence on the preferred law is {name}: without it the law "
        f"predicts {numbers.significant(first['predicted'])}{in_unit('loss')}, {inside} the "
        "interval."
    ]


def _two(low: float, high: float) -> str:
    return f"{numbers.significant(low)} to {numbers.significant(high)}"


def _identified(fit: Fit, condition: float) -> Table:
    """List each parameter with its interval, and note two that are only known together."""
    rows = []
    for name in fit.law.parameters:
        low, high = fit.known_interval(name)
        unknown = low is None and high is None
        shown = (
            "not identified: these runs do not bound it"
            if unknown
            else numbers.interval(fit.parameters[name], low, high)
        )
        rows.append((text(name.replace("_", " ")), text(shown)))
    return Table(
        (law_label(fit.law.name), "value [95%]"), tuple(rows), note=_together(fit, condition)
    )


def _together(fit: Fit, condition: float) -> str:
    """Name the two parameters with the largest correlation, if it is above `TOGETHER`."""
    spread = fit.likelihood.spread
    deviation = np.sqrt(np.diag(spread))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.nan_to_num(np.triu(spread / np.outer(deviation, deviation), 1))
    row, column = np.unravel_index(int(np.abs(correlation).argmax()), correlation.shape)
    value = float(correlation[row, column])
    if abs(value) < TOGETHER:
        return ""
    names = listing(
        [fit.law.parameters[place].replace("_", " ") for place in (int(row), int(column))]
    )
    return (
        f"{names[0].upper()}{names[1:]} are identified only together (correlation "
        f"{_correlation(value)}, condition number of the fit "
        f"{numbers.significant(condition, 2)}): trust the curve within the range of the runs, but "
        "neither value alone."
    )


def _correlation(value: float) -> str:
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def _sensitivity_table(analysis: Analysis) -> Table:
    rows = []
    for _, row in analysis.panels.sensitivity.iterrows():
        name = _choice_label(row)
        exponent = written(numbers.significant(row["exponent"]))
        rows.append((Cell(name, name, detail=str(row["reason"])), exponent, *_moved(row)))
    heads = ("choice", "exponent", with_unit(f"predicted {noun('loss')}", "loss"), "change")
    return Table(heads, tuple(rows), 0, folded="Choice by choice")


def _influence_table(analysis: Analysis) -> Table:
    points = analysis.points.set_index("run_id", drop=False)
    shown = analysis.panels.influence.head(MOST_INFLUENTIAL)
    rows = tuple(
        (
            text(_name(points, row["run"])),
            written(numbers.signed_percent(np.expm1(row["residual"]))),
            *_moved(row),
        )
        for _, row in shown.iterrows()
    )
    heads = (
        "run left out",
        "residual",
        with_unit(f"predicted {noun('loss')} without it", "loss"),
        "change",
    )
    note = (
        f"Of the {len(analysis.panels.influence)} runs of the fit, those with the largest "
        "influence on the prediction. Residuals are relative to the law."
    )
    return Table(heads, rows, folded="Run by run", note=note)


def _name(points: pd.DataFrame, run: str) -> str:
    told = tables.describe(points.loc[run]) if run in points.index else str(run)
    return told if told == run else f"{told} ({run[:12]})"


def _moved(row: Any) -> tuple[Cell, Cell]:
    return written(numbers.significant(row["predicted"])), written(
        numbers.signed_percent(row["change"])
    )
