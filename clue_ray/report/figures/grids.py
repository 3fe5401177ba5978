"""Draw a grid of runs: loss as a coloured table of two axes, and loss over encoder size.

Only runs that agree on everything else are compared.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from clue_ray.report.figures.style import (
    FAINT,
    INK,
    LAW_COLOUR,
    MUTED,
    distinct,
    label,
    log_axis,
    ordered_colours,
)
from clue_ray.report.numbers import compact, is_absent, shortened
from clue_ray.scaling.answering.sentences import flop_words
from clue_ray.scaling.deciding.isoflop import SAME_LEVEL, IsoFlop
from clue_ray.spec.columns import LENGTHS, SIZE, held_equal, noun, run_axes

LENGTH = "sequence_length"
FILLED = 0.6
"""Smallest share of measured cells of a grid; with fewer, the runs are not a grid."""


def heat_table(table: pd.DataFrame, ax: Axes, axis: str = LENGTH) -> Axes:
    """Draw the loss by encoder size and another axis as a coloured table.

    A cell without a loss shows the reason.

    Raises:
        ValueError: the table has no grid of at least two sizes by two values (see `grid_of`).
    """
    grid = grid_of(table, axis)
    if grid is None:
        raise ValueError(
            f"The table has no grid of encoder sizes by two values of {axis}; check grid_of first."
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
    """Return the loss by encoder size (rows) and another axis (columns); None without a grid.

    All runs of the grid agree on everything else (see `alike`). A cell is a float, the status of a
    run without a loss, or `not run`.
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
    """List the columns that are equal for all runs of a table, besides encoder size and axis."""
    return [column for column in (*run_axes(), *held_equal()) if column != axis]


def alike(table: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Select the runs with the combination of other settings that fills most cells.

    Among several, the combination with the lowest loss is taken. Finished runs also agree on their
    steps, or on the users they saw. Runs that failed early have neither and are kept.
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
    """Draw loss over encoder size with a parabola, for each level of compute with a minimum."""
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
            label=flop_words(float(level["compute"])),
        )
        sizes = np.geomspace(level["low"], level["high"], 60)
        parabola = level["loss"] + level["curvature"] * np.log10(sizes / level["optimum"]) ** 2
        ax.plot(sizes, parabola, color=colour, linewidth=1.2)
        ax.plot(level["optimum"], level["loss"], "D", color=LAW_COLOUR, markersize=5, zorder=5)
    log_axis(ax)
    ax.set_xlabel(label(SIZE))
    ax.set_ylabel(label("loss"))
    ax.legend(
        title=noun("train_flops"), loc="upper left", bbox_to_anchor=(1.0, 1.0), alignment="left"
    )
    return ax


def _ink_on(cells: QuadMesh, value: float) -> str:
    """Return black or white by the luminance of the cell behind the text (ITU-R BT.709 weights)."""
    if np.isnan(value):
        return MUTED
    red, green, blue, _ = np.ravel(cells.cmap(cells.norm(np.array([value]))))
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5 else INK
