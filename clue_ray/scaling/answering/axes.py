"""The effect of each axis of a study on the loss, all else equal.

Only runs that differ in one column are joined by a line.
"""

from dataclasses import dataclass

import pandas as pd

from clue_ray.errors import ClueRayError
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.result import Fit
from clue_ray.spec.columns import LENGTHS, SIZE, axes, held_equal, short_label

TOKENS = "train_tokens"


@dataclass(frozen=True)
class AxisEffect:
    """How loss moves along one axis.

    Attributes:
        column: the axis.
        label: what a figure calls it.
        lines: runs that differ in this column only, sorted by it; the longest line first.
        fit: a power law along the longest line, where it has three or more points.
    """

    column: str
    label: str
    lines: list[pd.DataFrame]
    fit: Fit | None


def axis_effects(done: pd.DataFrame) -> list[AxisEffect]:
    """Return the effect of every axis that takes two or more values in the done runs."""
    effects = []
    for column in axes_of(done):
        lines = _lines(done, column) if column in done else []
        if lines:
            effects.append(AxisEffect(column, short_label(column), lines, _along(lines[0], column)))
    return effects


def axes_of(table: pd.DataFrame) -> list[str]:
    """List the axes that a table may have.

    Tokens are one where nothing else says how long its runs trained, as in tables of other tools.
    """
    timed = any(name in table and table[name].notna().any() for name in LENGTHS)
    return axes() if timed or TOKENS not in table else [*axes(), TOKENS]


def joint_fit(points: pd.DataFrame) -> tuple[Fit, list[str]] | None:
    """Fit one joint power law over the swept axes.

    Where the runs are too few, the axes with the fewest values are left out. Returns the fit and
    the axes left out; None where no law can be fitted.
    """
    values = {
        axis: points[axis].nunique()
        for axis in axes_of(points)
        if axis in points and points[axis].notna().all()
    }
    swept = sorted((axis for axis in values if values[axis] > 1), key=lambda axis: -values[axis])
    for count in range(len(swept), 0, -1):
        try:
            return fit_law("joint_power_law", points, x=swept[:count], y="loss"), swept[count:]
        except ClueRayError:
            continue
    return None


def _lines(done: pd.DataFrame, column: str) -> list[pd.DataFrame]:
    """Group the runs that differ in this column only, the longest line first.

    Runs of a line have equal steps; where no such line exists, equal examples. Where neither is
    known, they have equal tokens.
    """
    lengths = (TOKENS,) if TOKENS in axes_of(done) else LENGTHS
    for horizon in lengths if column not in ("steps", TOKENS) else ("",):
        if lines := _lines_at(done, column, horizon):
            return lines
    return []


def _lines_at(done: pd.DataFrame, column: str, horizon: str) -> list[pd.DataFrame]:
    settings = (*axes(without=LENGTHS), *held_equal(), *_family(done), horizon)
    equal = [name for name in settings if name != column and name in done]
    groups = [group for _, group in done.groupby(equal, dropna=False)] if equal else [done]
    # Where nothing says how long runs trained, two of the same size are not all else equal.
    timed = not horizon or horizon in done
    lines = [
        group.sort_values(column, kind="stable")
        for group in (group[group[column].notna()] for group in groups)
        if group[column].nunique() > 1 and (timed or group[column].is_unique)
    ]
    return sorted(lines, key=lambda line: (-len(line), float(line["loss"].min())))


def _family(done: pd.DataFrame) -> list[str]:
    """Return the name of the encoder where it covers several sizes: then it names a family."""
    if not {"encoder_size", SIZE} <= set(done):
        return []
    sizes = done.groupby("encoder_size")[SIZE].nunique()
    return ["encoder_size"] if (sizes > 1).any() else []


def _along(line: pd.DataFrame, column: str) -> Fit | None:
    """Fit a power law along a line; None where the line has too few runs."""
    try:
        return fit_law("power_law", line, x=column, y="loss")
    except ClueRayError:
        return None
