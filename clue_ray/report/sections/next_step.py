"""The section on what to double next: the gain and the cost of doubling each axis at the best run.

The gains come from one law over all swept axes, because the forecast knows compute only. Next to
each is what the forecast expects of the same compute, spent as along the frontier. Where the
intervals of the gains overlap, the page states that the order of the axes is not settled.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from clue_ray.errors import ClueRayError
from clue_ray.report import numbers, tables
from clue_ray.report.figures.files import NARROW, picture
from clue_ray.report.figures.style import FAINT, INK, LAW_COLOUR
from clue_ray.report.section import Section
from clue_ray.report.tables import Cell, Table, text, written
from clue_ray.scaling.answering.analysis import Analysis
from clue_ray.scaling.answering.axes import AxisEffect, joint_fit
from clue_ray.scaling.answering.sentences import flop_words, listing
from clue_ray.scaling.deciding.allocate import Recipe, allocate
from clue_ray.scaling.deciding.budget import marginal_returns
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.result import Fit
from clue_ray.scaling.judging.backtest import LOOK_AHEAD
from clue_ray.spec.columns import in_unit, noun, short_label, with_unit

SHORT = (6.8, 2.3)
FARTHEST = 10.0
"""Largest factor beyond the range of the runs for a recipe that is shown."""


class Doubling(NamedTuple):
    """The gain of doubling one axis alone.

    Attributes:
        axis: the column of the axis.
        value: the value before doubling.
        gain, low, high: decrease of the loss in nats, with its 95% interval.
        costs: smallest and largest factor on compute of a doubling between runs; None if unknown.
        forecast: decrease of the loss in nats that is forecast for as much compute, with its 80%
            interval; None where the cost is unknown or leads to no more compute than was spent.
    """

    axis: str
    value: float
    gain: float
    low: float
    high: float
    costs: tuple[float, float] | None
    forecast: tuple[float, float, float] | None = None


def next_step(analysis: Analysis) -> Section | None:
    """Rank the axes by the gain of doubling each; None without swept axes or a law over them."""
    found = joint_fit(analysis.points)
    if found is None or analysis.no_answer_reason:
        return None
    fit, left_out = found
    best = _best(analysis.points)
    # A larger value of these axes was run and did worse, so doubling them is not an option.
    passed = {
        effect.column: larger for effect in analysis.axes if (larger := larger_value(effect, best))
    }
    rows = [row for row in _doublings(fit, analysis) if row.axis not in passed]
    points = (*_omitted(left_out), *(no_gain(axis, best, *found) for axis, found in passed.items()))
    title = "What to double next"
    if not rows:
        none = (
            "For every axis of the law, a run with a larger value than the best run had a higher "
            "loss."
        )
        return Section("next", title, "what next", (none,), points=points)
    caption = (
        f"Predicted decrease of {short_label('loss')} when one axis alone is doubled from the best "
        "run "
        f"({tables.describe(best)})."
    )
    drawn = picture("doubling", caption, partial(gains, rows), sizes=(SHORT, NARROW))
    told = " ".join(filter(None, (lead(rows), same_compute(rows[0]), certainty(rows))))
    words = (told, *_recipe(analysis))
    return Section(
        "next", title, "what next", words, (drawn,), (_table(rows, fit),), points, lead=lead(rows)
    )


def _best(points: pd.DataFrame) -> pd.Series:
    return points.sort_values(["loss", "train_flops"], kind="stable").iloc[0]


def larger_value(effect: AxisEffect, best: pd.Series) -> tuple[float, float] | None:
    """Return the next larger value with a run, all else equal, and its increase of the loss.

    None where no run has a larger value than the best run.
    """
    for line in effect.lines:
        above = line[line[effect.column] > best[effect.column]]
        if best["run_id"] in set(line["run_id"]) and len(above):
            return float(above[effect.column].iloc[0]), float(above["loss"].iloc[0] - best["loss"])
    return None


def no_gain(axis: str, best: pd.Series, value: float, lost: float) -> str:
    """State that a larger value of an axis gave a higher loss."""
    return (
        f"No gain is expected from {short_label(axis)}: a run with {numbers.compact(value)} "
        f"instead of the best run's {numbers.compact(best[axis])}, all else equal, had a loss "
        f"{lost:.3f}{in_unit('loss')} higher (one run each)."
    )


def _doublings(fit: Fit, analysis: Analysis) -> list[Doubling]:
    """Return the gain of doubling each axis of the law at the best run, the largest first."""
    best = _best(analysis.points)
    costs = {effect.column: _cost_of_doubling(effect) for effect in analysis.axes}
    place: dict[str, Any] = {axis: float(best[axis]) for axis in fit.x}
    with np.errstate(all="ignore"):  # a profile may reach parameters where the law overflows
        found = marginal_returns(fit, **place)
    rows = found[["axis", "value", "gain", "low", "high"]].to_numpy().tolist()
    return [
        Doubling(axis, value, gain, low, high, cost, _forecast(analysis, best, cost))
        for axis, value, gain, low, high in rows
        for cost in [costs.get(axis)]
    ]


def _forecast(
    analysis: Analysis, best: pd.Series, costs: tuple[float, float] | None
) -> tuple[float, float, float] | None:
    """Return the decrease of the loss that is forecast for the compute of a doubling."""
    forecaster = analysis.forecaster
    if costs is None or forecaster is None:
        return None
    at = float(best["train_flops"]) * float(np.sqrt(costs[0] * costs[1]))
    if at <= forecaster.end:
        return None
    made, now = forecaster.at(at), float(best["loss"])
    low, high = made.interval(0.8)
    return now - made.value, now - high, now - low


def _cost_of_doubling(effect: AxisEffect) -> tuple[float, float] | None:
    """Return the smallest and largest factor on compute per doubling, from consecutive runs."""
    factors = []
    for line in effect.lines:
        x, flops = (
            np.log2(line[effect.column].astype(float)),
            np.log2(line["train_flops"].astype(float)),
        )
        steps = np.diff(x) > 0
        factors += list(2.0 ** (np.diff(flops)[steps] / np.diff(x)[steps]))
    return (float(min(factors)), float(max(factors))) if factors else None


def lead(rows: list[Doubling]) -> str:
    """State which axis to double, with the predicted gain and the cost."""
    first, *others = rows
    name = short_label(first.axis)
    start = (
        f"Doubling {name} alone, from {numbers.compact(first.value)} to "
        f"{numbers.compact(2 * first.value)}, is predicted to lower {short_label('loss')} by "
        f"{_gain(first)}{in_unit('loss')}{_price(first)}"
    )
    return start + (", the largest gain of the swept axes." if others else ".")


def same_compute(row: Doubling) -> str:
    """State what is forecast for the compute of a doubling; empty where nothing is."""
    if row.forecast is None:
        return ""
    return (
        "For as much compute, spent as along the frontier, the forecast is a decrease of "
        f"{_three(*row.forecast)}{in_unit('loss')} (80% interval)."
    )


def certainty(rows: list[Doubling]) -> str:
    """State whether the runs settle which axis gains most, and whether it gains at all."""
    first, *others = rows
    level = [short_label(row.axis) for row in others if row.high > first.low]
    sentences = []
    if level:
        sentences.append(
            f"The order is not settled: the interval of {listing(level)} overlaps this one."
        )
    if first.low < 1e-3 * max(first.gain, 1e-9):
        sentences.append("A gain is not identified: the interval reaches zero.")
    sentences.append(
        "These are extrapolations: at the other settings of the best run, no run has a larger "
        "value."
    )
    return " ".join(sentences)


def _price(row: Doubling) -> str:
    return f" for {_cost(row)} times the compute" if row.costs else ""


def _cost(row: Doubling) -> str:
    if row.costs is None:
        return numbers.ABSENT
    low, high = (numbers.significant(cost, 2) for cost in row.costs)
    return low if low == high else f"{low} to {high}"


def _gain(row: Doubling) -> str:
    """Format a gain in nats with its interval, to three decimals: the profile is not finer."""
    return _three(row.gain, row.low, row.high)


def _three(*ends: float) -> str:
    value, low, high = (f"{end:.3f}" if np.isfinite(end) else "unbounded" for end in ends)
    return f"{value} [{low}, {high}]"


def _table(rows: list[Doubling], fit: Fit) -> Table:
    heads = (
        "axis",
        "from",
        "to",
        f"{with_unit('gain', 'loss')} [95%]",
        "compute, times",
        f"{with_unit('forecast for it', 'loss')} [80%]",
    )
    cells = tuple(
        (
            text(short_label(row.axis)),
            written(numbers.compact(row.value)),
            written(numbers.compact(2 * row.value)),
            written(_gain(row)),
            Cell(_cost(row), _cost(row), numeric=True),
            written(_three(*row.forecast) if row.forecast else numbers.ABSENT),
        )
        for row in rows
    )
    note = (
        f"A floor plus one power law per axis, fitted to {fit.num_runs} runs, including the "
        "largest. Compute is the factor per doubling between runs that differ in this axis only. "
        "The last column is the forecast decrease for as much compute, spent as along the frontier."
    )
    warnings = "; ".join(warning.partition(": ")[2].rstrip(".") for warning in fit.warnings)
    return Table(
        heads, cells, note=f"{note} Warnings of this fit: {warnings}." if warnings else note
    )


def gains(rows: list[Doubling], ax: Axes) -> Axes:
    """Draw the gain of each doubling in nats, with its 95% interval."""
    top = max(row.high if np.isfinite(row.high) else 2 * row.gain for row in rows)
    for place, row in enumerate(rows):
        colour: dict[str, Any] = {"color": LAW_COLOUR if place == 0 else INK}
        ax.plot(
            [row.low, min(row.high, 1.1 * top)], [place, place], linewidth=2, alpha=0.6, **colour
        )
        ax.plot(row.gain, place, "o", markersize=6, **colour)
    ax.set_yticks(
        range(len(rows)), [f"{short_label(r.axis)}\n\N{MULTIPLICATION SIGN}2" for r in rows]
    )
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(0, 1.1 * max(top, 1e-3))
    ax.set_xlabel(with_unit(f"decrease of {short_label('loss')}", "loss"))
    ax.grid(axis="x", color=FAINT, linewidth=0.5)
    ax.tick_params(axis="y", length=0)
    return ax


def _recipe(analysis: Analysis) -> list[str]:
    """State the best split of ten times the largest compute between size and tokens."""
    points = analysis.points
    if (
        not {"non_embedding_params", "train_tokens"} <= set(points)
        or points["train_tokens"].isna().any()
    ):
        return []
    budget = LOOK_AHEAD * float(points["train_flops"].max())
    try:
        fit = fit_law(
            "parametric_loss", points, x=["non_embedding_params", "train_tokens"], y="loss"
        )
        recipe = allocate(fit, budget)
    except ClueRayError:
        return []
    budget_words = f"{flop_words(budget)}, ten times the largest {noun('train_flops')},"
    if not is_bounded(recipe, points):
        return [
            f"These runs do not identify how {budget_words} should be split between size and "
            "training tokens: the best split lies far outside the range of the runs, or its "
            "interval is unbounded."
        ]
    size, tokens = (
        f"{numbers.compact(p.value)} [{numbers.compact(p.low)}, {numbers.compact(p.high)}]"
        for p in (recipe.non_embedding_params, recipe.train_tokens)
    )
    return [
        f"For {budget_words} the best split by a law in size and tokens is {size} non-embedding "
        f"parameters trained on {tokens} tokens (95%).{_forecast_of(analysis)}"
    ]


def _forecast_of(analysis: Analysis) -> str:
    """State the forecast at ten times the largest compute, where there is one."""
    made = analysis.forecast
    if made is None:
        return ""
    value = numbers.interval(made.value, *made.interval(0.8))
    return f" The forecast {noun('loss')} there is {value}{in_unit('loss')} (80%)."


def is_bounded(recipe: Recipe, points: pd.DataFrame) -> bool:
    """Return whether a recipe has a bounded interval and lies close to the range of the runs."""
    for place, column in (
        (recipe.non_embedding_params, "non_embedding_params"),
        (recipe.train_tokens, "train_tokens"),
    ):
        least, most = float(points[column].min()) / FARTHEST, float(points[column].max()) * FARTHEST
        if not (place.low > 0 and np.isfinite(place.high) and least <= place.value <= most):
            return False
    return True


def _omitted(axes: list[str]) -> list[str]:
    """Name the swept axes that the law leaves out."""
    names = listing([short_label(axis) for axis in axes])
    return [f"There are too few runs to include {names} in the law."] if axes else []
