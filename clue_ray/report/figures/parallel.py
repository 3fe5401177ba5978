"""Draw every run as one line over its settings and its loss: parallel coordinates.

A line keeps the colour that its run has in every figure. The line of a run without a loss ends
before the last axis, at a cross.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from clue_ray.report.figures.style import DASHES, INK, MUTED, Encoding, distinct
from clue_ray.report.numbers import compact, flop
from clue_ray.spec.columns import SIZE, format_of, is_log, settings, short_label

MOST_TICKS = 7
SPREAD = 0.012
"""Offset between runs of equal settings, as a share of the axis, so that none hides another."""


def coordinates(table: pd.DataFrame) -> list[str]:
    """List the settings that differ between runs, then compute and loss where they differ."""
    varied = [column for column in _shown_settings() if len(distinct(table, column)) > 1]
    return [
        *varied,
        *(column for column in ("train_flops", "loss") if len(distinct(table, column)) > 1),
    ]


def _shown_settings() -> list[str]:
    """List the settings that have an axis; the name of an encoder represents its size."""
    return [*(column for column in settings() if column != SIZE), "steps"]


def parallel_coordinates(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw each run as a line over `coordinates`, each axis from its smallest to its largest value.

    Each run is one artist with gid `run-<run_id>`.
    """
    columns, encoding = coordinates(table), Encoding.of(table)
    places = np.stack([_positions(table, column) for column in columns], axis=1)
    shift = SPREAD * np.linspace(-1, 1, len(table))[:, None] if len(table) > 1 else np.zeros((1, 1))
    settled = np.array([column in _shown_settings() for column in columns])
    for run, heights in zip(table.to_dict("records"), places + shift * settled, strict=True):
        known = np.isfinite(heights)
        lost = not known[-1] or run.get("status") != "done"
        look: dict[str, Any] = {
            "color": MUTED if lost else encoding.colour(run),
            "linestyle": DASHES[0] if lost else "-",
        }
        ends: dict[str, Any] = (
            {"marker": "x", "markevery": [int(known.sum()) - 1], "markersize": 5} if lost else {}
        )
        ax.plot(
            np.flatnonzero(known),
            heights[known],
            linewidth=1.3,
            alpha=0.85,
            gid=f"run-{run['run_id']}",
            **look,
            **ends,
        )
    for place, column in enumerate(columns):
        _axis(ax, table, column, place)
    ax.set_xticks(range(len(columns)), [_head(column) for column in columns])
    ax.set_xlim(-0.25, len(columns) - 0.5)
    ax.set_ylim(-0.06, 1.06)
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.tick_params(axis="x", length=0, pad=4)
    return ax


def _head(column: str) -> str:
    return "\n".join(short_label(column).split(" ", 1))


def _scaled(column: str, value: Any) -> Any:
    return (
        np.log(np.asarray(value, dtype=float)) if is_log(column) else np.asarray(value, dtype=float)
    )


def _positions(table: pd.DataFrame, column: str) -> npt.NDArray[np.float64]:
    """Map the values of a column to 0 to 1; words by rank, missing values to nan."""
    values = distinct(table, column)
    if format_of(column) == "text":
        place = {value: index / max(len(values) - 1, 1) for index, value in enumerate(values)}
        return np.array([place.get(value, np.nan) for value in table[column]], dtype=float)
    low, high = (float(_scaled(column, end)) for end in (values[0], values[-1]))
    return np.asarray((_scaled(column, table[column]) - low) / (high - low), dtype=float)


def _axis(ax: Axes, table: pd.DataFrame, column: str, place: int) -> None:
    """Draw one vertical axis with the values of the runs, or values spaced between its ends."""
    ax.axvline(place, color=INK, linewidth=0.6, zorder=1)
    values = distinct(table, column)
    if format_of(column) == "text":
        heights = [index / max(len(values) - 1, 1) for index in range(len(values))]
    else:
        values = (
            values
            if len(values) <= MOST_TICKS and column in _shown_settings()
            else _between(column, values)
        )
        ends = [
            float(_scaled(column, end))
            for end in (distinct(table, column)[0], distinct(table, column)[-1])
        ]
        heights = [
            (float(_scaled(column, value)) - ends[0]) / (ends[1] - ends[0]) for value in values
        ]
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    for value, height in _thinned(values, heights):
        ax.text(
            place + 0.03,
            height,
            _written(column, value),
            fontsize=8,
            va="center",
            color=INK,
            zorder=6,
            bbox=box,
        )


def _between(column: str, values: list[Any]) -> list[float]:
    low, high = (float(_scaled(column, end)) for end in (values[0], values[-1]))
    steps = np.linspace(low, high, 5)
    return [float(value) for value in (np.exp(steps) if is_log(column) else steps)]


def _thinned(values: list[Any], heights: list[float]) -> list[tuple[Any, float]]:
    """Keep every n-th tick, so that at most `MOST_TICKS` remain."""
    step = math.ceil(len(values) / MOST_TICKS)
    return list(zip(values, heights, strict=True))[::step]


def _written(column: str, value: Any) -> str:
    if format_of(column) == "loss":
        return f"{value:.2f}"
    return flop(value) if format_of(column) == "flop" else compact(value)
