"""Draw the uncertainty of the answer: backtest errors of the laws, predictions of other choices.

The preferred law is coloured and everything else is grey. An unbounded end leaves the axes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from clue_ray.report.figures.style import (
    DASHES,
    FAINT,
    INK,
    LAW_COLOUR,
    MUTED,
    SHAPES,
    label,
    law_label,
    log_axis,
)
from clue_ray.report.numbers import flop
from clue_ray.spec import columns

ROOM = 0.6
"""Reach of the axis of predictions beyond the points, as a share of their range."""


class Alternative(NamedTuple):
    """The predictions of another choice.

    Attributes:
        name: the name of the choice.
        values: one or more losses in nats.
        low, high: interval of the value, for the answer only.
    """

    name: str
    values: Sequence[float]
    low: float = np.nan
    high: float = np.nan


def backtest_errors(rows: pd.DataFrame, ax: Axes, preferred: str) -> Axes:
    """Draw the backtest errors of each law over the compute of the predicted run.

    `rows` are those of a `Backtest`. The rows of the preferred law have the 95% interval of a run.
    """
    ax.axhline(0, color=INK, linewidth=0.8, zorder=1)
    errors = rows["predicted"] - rows["actual"]
    own = rows["law"] == preferred
    # The axis shows the preferred law and the median law; one bad law must not compress it.
    reach = 1.5 * max(
        float(errors[own].abs().max()),
        float(errors.abs().groupby(rows["law"]).max().median()),
        1e-3,
    )
    rivals = [law for law in dict.fromkeys(rows["law"]) if law != preferred]
    for place, law in enumerate(rivals):
        _errors(
            rows[rows["law"] == law],
            ax,
            reach,
            color=MUTED,
            alpha=0.75,
            marker=SHAPES[1 + place % 11],
            markersize=4,
        )
    bars = rows[own].dropna(subset=["low", "high"])
    ax.vlines(
        bars["x"],
        bars["low"] - bars["actual"],
        bars["high"] - bars["actual"],
        color=LAW_COLOUR,
        alpha=0.4,
    )
    _errors(rows[own], ax, reach, color=LAW_COLOUR, marker="o", markersize=5, zorder=4)
    ax.set_ylim(-reach, reach)
    log_axis(ax)
    _compute_ticks(ax, sorted(set(rows["x"])))
    ax.set_xlabel(
        columns.with_unit(f"{columns.noun('train_flops')} of the predicted run", "train_flops")
    )
    ax.set_ylabel(columns.with_unit("predicted \N{MINUS SIGN} measured", "loss"))
    ax.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, columnspacing=1, handletextpad=0.2
    )
    return ax


def _errors(rows: pd.DataFrame, ax: Axes, reach: float, **look: Any) -> None:
    """Draw the errors of one law; those beyond the axis are at its edge with their value."""
    errors = (rows["predicted"] - rows["actual"]).to_numpy(dtype=float)
    ax.plot(rows["x"], errors, linestyle="none", label=law_label(str(rows["law"].iloc[0])), **look)
    for x, value in zip(rows["x"], errors, strict=True):
        if abs(value) > reach:
            place: dict[str, Any] = {
                "textcoords": "offset points",
                "ha": "right",
                "va": "center",
                "fontsize": 8,
            }
            edge = np.sign(value) * reach * 0.93
            ax.plot(x, edge, linestyle="none", **look)
            ax.annotate(f"{value:+.2f}", (x, edge), xytext=(-6, 0), color=look["color"], **place)


def _compute_ticks(ax: Axes, values: list[float]) -> None:
    """Place ticks at the compute of the runs, as far as there is space."""
    kept = values[:1]
    for value in values[1:]:
        if np.log(value / kept[-1]) >= np.log(values[-1] / values[0]) / 6:
            kept.append(value)
    ax.xaxis.set_major_locator(FixedLocator(kept))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: flop(value)))


def draw_alternatives(choices: Sequence[Alternative], ax: Axes) -> Axes:
    """Draw the answer (the first choice) and the predictions of other choices on one scale."""
    answer = choices[0]
    values = np.concatenate([np.asarray(choice.values, dtype=float) for choice in choices])
    values = values[np.isfinite(values)]
    span = max(float(np.ptp(values)), 1e-3)
    floor, ceiling = float(values.min()) - ROOM * span, float(values.max()) + ROOM * span
    ends = np.clip(np.nan_to_num([answer.low, answer.high], nan=answer.values[0]), floor, ceiling)
    ax.axvspan(*ends, color=LAW_COLOUR, alpha=0.12, linewidth=0, gid="interval")
    ax.plot(ends, [0, 0], color=LAW_COLOUR, linewidth=2)
    for row, choice in enumerate(choices):
        look: dict[str, Any] = {
            "color": LAW_COLOUR if row == 0 else INK,
            "markersize": 5 if row == 0 else 4,
        }
        alpha = 1 if len(choice.values) == 1 else 0.5
        ax.plot(
            choice.values, [row] * len(choice.values), "o", alpha=alpha, gid=f"choice-{row}", **look
        )
        if not np.isfinite(np.asarray(choice.values, dtype=float)).any():
            ax.annotate(
                "cannot be fitted",
                (0.02, row),
                xycoords=ax.get_yaxis_transform(),
                va="center",
                color=MUTED,
            )
    ax.axvline(answer.values[0], color=LAW_COLOUR, linewidth=0.8, linestyle=DASHES[1], zorder=0)
    ax.set_yticks(range(len(choices)), [choice.name for choice in choices])
    ax.set_ylim(len(choices) - 0.4, -0.6)
    ax.set_xlim(min(ends[0], values.min()) - 0.08 * span, max(ends[1], values.max()) + 0.08 * span)
    ax.set_xlabel(f"predicted {label('loss')}")
    ax.grid(axis="x", color=FAINT, linewidth=0.5)
    ax.tick_params(axis="y", length=0)
    return ax
