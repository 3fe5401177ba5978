"""Draw the figures of the open CLUE study: one figure per question, one panel per corpus.

Colours show the width of the encoder, except in the first figure.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from clue_ray.report.figures.style import (
    DASHES,
    FAINT,
    FLOOR_COLOUR,
    INK,
    LAW_COLOUR,
    MUTED,
    STYLE,
    label,
    ordered_colours,
)
from clue_ray.report.numbers import compact, decade
from clue_ray.runs import chance_loss
from paper.answers import LAWS, analysis_of
from paper.points import VARIED, Points, seed_means

Draw = Callable[[Points, Axes, dict[int, float]], None]
PANEL = (3.7, 3.3)
"""Width and height of a panel, inches."""


def draw_all(
    corpora: Mapping[str, Points], floors: Mapping[str, dict[int, float]], folder: Path
) -> None:
    """Write all figures as PNG files.

    Args:
        corpora: Finished runs by corpus.
        floors: Lowest possible loss in nats by sequence length, for each corpus. Empty if unknown.
        folder: Output folder, created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Draw] = {
        "compute": compute,
        "length": lambda points, ax, floor: by_width(points, ax, "length", floor),
        "users": lambda points, ax, _: by_width(points, ax, "users"),
        "budgets": budgets,
    }
    with matplotlib.rc_context(STYLE):
        for name, draw in drawings.items():
            figure, axes = plt.subplots(
                1, len(corpora), figsize=(PANEL[0] * len(corpora), PANEL[1]), squeeze=False
            )
            for points, ax in zip(corpora.values(), axes[0], strict=True):
                draw(points, ax, floors[points.name])
                ax.set_title(points.title)
            save(figure, folder / f"{name}.png")
        batches(corpora, folder / "batch.png")


def save(figure: plt.Figure, file: Path) -> None:
    """Write a figure. Equal points give equal bytes."""
    figure.tight_layout()
    figure.savefig(file, dpi=160, metadata={"Software": None})
    plt.close(figure)


def compute(points: Points, ax: Axes, floor: Mapping[int, float]) -> None:
    """Draw the runs, the laws fitted below the largest budget and the preferred law's interval."""
    found = analysis_of(points)
    runs = found.points
    behind, front, held = (
        runs[~runs["frontier"]],
        runs[runs["frontier"] & ~runs["held_out"]],
        runs[runs["held_out"]],
    )
    ax.plot(behind["train_flops"], behind["loss"], "o", color=FAINT, markersize=3)
    ax.plot(
        front["train_flops"],
        front["loss"],
        "o",
        color=INK,
        markersize=4,
        label="best at their compute",
    )
    ax.plot(
        held["train_flops"], held["loss"], "o", markerfacecolor="none", color=INK, label="held out"
    )
    x = np.geomspace(runs["train_flops"].min(), runs["train_flops"].max() * 10, 80)
    for law, dashes in zip([law for law in LAWS if law in found.fits], DASHES, strict=False):
        look = (
            {"color": LAW_COLOUR, "linewidth": 1.8}
            if law == found.preferred
            else {"color": MUTED, "linestyle": dashes, "linewidth": 0.9}
        )
        ax.plot(x, found.fits[law].curve(x), label=law.replace("_", " "), **look)
    low, high = found.fits[found.preferred].band(x)
    ax.fill_between(x, low, high, color=LAW_COLOUR, alpha=0.15, linewidth=0)
    level(ax, found.chance, "chance", MUTED)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: decade(value)))
    bottom = runs["loss"].min() - 0.25 * (found.chance - runs["loss"].min())
    if floor:
        truth = floor[points.base["sequence_length"]]
        level(ax, truth, f"floor of the log, {truth:.2f}", FLOOR_COLOUR, left=True)
        bottom = min(bottom, truth - 0.2 * (found.chance - truth))
    top = found.chance + 0.15 * (found.chance - bottom)  # runs on few users end far above chance
    ax.set_ylim(bottom, top)
    if above := int((runs["loss"] > top).sum()):
        ax.text(
            0.01,
            0.98,
            f"{above} overfitted runs above",
            va="top",
            fontsize=7,
            color=MUTED,
            transform=ax.transAxes,
        )
    ax.set_xlabel(label("train_flops"))
    ax.set_ylabel(label("loss"))
    ax.legend(loc="upper right", bbox_to_anchor=(1.02, 0.87), fontsize=6.5)


