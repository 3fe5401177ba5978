"""Draw the headline plot: held-out loss of every run over compute, with forecast and laws.

The forecast and its interval are prominent; the laws and runs off the frontier are subdued.
A run far above chance would compress the loss axis and carries no information about a law, so an
arrow at the upper edge shows it instead (`highest_shown`, `mark_clipped`).
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from clue_ray.report.figures.style import (
    BASELINE_COLOUR,
    DASHES,
    FAINT,
    FLOOR_COLOUR,
    INK,
    LAW_COLOUR,
    MUTED,
    Encoding,
    candidates_of,
    darker,
    key_rows,
    label,
    law_label,
    log_axis,
)
from clue_ray.report.numbers import significant
from clue_ray.scaling.answering.analysis import Analysis
from clue_ray.scaling.laws.law import Floats

MARGIN = 0.15
"""Largest reach of a loss axis above chance, as a share of the distance from the lowest loss."""
EXTRAPOLATION = 10.0
"""Factor beyond the compute of the largest run up to which the laws are drawn."""
NEXT, FORECASTS = 1.02, 13
"""First forecast's compute over that of the last frontier run, and number of places drawn."""
HEADROOM = 0.1
"""Space above the highest loss that the axis must show, as a share of the range of losses."""

FRONTIER: dict[str, Any] = {
    "markersize": 7,
    "markeredgecolor": INK,
    "markeredgewidth": 0.9,
    "zorder": 5,
}
BEHIND: dict[str, Any] = {"markersize": 5, "markeredgecolor": "none", "alpha": 0.55, "zorder": 4}
PART: dict[str, Any] = {
    "linestyle": "none",
    "markersize": 5,
    "markerfacecolor": "none",
    "markeredgecolor": MUTED,
    "markeredgewidth": 0.8,
    "alpha": 0.7,
    "zorder": 3,
}
RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 12,
    "markerfacecolor": "none",
    "markeredgecolor": INK,
    "markeredgewidth": 0.8,
    "zorder": 6,
}


class Band(NamedTuple):
    """The forecast and its 80% interval in nats at each training compute in FLOP, (places,)."""

    train_flops: npt.NDArray[np.float64]
    value: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def loss_against_compute(
    source: Analysis | pd.DataFrame,
    ax: Axes,
    baselines: Sequence[tuple[str, float]] = (),
    band: Band | None = None,
    floor: float | None = None,
    ablations: pd.DataFrame | None = None,
) -> Axes:
    """Draw the held-out loss of every run over training compute, and the laws of an Analysis.

    Each run is one artist with gid `run-<run_id>`. The laws are drawn to 10 times the largest
    compute.

    Args:
        source: an Analysis, or a runs table without laws.
        ax: the axes to draw on.
        baselines: names and losses of the baselines.
        band: the forecast and its interval, where several drawings share them.
        floor: the lowest loss that an encoder can have, in nats.
        ablations: runs of one part of the encoder, drawn faintly: no law describes them.
    """
    points = source.points if isinstance(source, Analysis) else source
    points = points[points["train_flops"].notna() & points["loss"].notna()]
    candidates, largest = candidates_of(points), float(points["train_flops"].max())
    drawn_band = None
    log_axis(ax)
    if isinstance(source, Analysis):
        drawn_band = band or forecast_band(source)
        _laws(source, ax)
        _forecast(ax, drawn_band)
        _extrapolation_zone(ax, largest)
    _runs(points, ax)
    others = points.iloc[:0] if ablations is None else ablations
    _parts(others, Encoding.of(points), ax)
    if candidates:
        _level(
            ax,
            float(np.log(candidates)),
            f"chance, ln {candidates} = {np.log(candidates):.2f}",
            MUTED,
            above=True,
        )
    for name, level in baselines:
        _level(ax, level, f"{name}: {significant(level)}", BASELINE_COLOUR, above=False)
    reached = largest * (EXTRAPOLATION if isinstance(source, Analysis) else 1.6)
    shown = pd.concat([points, others])
    ax.set_xlim(float(shown["train_flops"].min()) / 1.6, reached)
    _limit_loss(ax, shown, [level for _, level in baselines], drawn_band, floor)
    if floor is not None:
        _floor(ax, floor)
    ax.set_xlabel(label("train_flops"))
    ax.set_ylabel(label("loss", candidates))
    _headline_keys(ax, points, source, has_parts=len(others) > 0)
    return ax


