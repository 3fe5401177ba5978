"""Drawings of a grid of runs: loss as a coloured table of two axes, and over encoder size at equal
compute.

Takes a runs table, or an `IsoFlop`, and a matplotlib axes, draws, returns the axes. One idea: only
runs that agree on everything else stand side by side.


Every run as one line over its settings and its loss: parallel coordinates.

Takes a runs table and a matplotlib axes, draws, returns the axes. One idea: lines keep the colour
that their runs have in every figure, and a run without a loss ends before the last axis, at a
cross.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from clue_ray.report.figures.style import (
    DASHES,
    FAINT,
    INK,
    LAW_COLOUR,
    MUTED,
    Encoding,
    distinct,
    label,
    log_axis,
    ordered_colours,
)
from clue_ray.report.numbers import compact, flop, is_absent, shortened
from clue_ray.scaling.deciding.isoflop import SAME_LEVEL, IsoFlop
from clue_ray.spec.columns import (
    LENGTHS,
    SIZE,
    format_of,
    held_equal,
    is_log,
    run_axes,
    settings,
    short_label,
)

LENGTH = "sequence_length"
FILLED = 0.6
"""Share of its cells from which runs are a grid, and not a few runs off one."""


def heat_table(table: pd.DataFrame, ax: Axes, axis: str = LENGTH) -> Axes:
    """Draw the loss of each encoder size and value of another axis as a coloured table; empty cells
    say why.

    Raises:
        ValueError: the table holds no grid of at least two sizes by two values (see `grid_of`).
    """
    grid = grid_of(table, axis)
    if grid is None:
        raise ValueError(
            f"The table holds no grid of encoder sizes by two values of {axis}; check grid_of "
            f"first."
        )
    losses = grid.map(lambda cell: cell if isinstance(cell, float) else np.nan).to_numpy(
        dtype=float
    )
    cells = ax.pcolormesh(
        np.ma.masked_invalid(losses), cmap="viridis_r", edgecolors="white", linewidth=1.5
    )
    ax.invert_yaxis()
    for row, column in np.ndindex(losses.shape):
        cell = grid.iat[row, column]
        text = f"{cell:.3f}" if isinstance(cell, float) else str(cell)
        ink = _ink_on(cells, float(losses[row, column]))
        ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink)
    ax.set_xticks(np.arange(grid.shape[1]) + 0.5, [compact(value) for value in grid.columns])
    ax.set_yticks(
        np.arange(grid.shape[0]) + 0.5, [shortened(str(value), 12) for value in grid.index]
    )
    ax.set_xlabel(label(axis))
    ax.set_ylabel(label("encoder_size"))
    ax.set_facecolor(FAINT)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def grid_of(table: pd.DataFrame, axis: str = LENGTH) -> pd.DataFrame | None:
    """Lay out loss by encoder size (rows) and another axis (columns), or None without a grid mostly
    measured.

    Only runs that agree on everything else are laid side by side (see `alike`). Cells are floats,
    or words: the status of a run without a loss, or `not run`.
    """
    if not {"encoder_size", axis} <= set(table.columns) or table.empty:
        return None
    chosen = alike(table, axis)
    sizes, values = distinct(chosen, "encoder_size"), distinct(chosen, axis)
    if len(sizes) < 2 or len(values) < 2 or chosen["loss"].count() < 4:
        return None
    grid = pd.DataFrame("not run", index=sizes, columns=values, dtype=object)
    for _, run in chosen.iterrows():
        value = str(run["status"]) if is_absent(run["loss"]) else float(run["loss"])
        grid.at[run["encoder_size"], run[axis]] = value
    measured = grid.map(lambda cell: isinstance(cell, float)).to_numpy()
    return grid if measured.mean() >= FILLED else None


def equal_columns(axis: str) -> list[str]:
    """List the columns in which the runs of one table agree, besides encoder size and its axis."""
    return [column for column in (*run_axes(), *held_equal()) if column != axis]


def alike(table: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Choose the combination of other settings that fills most cells; of several, the lowest
    loss's.

    Runs that ended agree on their steps too, or else on the users they saw; what failed early has
    neither, and stays.
    """
    rest = [c for c in equal_columns(axis) if c in table]
    horizons = [c for c in LENGTHS if c in table and table[c].notna().any()]
    if not (rest or horizons):
        return table
    best = table["loss"].fillna(np.inf)
    keys = [[*rest, horizon] for horizon in horizons] or [rest]
    groups = (group for names in keys for _, group in table.groupby(names, dropna=False))
    cells = [name for name in ("encoder_size", axis) if name in table]
    chosen = max(
        groups,
        key=lambda group: (len(group.drop_duplicates(cells)), -float(best[group.index].min())),
    )
    same = (table[rest] == chosen[rest].iloc[0]) | (
        table[rest].isna() & chosen[rest].iloc[0].isna()
    )
    early = table[horizons].isna().all(axis=1) if horizons else pd.Series(False, table.index)
    return table[table.index.isin(chosen.index) | (same.all(axis=1) & early)]


