"""What to double next: the gain of doubling each axis at the best run, its interval, and what it
costs.

Takes the finished runs and the Analysis, gives a section. One idea: a law over all axes that were
swept tells what one doubling of each buys; where the intervals overlap the page says that the order
is open.
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
from clue_ray.scaling.answering.sentences import listing
from clue_ray.scaling.deciding.allocate import Recipe, allocate
from clue_ray.scaling.deciding.budget import marginal_returns
from clue_ray.scaling.fitting.fit import Fit, fit_law
from clue_ray.scaling.judging.backtest import LOOK_AHEAD
from clue_ray.spec.columns import short_label

SHORT = (6.8, 2.3)
FARTHEST = 10.0
"""How far beyond the runs a recipe may lie to be quoted, as a factor."""


class Doubling(NamedTuple):
    """What doubling one axis from `value` gains in nats, 95% interval, and the factors on compute
    that it took.
    """

    axis: str
    value: float
    gain: float
    low: float
    high: float
    costs: tuple[float, float] | None


def next_step(analysis: Analysis) -> Section | None:
    """Rank the axes by what doubling each would gain; None where nothing was swept or no law over
    the axes holds.
    """
    found = joint_fit(analysis.points)
    if found is None or analysis.no_answer_reason:
        return None
    fit, left_out = found
    best = _best(analysis.points)
    passed = {effect.column: at for effect in analysis.axes if (at := larger_value(effect, best))}
    rows = [row for row in _doublings(fit, analysis) if row.axis not in passed]
    points = (*_omitted(left_out), *(in_vain(axis, best, *found) for axis, found in passed.items()))
    title = "What to double next"
    if not rows:
        return Section(
            "next", title, "what next", ("No axis is open above the best run.",), points=points
        )
    caption = f"Expected fall of held-out loss when one axis alone is doubled from the best run ({tables.describe(best)})."
    drawn = picture("doubling", caption, partial(gains, rows), sizes=(SHORT, NARROW))
    words = (f"{lead(rows)} {in_words(rows)}", *_recipe(analysis.points))
    return Section(
        "next", title, "what next", words, (drawn,), (_table(rows, fit),), points, lead=lead(rows)
    )


def _best(points: pd.DataFrame) -> pd.Series:
    return points.sort_values(["loss", "train_flops"], kind="stable").iloc[0]


def larger_value(effect: AxisEffect, best: pd.Series) -> tuple[float, float] | None:
    """Return the next value above the best run's that was run, all else equal, and what it lost;
    None without one.
    """
    for line in effect.lines:
        above = line[line[effect.column] > best[effect.column]]
        if best["run_id"] in set(line["run_id"]) and len(above):
            return float(above[effect.column].iloc[0]), float(above["loss"].iloc[0] - best["loss"])
    return None


def in_vain(axis: str, best: pd.Series, value: float, lost: float) -> str:
    """Say that an axis is past its best among the runs."""
    return (
        f"No gain is expected of {short_label(axis)}: {numbers.compact(value)} was run beside the "
        f"best run's "
        f"{numbers.compact(best[axis])}, all else equal, and its loss was {lost:.3f} nats higher "
        f"(one run each)."
    )


def _doublings(fit: Fit, analysis: Analysis) -> list[Doubling]:
    """Give what doubling each axis of the law gains at the best run, the most first."""
    best = _best(analysis.points)
    costs = {effect.column: _cost_of_doubling(effect) for effect in analysis.axes}
    place: dict[str, Any] = {axis: float(best[axis]) for axis in fit.x}
    with np.errstate(all="ignore"):  # profiles may pass where a law overflows
        found = marginal_returns(fit, **place)
    rows = found[["axis", "value", "gain", "low", "high"]].to_numpy().tolist()
    return [
        Doubling(axis, value, gain, low, high, costs.get(axis))
        for axis, value, gain, low, high in rows
    ]


def _cost_of_doubling(effect: AxisEffect) -> tuple[float, float] | None:
    """Read off the runs what doubling an axis alone multiplied training compute by: least and most
    of its steps.
    """
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
    """Say which axis to double, what that is expected to gain and to cost."""
    first, *others = rows
    name = short_label(first.axis)
    start = (
        f"Doubling {name} alone, from {numbers.compact(first.value)} to "
        f"{numbers.compact(2 * first.value)}, is "
        f"expected to lower held-out loss by {_gain(first)} nats{_price(first)}"
    )
    return start + (", the most of the axes swept." if others else ".")


def in_words(rows: list[Doubling]) -> str:
    """Say whether the runs settle which axis gains most, and that it gains at all."""
    first, *others = rows
    level = [short_label(row.axis) for row in others if row.high > first.low]
    said = []
    if level:
        said.append(
            f"The order is not settled: the interval of {listing(level)} reaches into this one."
        )
    if first.low < 1e-3 * max(first.gain, 1e-9):
        said.append("That it gains anything is not identified: the interval reaches zero.")
    return " ".join([*said, "All of these lie beyond what was run beside the best run."])


def _price(row: Doubling) -> str:
    return f" for {_cost(row)} times the compute" if row.costs else ""


def _cost(row: Doubling) -> str:
    if row.costs is None:
        return numbers.ABSENT
    low, high = (numbers.significant(cost, 2) for cost in row.costs)
    return low if low == high else f"{low} to {high}"


def _gain(row: Doubling) -> str:
    """Write a gain in nats with its interval, to the thousandth: the profile's ends hold no
    more.
    """
    value, low, high = (
        f"{end:.3f}" if np.isfinite(end) else "unbounded" for end in (row.gain, row.low, row.high)
    )
    return f"{value} [{low}, {high}]"


def _table(rows: list[Doubling], fit: Fit) -> Table:
    heads = ("axis", "from", "to", "gain, nats [95%]", "compute, times")
    cells = tuple(
        (
            text(short_label(row.axis)),
            written(numbers.compact(row.value)),
            written(numbers.compact(2 * row.value)),
            written(_gain(row)),
            Cell(_cost(row), _cost(row), numeric=True),
        )
        for row in rows
    )
    note = (
        f"A floor plus one power law an axis, fitted to {fit.num_runs} runs, the largest included. "
        f"Compute is what a "
        "doubling took between runs that differ in this axis only."
    )
    doubts = "; ".join(warning.partition(": ")[2].rstrip(".") for warning in fit.warnings)
    return Table(heads, cells, note=f"{note} Doubts of this fit: {doubts}." if doubts else note)


def gains(rows: list[Doubling], ax: Axes) -> Axes:
    """Draw the gain of each doubling, in nats, with its 95% interval."""
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
    ax.set_xlabel("fall of held-out loss, nats")
    ax.grid(axis="x", color=FAINT, linewidth=0.5)
    ax.tick_params(axis="y", length=0)
    return ax


def _recipe(points: pd.DataFrame) -> list[str]:
    """Say how ten times the largest compute is best split between size and tokens, or that the runs
    do not tell.
    """
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
    budget_words = f"{numbers.flop(budget)} FLOP, ten times the largest compute,"
    if not _bounded(recipe, points):
        return [
            f"How {budget_words} should be split between encoder size and training tokens is not "
            f"identified by these "
            "runs: their best split lies far outside what was run, or has no end that the data "
            "bound."
        ]
    size, tokens = (
        f"{numbers.compact(p.value)} [{numbers.compact(p.low)}, {numbers.compact(p.high)}]"
        for p in (recipe.non_embedding_params, recipe.train_tokens)
    )
    return [
        f"Of {budget_words} the best split by a law in size and tokens is {size} non-embedding "
        f"parameters trained on "
        f"{tokens} tokens (95%)."
    ]


def _bounded(recipe: Recipe, points: pd.DataFrame) -> bool:
    """Tell whether a recipe has ends and lies within reach of the runs."""
    for place, column in (
        (recipe.non_embedding_params, "non_embedding_params"),
        (recipe.train_tokens, "train_tokens"),
    ):
        least, most = float(points[column].min()) / FARTHEST, float(points[column].max()) * FARTHEST
        if not (place.low > 0 and np.isfinite(place.high) and least <= place.value <= most):
            return False
    return True


def _omitted(axes: list[str]) -> list[str]:
    """Say which swept axes the runs were too few for."""
    names = listing([short_label(axis) for axis in axes])
    return [f"Too few runs to tell what {names} would gain beside the others."] if axes else []