def forecast_band(analysis: Analysis) -> Band | None:
    """Forecast from the largest run on the frontier to ten times the largest; None without one."""
    if analysis.forecaster is None:
        return None
    start, end = analysis.forecaster.end, float(analysis.points["train_flops"].max())
    compute = np.geomspace(start * NEXT, end * EXTRAPOLATION, FORECASTS)
    made = [analysis.forecaster.at(float(place)) for place in compute]
    low, high = np.array([one.interval(0.8) for one in made]).T
    return Band(compute, np.array([one.value for one in made]), low, high)


def law_band(analysis: Analysis) -> tuple[Floats, Floats, Floats]:
    """Evaluate the preferred law's 95% interval along the runs: compute, low and high, (places,).

    Places where the law is not positive are left out; an unbounded end is far outside any plot.
    """
    fit, spent = analysis.fits[analysis.preferred], analysis.points["train_flops"]
    compute = np.geomspace(float(spent.min()), float(spent.max()), 61)
    compute = compute[fit.curve(compute) > 0]
    low, high = fit.band(compute)
    return compute, low, np.nan_to_num(high, posinf=1e3)


def highest_shown(losses: Iterable[float], candidates: int | None) -> float:
    """Return the upper end of a loss axis: the highest loss, but only slightly above chance."""
    values = np.array(list(losses), dtype=float)
    low, high = float(values.min()), float(values.max())
    chance = float(np.log(candidates)) if candidates else np.inf
    return min(high, chance + MARGIN * (chance - low)) if low < chance < np.inf else high


def mark_clipped(ax: Axes, x: float, loss: float, colour: str, gid: str | None = None) -> None:
    """Mark a run above the axes: an arrow at the upper edge at `x`, next to its loss in nats."""
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
    ax.annotate(
        "",
        (x, 1.0),
        xycoords=ax.get_xaxis_transform(),
        xytext=(0, -18),
        textcoords="offset points",
        arrowprops=arrow,
    )


def clipped_runs(points: pd.DataFrame, levels: Sequence[float]) -> pd.DataFrame:
    """Return the runs above the loss axis; `levels` are the losses of the baselines in nats."""
    low, height = _span(points, levels)
    return points[points["loss"] > low + (1 + HEADROOM) * height]


def _compute(analysis: Analysis, count: int) -> npt.NDArray[np.float64]:
    compute = analysis.points["train_flops"]
    return np.geomspace(float(compute.min()), float(compute.max()) * EXTRAPOLATION, count)


def _laws(analysis: Analysis, ax: Axes) -> None:
    compute = _compute(analysis, 121)
    rivals = [name for name in analysis.fits if name != analysis.preferred]
    looks: dict[str, dict[str, Any]] = {
        name: {
            "color": MUTED,
            "linewidth": 0.9,
            "linestyle": DASHES[i % len(DASHES)],
            "label": law_label(name),
        }
        for i, name in enumerate(rivals)
    }
    name = f"{law_label(analysis.preferred)} (preferred)"
    looks[analysis.preferred] = {"color": INK, "linewidth": 1.2, "label": name, "zorder": 3}
    for law, look in looks.items():
        ax.plot(
            compute, analysis.fits[law].curve(compute), gid=f"law-{law}", **{"zorder": 2, **look}
        )


def _forecast(ax: Axes, band: Band | None) -> None:
    if band is None:
        return
    ax.fill_between(
        band.train_flops,
        band.low,
        band.high,
        color=LAW_COLOUR,
        alpha=0.2,
        linewidth=0,
        zorder=1,
        gid="band",
    )
    name = "forecast, 80% interval"
    look: dict[str, Any] = {"color": LAW_COLOUR, "linewidth": 2.2, "zorder": 4, "label": name}
    ax.plot(band.train_flops, band.value, gid="forecast", **look)


def _extrapolation_zone(ax: Axes, start: float) -> None:
    ax.axvspan(
        start,
        start * EXTRAPOLATION,
        color=FAINT,
        alpha=0.35,
        linewidth=0,
        zorder=0,
        gid="extrapolation",
    )
    ax.text(
        start * EXTRAPOLATION**0.5,
        0.015,
        "extrapolated\nto 10\N{MULTIPLICATION SIGN}",
        transform=ax.get_xaxis_transform(),
        ha="center",
        va="bottom",
        fontsize=8,
        color=MUTED,
        linespacing=1.15,
    )