def isoflop_curves(table: pd.DataFrame, found: IsoFlop, ax: Axes) -> Axes:
    """Draw loss over encoder size for each level of compute that has a minimum, with its parabola
    and the minimum.
    """
    levels = found.levels[found.levels["used"]]
    colours = list(ordered_colours(list(range(len(levels)))).values())
    for (_, level), colour in zip(levels.iterrows(), colours, strict=True):
        own = table[(np.log(table["train_flops"] / level["compute"])).abs() < np.log(SAME_LEVEL)]
        ax.plot(
            own[SIZE],
            own["loss"],
            "o",
            markersize=4.5,
            color=colour,
            label=f"{flop(level['compute'])} FLOP",
        )
        sizes = np.geomspace(level["low"], level["high"], 60)
        bend = level["loss"] + level["curvature"] * np.log10(sizes / level["optimum"]) ** 2
        ax.plot(sizes, bend, color=colour, linewidth=1.2)
        ax.plot(level["optimum"], level["loss"], "D", color=LAW_COLOUR, markersize=5, zorder=5)
    log_axis(ax)
    ax.set_xlabel(label(SIZE))
    ax.set_ylabel(label("loss"))
    ax.legend(title="compute", loc="upper left", bbox_to_anchor=(1.0, 1.0), alignment="left")
    return ax


def _ink_on(cells: QuadMesh, value: float) -> str:
    """Choose black or white text by the luminance of the cell behind it (ITU-R BT.709 weights)."""
    if np.isnan(value):
        return MUTED
    red, green, blue, _ = np.ravel(cells.cmap(cells.norm(np.array([value]))))
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5 else INK


MOST_TICKS = 7
SPREAD = 0.012
"""How far runs of equal settings are drawn apart, as a share of the axis, so that none hides
another."""


def coordinates(table: pd.DataFrame) -> list[str]:
    """List the settings that differ between runs, then compute and loss, where the table has
    them.
    """
    varied = [column for column in _shown_settings() if len(distinct(table, column)) > 1]
    return [
        *varied,
        *(column for column in ("train_flops", "loss") if len(distinct(table, column)) > 1),
    ]


def _shown_settings() -> list[str]:
    """List the settings that have an axis; the encoder's name stands for its size."""
    return [*(column for column in settings() if column != SIZE), "steps"]


def parallel_coordinates(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw each run as a line over `coordinates`, each axis from its least to its largest value;
    lower loss is lower.

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
    """Place a column's values between 0 and 1; words take places in their order, missing values
    nan.
    """
    values = distinct(table, column)
    if column == "encoder_size":
        place = {value: index / max(len(values) - 1, 1) for index, value in enumerate(values)}
        return np.array([place.get(value, np.nan) for value in table[column]], dtype=float)
    low, high = (float(_scaled(column, end)) for end in (values[0], values[-1]))
    return np.asarray((_scaled(column, table[column]) - low) / (high - low), dtype=float)


def _axis(ax: Axes, table: pd.DataFrame, column: str, place: int) -> None:
    """Draw one upright axis with the values that were run, or round numbers between its ends."""
    ax.axvline(place, color=INK, linewidth=0.6, zorder=1)
    values = distinct(table, column)
    if column == "encoder_size":
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
    """Keep as many ticks as there is room for."""
    step = math.ceil(len(values) / MOST_TICKS)
    return list(zip(values, heights, strict=True))[::step]


def _written(column: str, value: Any) -> str:
    if format_of(column) == "loss":
        return f"{value:.2f}"
    return flop(value) if format_of(column) == "flop" else compact(value)