def level(ax: Axes, value: float, name: str, colour: str, left: bool = False) -> None:
    """Draw a horizontal line with its name at the right end, or at the left."""
    ax.axhline(value, color=colour, linewidth=0.8, linestyle=DASHES[1])
    place = {"x": 0.01, "ha": "left"} if left else {"x": 0.99, "ha": "right"}
    ax.text(
        y=value,
        s=name,
        va="bottom",
        fontsize=7,
        color=colour,
        transform=ax.get_yaxis_transform(),
        **place,
    )


def by_width(
    points: Points, ax: Axes, varied: str, floor: Mapping[int, float] | None = None
) -> None:
    """Draw loss over an axis at equal steps, one line per width: seeds and their means."""
    column, rows = VARIED[varied], points.equal_steps(varied)
    lines(points, ax, rows, column)
    if floor:
        lengths = sorted(rows[column].unique())
        ax.plot(
            lengths,
            [floor[length] for length in lengths],
            color=FLOOR_COLOUR,
            linestyle=DASHES[1],
            label="floor",
        )
    level(ax, chance_loss(int(rows["loss_candidates"].iloc[0])), "chance", MUTED)
    ax.set_ylabel(label("loss"))
    ax.legend(loc="best", fontsize=6.5, title="width", title_fontsize=6.5)


def lines(points: Points, ax: Axes, rows: pd.DataFrame, column: str) -> None:
    """Draw loss over a column, one line per width, with one colour per width in all panels."""
    means = seed_means(rows, "width", column)
    colours = ordered_colours(sorted(points.equal_steps("length")["width"].unique()))
    for width, own in means.groupby("width"):
        ax.plot(
            own[column],
            own["loss"],
            "o-",
            color=colours[width],
            markersize=4,
            linewidth=1.3,
            label=str(width),
        )
        seeds = rows[rows["width"] == width]
        ax.plot(seeds[column], seeds["loss"], "_", color=colours[width], markersize=5, alpha=0.7)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(sorted(means[column].unique())))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    ax.set_xlabel(label(column))


def budgets(points: Points, ax: Axes, _: Mapping[int, float]) -> None:
    """Draw loss over parameters, one line per budget, with a circle around its best size."""
    means = seed_means(points.isoflop(), "budget", "non_embedding_params")
    colours = ordered_colours(sorted(means["budget"].unique()))
    for budget, own in means.groupby("budget"):
        colour = colours[budget]
        ax.plot(
            own["non_embedding_params"],
            own["loss"],
            "o-",
            color=colour,
            markersize=4,
            label=f"{budget:.1e} FLOP",
        )
        best = own.loc[own["loss"].idxmin()]
        ax.plot(
            best["non_embedding_params"],
            best["loss"],
            "o",
            markersize=9,
            markerfacecolor="none",
            color=colour,
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    ax.set_xlabel(label("non_embedding_params"))
    ax.set_ylabel(label("loss"))
    ax.legend(loc="best", fontsize=6.5)


def batches(corpora: Mapping[str, Points], file: Path) -> None:
    """Draw loss over batch size, one row per corpus: equal steps, equal examples, equal compute."""
    columns = 2 + max(points.equal_compute()["budget"].nunique() for points in corpora.values())
    size = (2.9 * columns, 2.7 * len(corpora))
    figure, axes = plt.subplots(len(corpora), columns, figsize=size, squeeze=False, sharey="row")
    for points, row in zip(corpora.values(), axes, strict=True):
        budgets = points.equal_compute().groupby("budget")
        regimes = {
            "equal steps": points.equal_steps("batch"),
            "equal examples": points.equal_examples(),
        }
        regimes |= {f"{budget:.1e} FLOP": own for budget, own in budgets}
        for (name, rows), ax in zip(regimes.items(), row, strict=False):
            lines(points, ax, rows, "global_batch_size")
            ax.set_title(f"{points.title}, {name}", fontsize=8)
        row[0].set_ylabel(label("loss"))
        row[0].legend(loc="best", fontsize=6.5, title="width", title_fontsize=6.5)
    save(figure, file)