def _runs(points: pd.DataFrame, ax: Axes) -> None:
    encoding = Encoding.of(points)
    for run in points.to_dict("records"):
        where = [run["train_flops"]], [run["loss"]]
        look: dict[str, Any] = {
            "marker": encoding.shape(run),
            "color": encoding.colour(run),
            "linestyle": "none",
        }
        ax.plot(
            *where,
            gid=f"run-{run['run_id']}",
            **look,
            **(FRONTIER if run.get("frontier", True) else BEHIND),
        )
        if run.get("held_out", False):
            ax.plot(*where, linestyle="none", gid=f"ring-{run['run_id']}", **RING)


def _parts(ablations: pd.DataFrame, encoding: Encoding, ax: Axes) -> None:
    for run in ablations.to_dict("records"):
        where = run["train_flops"], run["loss"]
        ax.plot(*where, marker=encoding.shape(run), gid=f"run-{run['run_id']}", **PART)


def _level(ax: Axes, height: float, text: str, colour: str, *, above: bool) -> None:
    ax.axhline(height, color=colour, linewidth=0.9, linestyle=DASHES[0], zorder=1)
    ax.annotate(
        text,
        (0.99, height),
        xycoords=ax.get_yaxis_transform(),
        xytext=(0, 2 if above else -2),
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
        fontsize=8.5,
        color=colour,
        bbox={
            "facecolor": "white",
            "edgecolor": "none",
            "alpha": 0.75,
            "pad": 0.5,
        },  # keeps the text readable where a law passes behind it
    )


def _floor(ax: Axes, floor: float) -> None:
    """Draw the lowest loss that an encoder can have, or note it where it lies below the axes."""
    text = f"lowest possible loss (Bayes): {floor:.2f}"
    if floor >= ax.get_ylim()[0]:
        _level(ax, floor, text, FLOOR_COLOUR, above=False)
        return
    place: dict[str, Any] = {
        "xy": (0.99, 0.0),
        "xycoords": "axes fraction",
        "xytext": (0, 3),
        "textcoords": "offset points",
    }
    ax.annotate(f"{text} ↓", **place, ha="right", va="bottom", fontsize=8.5, color=FLOOR_COLOUR)


def _limit_loss(
    ax: Axes,
    points: pd.DataFrame,
    levels: list[float],
    band: Band | None,
    floor: float | None = None,
) -> None:
    """Limit the loss axis to runs, levels and laws, and mark the runs above it.

    The interval may leave the axes; a law or a floor extends them only if it is close.
    """
    low, height = _span(points, levels)
    top = low + height
    ends = [float(np.asarray(line.get_ydata())[-1]) for line in _law_lines(ax)]
    ends += [] if band is None else [float(band.low[-1])]
    ends += [] if floor is None else [floor]
    lowest = min([low, *(end for end in ends if end > low - height)])
    # Half the range below the lowest loss is space for the legend.
    ax.set_ylim(min(lowest - 0.1 * height, low - 0.5 * height), top + HEADROOM * height)
    encoding = Encoding.of(points)
    for run in clipped_runs(points, levels).to_dict("records"):
        colour = darker(encoding.colour(run))
        mark_clipped(ax, run["train_flops"], run["loss"], colour, gid=f"clipped-{run['run_id']}")


def _span(points: pd.DataFrame, levels: Sequence[float]) -> tuple[float, float]:
    """Return the lowest loss to be shown and its distance to the highest, in nats."""
    candidates = candidates_of(points)
    shown = [*points["loss"], *levels, *([float(np.log(candidates))] if candidates else [])]
    top = max(highest_shown(shown, candidates), *levels, 0.0)
    return min(shown), max(top - min(shown), 1e-3)


def _law_lines(ax: Axes) -> list[Line2D]:
    """Return the lines of the forecast and the laws, the preferred law first among these."""
    lines = [line for line in ax.lines if str(line.get_gid()).startswith(("forecast", "law-"))]
    return sorted(lines, key=lambda line: -line.get_zorder())


def _headline_keys(
    ax: Axes, points: pd.DataFrame, source: Analysis | pd.DataFrame, has_parts: bool
) -> None:
    key_rows(ax, Encoding.of(points))
    handles = []
    if isinstance(source, Analysis):
        dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "color": "white"}
        handles = [*_law_lines(ax), Line2D([], [], label="on the frontier", **dot, **FRONTIER)]
        if points["held_out"].any():
            handles.append(Line2D([], [], label="held out of the fit", linestyle="none", **RING))
    if has_parts:
        handles.append(Line2D([], [], label="one part of the encoder", marker="o", **PART))
    if not handles:
        return
    ax.legend(
        handles=handles,
        loc="lower left",
        handlelength=2.2,
        labelspacing=0.35,
        borderaxespad=0.2,
    )
