"""The style of all figures: palette, rc parameters, labels, and the colour and shape of a run.

Colour and shape have the same meaning in all figures of a report, and a label or a legend always
states it as well.
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
LAW_COLOUR = "#d55e00"  # Okabe-Ito vermillion: distinct from viridis in colour vision deficiencies
BASELINE_COLOUR = "#8f4a73"  # Okabe-Ito purple, darkened for text on white
FLOOR_COLOUR = "#00694b"  # Okabe-Ito green, darkened for text on white
DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))


STYLE: Any = {  # rc parameters, which matplotlib types by a list of all their names
    "font.family": "DejaVu Sans",  # part of matplotlib, so files are equal on every machine
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
    "text.parse_math": False,  # the user's names may contain dollar signs
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
    "svg.fonttype": "none",  # text stays text: searchable, selectable, in the font of the page
}


SHAPES = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "*")
ROW_LETTERS = 54
"""Number of characters that fit in a row of keys."""


def label(column: str, candidates: int | None = None) -> str:
    """Return the name of a column for an axis; a held-out loss states its number of candidates."""
    text = columns.label(column)
    return f"{text} at {candidates:,} candidates" if column == "loss" and candidates else text


def law_label(name: str) -> str:
    """Format the name of a law: power_law_plus_constant becomes power law plus constant."""
    return LAWS[name].words if name in LAWS else name.replace("_", " ")


def ordered_colours(values: list[Any]) -> dict[Any, str]:
    """Return dark to light viridis colours for ordered values, without the yellow end.

    Yellow is not visible on white.
    """
    positions = np.linspace(0.0, 0.82, len(values)) if len(values) > 1 else [0.25] * len(values)
    return {
        value: to_hex(mpl.colormaps["viridis"](p))
        for value, p in zip(values, positions, strict=True)
    }


def darker(colour: str) -> str:
    """Return a colour dark enough for small text on white."""
    red, green, blue = to_rgb(colour)
    return to_hex((0.7 * red, 0.7 * green, 0.7 * blue))


def distinct(table: pd.DataFrame, column: str) -> list[Any]:
    """List the distinct values of a column in order; encoder sizes are ordered by parameters."""
    if column not in table:
        return []
    known = table[table[column].notna()]
    if column == "encoder_size" and columns.SIZE in table:
        # By the largest encoder of a name: the bag alone keeps the name of a size, not its size.
        params = pd.to_numeric(known[columns.SIZE], errors="coerce")
        return list(
            params.groupby(known[column], sort=False).max().sort_values(kind="stable").index
        )
    return sorted(dict.fromkeys(known[column]))


@dataclass(frozen=True)
class Encoding:
    """The colour and the shape of a run in every figure of a report."""

    colour_column: str
    colours: dict[Any, str]
    shapes: dict[Any, str]

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Encoding":
        """Assign colours by the axis with the most values, and shapes by encoder size.

        On a tie the colours are those of the sequence length.
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
        """Return the legend entries of the colours, the name first; empty when nothing varies."""
        return _keys(self.colour_column, [(v, "o", c) for v, c in self.colours.items()])

    def shape_keys(self) -> list[Line2D]:
        """Return the legend entries of the shapes, the name first; empty when nothing varies."""
        return _keys("encoder_size", [(size, shape, MUTED) for size, shape in self.shapes.items()])


def _keys(column: str, entries: list[tuple[Any, str, str]]) -> list[Line2D]:
    if len(entries) < 2:
        return []
    step = -(-len(entries) // 7)  # a long scale shows every second, third ... value
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
    """Return the number of candidates of all runs, or None when they differ."""
    values = distinct(table, "loss_candidates")
    return int(values[0]) if len(values) == 1 else None


def log_axis(ax: Axes) -> None:
    """Set a logarithmic x axis with ticks at powers of ten, and a faint grid of the y axis."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(numticks=8))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: decade(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y", color=FAINT, linewidth=0.5)


def key_rows(ax: Axes, encoding: Encoding) -> None:
    """Draw the keys of colour and shape as rows above the axes, each beginning with its name."""
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
        legend.set_clip_on(False)  # otherwise the layout reserves no space for it
