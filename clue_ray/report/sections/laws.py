"""Two sections of doubt: which law and how it fared, and what would change the answer.

Takes an Analysis, gives sections. One idea: the interval of the answer holds for one form and one
cost; beside it stands what the other defensible choices answer, on the same scale.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from clue_ray.report import numbers, tables
from clue_ray.report.figures.files import NARROW, Picture, picture
from clue_ray.report.figures.laws import Alternative, alternatives, backtest_errors
from clue_ray.report.figures.style import law_label
from clue_ray.report.section import Section
from clue_ray.report.tables import Cell, Table, text, written
from clue_ray.scaling.answering.analysis import Analysis, reach
from clue_ray.scaling.answering.sentences import listing, number
from clue_ray.scaling.fitting.result import Fit, Prediction
from clue_ray.scaling.judging.backtest import LOOK_AHEAD

AUTHORS = (
    "The CLUE authors\N{RIGHT SINGLE QUOTATION MARK} own pre-publication curve is log-linear in "
    "compute rather than a "
    "power law, so no form is taken for granted here."
)
BIC = (
    "BIC weighs how well a law fits the same runs against the parameters it spends; the weights "
    "add up to 100%. It "
    "says nothing of larger runs, so the backtest decides."
)
FOREST = (6.8, 3.6)
MOST_INFLUENTIAL = 8
TOGETHER = 0.95
"""Correlation from which two parameters cannot be read one by one."""
CHOICES = {
    "log least squares": "least squares",
    "delta x 10": "Huber delta \N{MULTIPLICATION SIGN} 10",
    "delta / 10": "Huber delta / 10",
    "without the worst run": "worst run dropped",
    "embeddings counted": "embeddings counted",
}


def laws(analysis: Analysis) -> Section:
    """Show the laws as fitted and as judged."""
    rows = analysis.backtest.rows
    drawn: tuple[Picture, ...] = ()
    if len(rows):
        caption = (
            "Each law fitted to cheaper runs only, then asked for a more expensive one. Above zero "
            "it promised too "
            f"high a loss. Bars: 95% interval of a run, {law_label(analysis.preferred)}."
        )
        draw = partial(backtest_errors, rows, preferred=analysis.preferred)
        drawn = (picture("backtest", caption, draw, sizes=((5.2, 3.6), NARROW)),)
    words = (f"{_law_sentence(analysis)} {AUTHORS}",)
    after = (BIC,) if len(analysis.panels.bic) > 1 else ()
    table = tables.law_table(analysis)
    return Section("laws", "Which law", "laws", words, drawn, (table,), after=after)


def _law_sentence(analysis: Analysis) -> str:
    """Say which law the backtest prefers, by how much over the next best, and whether that means
    anything.
    """
    summary = analysis.backtest.summary
    errors = dict(zip(summary["law"], summary["mean_absolute_error"], strict=True))
    best, name = errors.pop(analysis.preferred, None), law_label(analysis.preferred)
    if best is None:
        return f"There were too few runs for a backtest; the {name} is shown: the simplest, then the closest fit."
    if analysis.no_answer_reason:
        return f"No law speaks: the {name} is drawn, and missed more expensive runs by {_missed(analysis, best)}."
    prefers = all(best <= error for error in errors.values())
    start = f"The backtest prefers the {name}" if prefers else f"The {name} speaks"
    if tied := [law for law in analysis.backtest.tied if law != analysis.preferred]:
        others = " or ".join(f"the {law_label(law)}" for law in tied)
        cautious = "cautious " if analysis.fits[analysis.preferred].law.floor else ""
        start = f"The backtest cannot tell the {name} from {others}, so the {cautious}{name} speaks"
    sentence = f"{start}: fitted to cheaper runs, it missed more expensive ones by {_missed(analysis, best)}"
    if errors:
        rival = min(errors, key=lambda law: errors[law])
        sentence += f", the {law_label(rival)} by {_nats(errors[rival])}"
    return f"{sentence}."


def _missed(analysis: Analysis, mean: float) -> str:
    """Give a mean error with the range behind it."""
    rows = analysis.backtest.rows
    own = rows[rows["law"] == analysis.preferred]
    each = (own["predicted"] - own["actual"]).abs()
    ends = f"{numbers.significant(each.min(), 2)} to {numbers.significant(each.max(), 2)}"
    return f"{_nats(mean)} on average ({ends} in {number(len(each))} predictions)"


def _nats(error: float) -> str:
    return f"{numbers.significant(error, 2)} nats"


def doubts(analysis: Analysis) -> Section:
    """Show what other choices, or one run less, would have answered, and what the runs do not
    identify.
    """
    fit = analysis.fits[analysis.preferred]
    known = _identified(fit, analysis.panels.identifiability[analysis.preferred].condition)
    base: dict[str, Any] = {
        "anchor": "doubts",
        "title": "What would change the answer",
        "nav": "doubts",
    }
    ahead = reach(fit, LOOK_AHEAD * float(analysis.points["train_flops"].max()))
    if analysis.no_answer_reason or ahead is None:
        return Section(**base, tables=(known,))
    drawn = picture(
        "alternatives",
        _caption(),
        partial(alternatives, _choices(analysis, ahead)),
        sizes=(FOREST, NARROW),
    )
    words = (_spread(analysis, ahead), *_most_influential(analysis, ahead))
    shown = (known, _sensitivity_table(analysis), _influence_table(analysis))
    return Section(**base, words=words, pictures=(drawn,), tables=shown)


def _caption() -> str:
    return (
        f"Held-out loss predicted at {LOOK_AHEAD} times the compute, by the answer with its 95% "
        f"interval (top, shaded), "
        "by other ways to fit the same law, by other laws, and with each run left out in turn."
    )


def _choices(analysis: Analysis, ahead: Prediction) -> list[Alternative]:
    """List the answer and its alternatives, as they are drawn."""
    panels = analysis.panels
    rest = panels.sensitivity.iloc[1:]
    named = [
        Alternative(_choice_label(row), [float(row["predicted"])]) for _, row in rest.iterrows()
    ]
    left_out = Alternative("each run left out", panels.influence["predicted"].dropna().to_list())
    return [Alternative("the answer", [ahead.value], ahead.low, ahead.high), *named, left_out]


def _choice_label(row: Any) -> str:
    """Name a row of the sensitivity table."""
    if row["variant"] == "another law":
        return law_label(row["law"])
    return CHOICES.get(row["variant"], row["variant"])


def _spread(analysis: Analysis, ahead: Prediction) -> str:
    """Say how far the alternatives lie apart, and whether the interval holds them."""
    rest = analysis.panels.sensitivity.iloc[1:].dropna(subset=["predicted"])
    if rest.empty:
        return "No other choice could be fitted."
    low, high = float(rest["predicted"].min()), float(rest["predicted"].max())
    outside = rest[(rest["predicted"] < ahead.low) | (rest["predicted"] > ahead.high)]
    ends = numbers.interval(*ahead)
    start = f"The answer is {ends} nats; {number(len(rest))} other choices give {_two(low, high)}"
    if outside.empty:
        return f"{start}, all within that interval."
    names = listing([_choice_label(row) for _, row in outside.iterrows()])
    return f"{start}, beyond that interval for {names}: the form of the law is a doubt that no interval holds."


def _most_influential(analysis: Analysis, ahead: Prediction) -> list[str]:
    moved = analysis.panels.influence.dropna(subset=["change"])
    if moved.empty:
        return []
    first = moved.iloc[0]
    inside = "within" if ahead.low <= first["predicted"] <= ahead.high else "beyond"
    where = analysis.points.loc[analysis.points["run_id"] == first["run"]]
    name = tables.describe(where.iloc[0]) if len(where) else str(first["run"])
    return [
        f"The run that moves it most is {name}: without it the law says "
        f"{numbers.significant(first['predicted'])} "
        f"nats, {inside} the interval."
    ]


def _two(low: float, high: float) -> str:
    return f"{numbers.significant(low)} to {numbers.significant(high)}"


def _identified(fit: Fit, condition: float) -> Table:
    """Say parameter by parameter what the runs identify, and which two are only known together."""
    rows = []
    for name in fit.law.parameters:
        low, high = fit.known_interval(name)
        unknown = low is None and high is None
        shown = (
            "not identified: these runs bound no value"
            if unknown
            else numbers.interval(fit.parameters[name], low, high)
        )
        rows.append((text(name.replace("_", " ")), text(shown)))
    return Table(
        (law_label(fit.law.name), "value [95%]"), tuple(rows), note=_together(fit, condition)
    )


def _together(fit: Fit, condition: float) -> str:
    """Name the two parameters that move together, if their correlation leaves neither to be read
    alone.
    """
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
        f"{names[0].upper()}{names[1:]} are known only together (correlation "
        f"{_correlation(value)}, condition of the "
        f"fit {numbers.significant(condition, 2)}): trust the curve within the runs, neither "
        f"number alone."
    )


def _correlation(value: float) -> str:
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def _sensitivity_table(analysis: Analysis) -> Table:
    rows = []
    for _, row in analysis.panels.sensitivity.iterrows():
        name = "the answer" if row["variant"] == "as fitted" else _choice_label(row)
        exponent = written(numbers.significant(row["exponent"]))
        rows.append((Cell(name, name, detail=str(row["reason"])), exponent, *_moved(row)))
    heads = ("choice", "exponent", "loss predicted, nats", "change")
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
    heads = ("run left out", "measured against law", "loss predicted without it, nats", "change")
    note = f"Of {len(analysis.panels.influence)} runs under the fit, those that move the prediction most."
    return Table(heads, rows, folded="Run by run", note=note)


def _name(points: pd.DataFrame, run: str) -> str:
    return f"{tables.describe(points.loc[run])} ({run[:12]})" if run in points.index else str(run)


def _moved(row: Any) -> tuple[Cell, Cell]:
    return written(numbers.significant(row["predicted"])), written(
        numbers.signed_percent(row["change"])
    )
