"""Draw the profile of a corpus: lengths of histories, fit by sequence length, overlap of services.

Each function draws numbers of profile.json on a matplotlib axes.
"""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from clue_ray.report.figures.lines import end_labels
from clue_ray.report.figures.style import FAINT, INK, darker, label, log_axis, ordered_colours
from clue_ray.report.numbers import compact, count, share_percent

FEW_SERVICES, LABELLED_BARS, LONGEST_NAME = 6, 8, 16
"""Space limits: services of an overlap with counts, bars with numbers, characters of a name."""
PERCENTILES = {"p10": "10%", "p50": "median", "p90": "90%", "p99": "99%", "p100": "longest"}
FITS = {"events": "events kept", "histories": "histories whole"}
DARK, MIDDLE, _ = ordered_colours([0, 1, 2]).values()


def draw_lengths(percentiles: Mapping[str, int], ax: Axes) -> Axes:
    """Draw the numbers of events of histories: a dot per percentile, next to its value."""
    values = [percentiles[name] for name in PERCENTILES]
    ax.plot(values, range(len(values)), "o", color=DARK, clip_on=False)
    for row, value in enumerate(values):
        ax.annotate(
            count(value), (value, row), xytext=(8, 0), textcoords="offset points", va="center"
        )
    log_axis(ax)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    ax.set_yticks(range(len(values)), list(PERCENTILES.values()))
    ax.set(xlim=(1, max(10, values[-1])), ylim=(len(values) - 0.5, -0.5))
    ax.set(xlabel="events of one user in one service", ylabel="histories")
    return ax


def draw_fit(fits: Mapping[str, Mapping[str, float]], ax: Axes) -> Axes:
    """Draw the shares of kept events and of complete histories over sequence length."""
    lengths, colours = [float(length) for length in fits], (DARK, MIDDLE)
    shares = [[100 * fit[kind] for fit in fits.values()] for kind in FITS]
    for line, colour, marker in zip(shares, colours, "os", strict=True):
        ax.plot(lengths, line, marker=marker, markersize=5, color=colour, clip_on=False)
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths, list(fits))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(axis="y", color=FAINT, linewidth=0.5)
    ax.set(ylim=(0, 100), xlabel=label("sequence_length"), ylabel="share, %")
    ends = [(lengths[-1], line[-1]) for line in shares]
    end_labels(ax, ends, list(FITS.values()), list(map(darker, colours)))
    return ax


def draw_users(users: Mapping[int, int], ax: Axes) -> Axes:
    """Draw the number of users in one service, in two services, and so on."""
    numbered = range(1, max(users) + 1)
    bars = ax.bar(numbered, [users.get(n, 0) for n in numbered], width=0.7, color=MIDDLE)
    for n, bar in zip(numbered, bars, strict=True):
        bar.set_gid(f"bar-{n}")
    if len(numbered) <= LABELLED_BARS:
        ax.bar_label(bars, [_short(users.get(n, 0)) for n in numbered], padding=2)
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    ax.set(xlim=(0.4, len(numbered) + 0.6), xlabel="services of a user", ylabel="users")
    return ax


def draw_overlap(names: Sequence[str], users: Sequence[Sequence[int]], ax: Axes) -> Axes:
    """Draw the share of the users of each row who are in each column; the diagonal is grey."""
    few = len(names) <= FEW_SERVICES
    for row, column in np.ndindex(len(names), len(names)):
        share = users[row][column] / max(1, users[row][row])
        colour = FAINT if row == column else mpl.colormaps["viridis_r"](share)
        cell = Rectangle(
            (column, row), 1, 1, facecolor=colour, edgecolor="white", gid=f"cell-{row}-{column}"
        )
        ax.add_patch(cell)
        words = _short(users[row][column]) if few else ""
        if row != column:
            words = f"{share_percent(share)}\n{words}" if few else _whole_percent(share)
        ink = "white" if row != column and share > 0.55 else INK
        ax.text(
            column + 0.5,
            row + 0.5,
            words,
            ha="center",
            va="center",
            fontsize=8 if few else 7,
            color=ink,
        )
    middles = np.arange(len(names)) + 0.5
    shown = [
        name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names
    ]
    ax.set_xticks(middles, shown, rotation=40, ha="right", rotation_mode="anchor", parse_math=False)
    ax.set_yticks(middles, shown, parse_math=False)
    ax.set(
        xlim=(0, len(names)), ylim=(len(names), 0), xlabel="… also in", ylabel="of the users of …"
    )
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def _short(amount: int) -> str:
    """Format a count for a bar or a cell."""
    return count(amount) if amount < 100_000 else compact(amount)


def _whole_percent(part: float) -> str:
    """Format a share in whole per cent without the sign; only all is 100, and only nothing is 0."""
    return "<1" if 0 < part < 0.01 else ">99" if 0.99 < part < 1 else f"{100 * part:.0f}"
