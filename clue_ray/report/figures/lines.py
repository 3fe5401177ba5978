"""Draw loss along one axis of a study, and learning curves.

Each function draws on a matplotlib axes and returns it. Nothing is fitted, read or written here.
Call it within `matplotlib.rc_context(STYLE)` for the style of the report.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.optimize import isotonic_regression

from clue_ray.report.figures.headline import highest_shown, mark_clipped
from clue_ray.report.figures.style import (
    DASHES,
    FAINT,
    INK,
    LAW_COLOUR,
    MUTED,
    Encoding,
    candidates_of,
    darker,
    distinct,
    key_rows,
    label,
    log_axis,
    ordered_colours,
)
from clue_ray.report.numbers import compact, shortened
from clue_ray.scaling.answering.axes import TOKENS, AxisEffect, axes_of
from clue_ray.spec.columns import SIZE, held_equal, name_columns, short_label

MOST_NAMED = 10
"""Largest number of lines of a panel that are named at their ends."""
LABEL_GAP = 0.08
"""Smallest distance of two labels, as a share of the axis: one line of text in a small panel."""


def axis_effect(
    effect: AxisEffect, ax: Axes, loss_limits: tuple[float, float] | None = None
) -> Axes:
    """Draw loss over one axis: a line for each set of runs that differ in that axis only.

    Few lines are named at their ends; many are thin and coloured by the setting with the most
    values. `loss_limits`, in nats, gives several panels one scale; runs above it are arrows at the
    edge.
    """
    others = _varying(effect)
    lines = sorted(
        effect.lines, key=lambda line: [line.iloc[0].get(_order(column)) for column in others]
    )
    named = len(lines) <= MOST_NAMED
    colours = (
        list(ordered_colours(list(range(len(lines)))).values())
        if named
        else _colours(lines, others, ax)
    )
    look: dict[str, Any] = {"marker": "o", "markersize": 4.5} if named else {"alpha": 0.45}
    for line, colour in zip(lines, colours, strict=True):
        ax.plot(
            line[effect.column], line["loss"], linewidth=1.4 if named else 0.8, color=colour, **look
        )
    if effect.fit is not None:
        values = np.geomspace(*_range(effect), 60)
        ax.plot(
            values,
            effect.fit.curve(values),
            color=LAW_COLOUR,
            linewidth=1,
            linestyle=DASHES[0],
            gid="law",
        )
    ax.set_xscale("log")
    ax.set_ylim(loss_limits)
    _value_ticks(ax, effect)
    ax.set_xlabel(label(effect.column))
    ax.set_ylabel(label("loss"))
    if named:
        _name_lines(ax, effect, lines, others, colours)
    return ax


def _name_lines(
    ax: Axes,
    effect: AxisEffect,
    lines: Sequence[pd.DataFrame],
    others: list[str],
    colours: list[str],
) -> None:
    """Name each line at its end by its settings, and mark the runs above the loss axis."""
    if others:
        heading = "lines: " + ", ".join(short_label(column) for column in others)
        ax.text(0, 1.02, heading, transform=ax.transAxes, fontsize=8.5, color=MUTED)
        texts = [
            shortened(" · ".join(compact(line.iloc[0].get(column)) for column in others))
            for line in lines
        ]
        ends = [
            (float(line[effect.column].iloc[-1]), float(line["loss"].iloc[-1])) for line in lines
        ]
        end_labels(ax, ends, texts, list(map(darker, colours)))
    for line, colour in zip(lines, colours, strict=True):
        _mark_above(ax, line, effect.column, darker(colour))


def _colours(lines: Sequence[pd.DataFrame], others: list[str], ax: Axes) -> list[str]:
    """Return colours by the setting with the most values, and draw its key above the axes."""
    firsts = pd.DataFrame([line.iloc[0] for line in lines])
    column = max(others, key=lambda name: len(distinct(firsts, name)))
    colours = ordered_colours(distinct(firsts, column))
    heading = Line2D([], [], linestyle="none", label=short_label(column))
    keys = [
        heading,
        *(Line2D([], [], color=colour, label=compact(value)) for value, colour in colours.items()),
    ]
    step = -(-(len(keys) - 1) // 5)
    shown = [heading, *keys[1::step]]
    place: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (-0.1, 1.0),
        "ncols": len(shown),
    }
    ax.legend(
        handles=shown,
        **place,
        handlelength=0.9,
        columnspacing=0.7,
        handletextpad=0.3,
        borderaxespad=0,
    )
    return [colours[line.iloc[0][column]] for line in lines]


def learning_curves(curves: pd.DataFrame, ax: Axes, runs: pd.DataFrame) -> Axes:
    """Draw held-out loss over the compute spent so far, one line per run in its headline colour.

    Curves of runs that are not in `runs`, such as runs without a final loss, are grey and dashed.
    """
    encoding = Encoding.of(runs)
    known = {row["run_id"]: row for _, row in runs.iterrows()}
    drawn = curves[curves["train_flops"].gt(0) & curves["loss"].notna()].sort_values("train_flops")
    for run_id, curve in drawn.groupby("run_id", sort=True):
        run: Any = known.get(run_id, {})
        end: dict[str, Any] = {
            "marker": encoding.shape(run),
            "markevery": [len(curve) - 1],
            "markersize": 4.5,
        }
        line: dict[str, Any] = {
            "linewidth": 1.1,
            "linestyle": "-" if run_id in known else DASHES[0],
        }
        ax.plot(
            curve["train_flops"],
            curve["loss"],
            color=encoding.colour(run),
            gid=f"run-{run_id}",
            **line,
            **end,
        )
    log_axis(ax)
    if len(drawn):
        high = highest_shown(drawn["loss"], candidates_of(runs))
        ax.set_ylim(top=high + 0.05 * max(high - float(drawn["loss"].min()), 1e-3))
        last = drawn.groupby("run_id").tail(1)
        _mark_above(ax, last, "train_flops", INK)
    ax.set_xlabel(label("train_flops"))
    ax.set_ylabel(label("loss", candidates_of(runs)))
    key_rows(ax, encoding)
    return ax


def end_labels(
    ax: Axes, ends: Sequence[tuple[float, float]], texts: Sequence[str], colours: Sequence[str]
) -> None:
    """Draw the label of each line right of the axes, with a thin leader to its end (x, loss).

    Labels keep the order of the ends and are moved as little as possible so that they do not
    overlap.
    """
    low, high = ax.get_ylim()
    gap = (high - low) * LABEL_GAP
    heights = np.clip([loss for _, loss in ends], low, high)
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(order))
    # The least-squares heights that are at least one gap apart: isotonic regression after the gaps
    # are subtracted.
    placed = isotonic_regression(heights[order] - steps).x + steps
    placed -= max(0.0, placed[-1] - high)
    for index, height in zip(order, placed, strict=True):
        leader = {
            "arrowstyle": "-",
            "color": colours[index],
            "linewidth": 0.6,
            "alpha": 0.6,
            "shrinkA": 0,
        }
        ax.annotate(
            texts[index],
            (ends[index][0], heights[index]),
            xytext=(1.04, float(height)),
            textcoords=ax.get_yaxis_transform(),
            va="center",
            fontsize=8.5,
            color=colours[index],
            arrowprops=leader,
            annotation_clip=False,
        )


def _varying(effect: AxisEffect) -> list[str]:
    """List the settings that differ between lines and are equal along each."""
    firsts = pd.DataFrame([line.iloc[0] for line in effect.lines])
    tokens = [TOKENS] if TOKENS in axes_of(firsts) else []
    columns = [name for name in (*name_columns(), *held_equal(), *tokens) if name in firsts]
    return [
        column
        for column in columns
        if len(distinct(firsts, column)) > 1
        and all(line[column].nunique() <= 1 for line in effect.lines)
    ]


def _mark_above(ax: Axes, runs: pd.DataFrame, column: str, colour: str) -> None:
    """Mark the runs above the loss axis."""
    for x, loss in runs.loc[runs["loss"] > ax.get_ylim()[1], [column, "loss"]].to_numpy(
        dtype=float
    ):
        mark_clipped(ax, x, loss, colour)


def _order(column: str) -> str:
    """Return the column that a column is sorted by: encoder sizes are sorted by parameters."""
    return SIZE if column == "encoder_size" else column


def _range(effect: AxisEffect) -> tuple[float, float]:
    values = pd.concat([line[effect.column] for line in effect.lines])
    return float(values.min()), float(values.max())


def _value_ticks(ax: Axes, effect: AxisEffect) -> None:
    """Place ticks at the values of the runs, fewer where they would touch."""
    values = sorted({float(value) for line in effect.lines for value in line[effect.column]})
    apart = np.log(values[-1] / values[0]) / 9
    kept = values[:1]
    for value in values[1:]:
        if np.log(value / kept[-1]) >= apart:
            kept.append(value)
    ax.xaxis.set_major_locator(FixedLocator(kept))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    ax.grid(axis="y", color=FAINT, linewidth=0.5)
