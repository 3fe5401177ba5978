"""How every figure looks and what every column is called: one palette, one rc dictionary, one set
of labels.

Takes column names and values, gives labels, colours and shapes. One idea: colour and shape mean the
same thing in all figures of a report, and never carry a meaning that a label or a legend does not
also give.
"""

from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from clue_ray.report.numbers import compact, decade, is_absent, shortened
from clue_ray.scaling.laws.catalogue import LAWS
from clue_ray.spec import columns

INK, MUTED, FAINT = "#1a1a1a", "#5f6368", "#d5d8dc"
LAW_COLOUR = "#d55e00"  # Okabe-Ito vermillion: apart from viridis for every common colour vision
BASELINE_COLOUR = "#8f4a73"  # Okabe-Ito purple, darkened until it reads as text on white
FLOOR_COLOUR = "#00694b"  # Okabe-Ito green, darkened likewise
DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))


STYLE: Any = {  # rc parameters, which matplotlib types by a list of all their names
    "font.family": "DejaVu Sans",  # ships with matplotlib, so files are the same on every machine
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "text.parse_math": False,  # a name of the user's may hold dollar signs
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.minor.size": 1.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # text stays text: searchable, selectable, set in the page's font
}


SHAPES = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "*")
ROW_LETTERS = 54
"""Letters that a row of keys has room for."""


def label(column: str, candidates: int | None = None) -> str:
    """Name a column for an axis or a table head; a held-out loss says at how many candidates, where
    known.
    """
    text = columns.label(column)
    return f"{text} at {candidates:,} candidates" if column == "loss" and candidates else text


def law_label(name: str) -> str:
    """Write a law's name as words: power_law_plus_constant becomes power law plus constant."""
    return LAWS[name].words if name in LAWS else name.replace("_", " ")


def ordered_colours(values: list[Any]) -> dict[Any, str]:
    """Give ordered values dark-to-light viridis colours, stopping short of the yellow that white
    swallows.
    """
    positions = np.linspace(0.0, 0.82, len(values)) if len(values) > 1 else [0.25] * len(values)
    return {
        value: to_hex(mpl.colormaps["viridis"](p))
        for value, p in zip(values, positions, strict=True)
    }


def darker(colour: str) -> str:
    """Return a colour dark enough to be read as small text on white."""
    red, green, blue = to_rgb(colour)
    return to_hex((0.7 * red, 0.7 * green, 0.7 * blue))


def distinct(table: pd.DataFrame, column: str) -> list[Any]:
    """List a column's values in order, missing ones left out; encoder sizes go by their
    parameters.
    """
    if column not in table:
        return []
    known = table[table[column].notna()]
    if column == "encoder_size" and "non_embedding_params" in table:
        known = known.sort_values("non_embedding_params", kind="stable")
        return list(dict.fromkeys(known[column]))
    return sorted(dict.fromkeys(known[column]))


@dataclass(frozen=True)
class Encoding:
    """Which colour and which shape a run has in every figure of a report."""

    colour_column: str
    colours: dict[Any, str]
    shapes: dict[Any, str]

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Encoding":
        """Choose colours by the axis with most values (sequence length on a tie), shapes by encoder
        size.
        """
        column = max(columns.run_axes(), key=lambda name: len(distinct(table, name)))
        sizes = distinct(table, "encoder_size")
        shapes = {size: SHAPES[index % len(SHAPES)] for index, size in enumerate(sizes)}
        return cls(column, ordered_colours(distinct(table, column)), shapes)

    def colour(self, run: Any) -> str:
        """Return the colour of one run (a row, or any mapping by column)."""
        return self.colours.get(run.get(self.colour_column), MUTED)

    def shape(self, run: Any) -> str:
        """Return the marker of one run."""
        size = run.get("encoder_size")
        return SHAPES[0] if is_absent(size) else self.shapes.get(size, SHAPES[0])

    def colour_keys(self) -> list[Line2D]:
        """Return legend entries for the colours, the column's name first; none when nothing
        varies.
        """
        return _keys(self.colour_column, [(v, "o", c) for v, c in self.colours.items()])

    def shape_keys(self) -> list[Line2D]:
        """Return legend entries for the shapes, the column's name first; none when nothing
        varies.
        """
        return _keys("encoder_size", [(size, shape, MUTED) for size, shape in self.shapes.items()])


def _keys(column: str, entries: list[tuple[Any, str, str]]) -> list[Line2D]:
    if len(entries) < 2:
        return []
    step = -(-len(entries) // 7)  # a long scale is shown by every second, third ... of its values
    heading = Line2D([], [], linestyle="none", label=columns.short_label(column))
    shown = entries[::step]
    room = max(ROW_LETTERS // len(shown), 10)
    marks = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=shape,
            color=colour,
            markersize=5.5,
            label=shortened(name, room),
        )
        for name, shape, colour in (
            (compact(value), shape, colour) for value, shape, colour in shown
        )
    ]
    return [heading, *marks]


def candidates_of(table: pd.DataFrame) -> int | None:
    """Return the one number of candidates that all runs were scored against, or None when they
    disagree.
    """
    values = distinct(table, "loss_candidates")
    return int(values[0]) if len(values) == 1 else None


def log_axis(ax: Axes) -> None:
    """Make the x axis a logarithmic one with ticks at powers of ten, and rule the y axis
    faintly.
    """
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(numticks=8))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: decade(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y", color=FAINT, linewidth=0.5)


def key_rows(ax: Axes, encoding: Encoding) -> None:
    """Set the keys of colour and shape as lines above the axes, each opening with what it shows."""
    rows = [keys for keys in (encoding.colour_keys(), encoding.shape_keys()) if keys]
    for index, keys in enumerate(rows):
        legend = Legend(
            ax,
            keys,
            [str(key.get_label()) for key in keys],
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0 + 0.065 * index),
            ncols=len(keys),
            handletextpad=0.1,
            columnspacing=0.9,
            handlelength=1.2,
            borderaxespad=0,
            borderpad=0.2,
        )
        legend.set_gid(f"key-{index}")
        ax.add_artist(legend)
        legend.set_clip_on(False)  # else the layout takes it for hidden and leaves it no room
