"""Three sections about the axes: one axis at a time, tables of two axes, sizes at equal compute.

A section is None where the study has no runs for it.
"""

from functools import partial

import pandas as pd

from clue_ray.errors import FitError, RunsError
from clue_ray.report import numbers
from clue_ray.report.figures import lines as figures
from clue_ray.report.figures.files import HALF, NARROW, Picture, picture
from clue_ray.report.figures.grids import alike, equal_columns, grid_of, heat_table, isoflop_curves
from clue_ray.report.figures.headline import highest_shown
from clue_ray.report.figures.style import law_label
from clue_ray.report.read import StudyFiles
from clue_ray.report.section import Section
from clue_ray.report.sections.answer import CLIPPED
from clue_ray.scaling.answering.analysis import Analysis
from clue_ray.scaling.answering.axes import AxisEffect
from clue_ray.scaling.answering.sentences import listing
from clue_ray.scaling.deciding.isoflop import IsoFlop, fit_isoflop
from clue_ray.spec.columns import LENGTHS, SIZE, label, noun, run_axes, short_label


def axes(analysis: Analysis) -> Section | None:
    """Draw one panel per axis, all on one loss scale, so that a flat axis looks flat."""
    losses = [loss for effect in analysis.axes for line in effect.lines for loss in line["loss"]]
    if not losses:
        return None
    high = highest_shown(losses, analysis.candidates)
    margin = 0.07 * max(high - min(losses), 1e-3)
    limits = (min(losses) - margin, high + margin)
    panels = tuple(_axis(effect, limits) for effect in analysis.axes if effect.lines)
    words = (
        "Along a line, only the axis of the panel changes; colours show the settings that are "
        "held. All panels share one loss scale."
    )
    return Section("axes", "One axis at a time", "axes", (words,), panels, layout="panels")


def _axis(effect: AxisEffect, limits: tuple[float, float]) -> Picture:
    caption = f"{_capital(effect.label)}.{_along(effect)}"
    if any((line["loss"] > limits[1]).any() for line in effect.lines):
        caption += f" {CLIPPED}"
    name = f"axis-{effect.column.replace('_', '-')}"
    return picture(
        name, caption, partial(figures.axis_effect, effect, loss_limits=limits), sizes=(HALF,)
    )


def _capital(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}"


def _along(effect: AxisEffect) -> str:
    if effect.fit is None or not effect.fit.law.exponents:
        return " There are too few values to fit a law along it."
    exponent = effect.fit.law.exponents[0]
    low, high = effect.fit.known_interval(exponent)
    shown = "not identified"
    if low is not None or high is not None:
        shown = numbers.interval(effect.fit.parameters[exponent], low, high)
    return f" Dashed: {law_label(effect.fit.law.name)} along the longest line, exponent {shown}."


def grids(files: StudyFiles) -> Section | None:
    """Draw the loss by encoder size and every other axis, where the runs form a grid."""
    drawn = tuple(
        _grid(files.table, axis) for axis in run_axes() if grid_of(files.table, axis) is not None
    )
    if not drawn:
        return None
    words = (
        f"{_capital(label('loss'))}, all else equal; lower is better. Each table has its own "
        "colour scale."
    )
    title = "Encoder size against the other axes"
    return Section("grids", title, "grids", (words,), drawn, layout="panels")


def _grid(table: pd.DataFrame, axis: str) -> Picture:
    name = "heat-table" if axis == "sequence_length" else f"heat-{axis.replace('_', '-')}"
    chosen = alike(table, axis)
    known = [c for c in (*equal_columns(axis), *LENGTHS) if c in table and table[c].nunique() > 1]
    shared = [c for c in known if chosen[c].nunique() == 1]
    same = [f"{short_label(c)} {numbers.compact(chosen[c].dropna().iloc[0])}" for c in shared]
    caption = f"Encoder size by {short_label(axis)}{'; all at ' + listing(same) if same else ''}."
    return picture(name, caption, partial(heat_table, table, axis=axis), sizes=(HALF,))


def isoflop(files: StudyFiles) -> Section | None:
    """Draw loss over encoder size at equal compute, where two levels or more have a minimum."""
    try:
        found = fit_isoflop(files.done, size=SIZE)
    except (FitError, RunsError):  # the study has no levels of equal compute
        return None
    caption = (
        f"{_capital(noun('loss'))} over {short_label(SIZE)} at equal {noun('train_flops')}; "
        "diamonds mark the minima of the parabolas."
    )
    draw = partial(isoflop_curves, files.done, found)
    shown = picture("isoflop", caption, draw, sizes=((6.2, 3.6), NARROW))
    title, words = "The best size at equal compute", (_best_size(found),)
    return Section("isoflop", title, "equal compute", words, (shown,), points=found.warnings)


def _best_size(found: IsoFlop) -> str:
    """State the exponent of the best size by parabolas and by a law of size and data."""
    used = int(found.levels["used"].sum())
    return (
        f"Through the minima of {used} of {len(found.levels)} levels of compute, the best size "
        f"grows as compute to the power "
        f"{numbers.interval(found.line.exponent, *found.interval())}. This estimate depends on "
        f"sizes spread evenly around the minimum. {_parametric(found)}"
    )


def _parametric(found: IsoFlop) -> str:
    """State the exponent that the parametric law implies, or why it implies none."""
    try:
        implied = numbers.interval(*found.parametric)
    except FitError as error:
        return f"A law of size and data gives no exponent to compare: {error}"
    return f"The law E + A N^-a + B D^-b, fitted to the same runs, implies {implied}."
