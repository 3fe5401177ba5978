"""Keep one bad run from squeezing a figure: where the loss axis ends, and how runs beyond it are marked.

Takes losses and a matplotlib axes. One idea: a run worse than a guess says nothing about a law, so it is shown by
an arrow at the edge with its loss, not by an axis that reaches it.
"""

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes

MARGIN = 0.15
"""How far above chance a loss axis may reach, as a share of the way from the lowest loss to chance."""


def highest_shown(losses: Iterable[float], candidates: int | None) -> float:
    """Give the highest loss that a figure shows in place: the highest of all, or slightly above chance."""
    values = np.array(list(losses), dtype=float)
    low, high = float(values.min()), float(values.max())
    chance = float(np.log(candidates)) if candidates else np.inf
    return min(high, chance + MARGIN * (chance - low)) if low < chance < np.inf else high


def mark_clipped(ax: Axes, x: float, loss: float, colour: str, gid: str | None = None) -> None:
    """Mark a run above the axes: an arrow at the upper edge at `x` and its loss in nats beside it."""
    right = ax.transAxes.inverted().transform(ax.transData.transform((x, 0)))[0] > 0.8
    ax.annotate(
        f"{loss:.2f}",
        (x, 1.0),
        xycoords=ax.get_xaxis_transform(),
        xytext=(-4 if right else 4, -12),
        textcoords="offset points",
        ha="right" if right else "left",
        va="center",
        fontsize=8,
        color=colour,
        gid=gid,
    )
    arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
    start = {"xytext": (0, -18), "textcoords": "offset points"}
    ax.annotate("", (x, 1.0), xycoords=ax.get_xaxis_transform(), arrowprops=arrow, **start)  # type: ignore[arg-type]
