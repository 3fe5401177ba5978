"""Draw two studies: both laws over compute, and their difference."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from clue_ray.report.figures.headline import law_band
from clue_ray.report.figures.style import DASHES, INK, LAW_COLOUR, MUTED, label, log_axis
from clue_ray.report.numbers import shortened
from clue_ray.scaling.answering.analysis import Analysis
from clue_ray.scaling.fitting.result import Prediction
from clue_ray.spec.columns import noun, with_unit

COLOURS = (LAW_COLOUR, "#0072b2")
"""Okabe-Ito vermillion and blue: distinct in every common colour vision deficiency."""
MARKERS = ("o", "s")


def two_laws(names: Sequence[str], analyses: Sequence[Analysis], ax: Axes) -> Axes:
    """Draw frontier runs, preferred law and 95% interval of two studies over training compute."""
    log_axis(ax)
    shown = []
    for name, analysis, colour, marker in zip(names, analyses, COLOURS, MARKERS, strict=True):
        points, band = analysis.points[analysis.points["frontier"]], law_band(analysis)
        curve = analysis.fits[analysis.preferred].curve(band[0])
        ax.fill_between(*band, color=colour, alpha=0.13, linewidth=0)
        ax.plot(band[0], curve, color=colour, linewidth=1.8, label=shortened(name))
        ax.plot(points["train_flops"], points["loss"], marker, color=colour, markersize=5)
        shown += [*points["loss"], float(curve[-1])]
    ends = [one.points["train_flops"].agg(["min", "max"]).to_numpy(dtype=float) for one in analyses]
    for place in (max(end[0] for end in ends), min(end[1] for end in ends)):
        ax.axvline(place, color=MUTED, linewidth=0.8, linestyle=DASHES[1])
    margin = 0.15 * max(max(shown) - min(shown), 1e-3)
    ax.set_ylim(min(shown) - margin, max(shown) + margin)
    ax.set_xlabel(label("train_flops"))
    ax.set_ylabel(label("loss", analyses[0].candidates))
    ax.legend(loc="lower left")
    return ax


def difference_over_compute(
    train_flops: Sequence[float], gaps: Sequence[Prediction], ax: Axes
) -> Axes:
    """Draw a difference of two losses, with its 95% interval, over compute."""
    value, low, high = np.array(gaps).T
    log_axis(ax)
    ax.axhline(0, color=MUTED, linewidth=0.9)
    ax.fill_between(train_flops, low, high, color=INK, alpha=0.12, linewidth=0)
    ax.plot(train_flops, value, color=INK, linewidth=1.6)
    ax.set_xlabel(label("train_flops"))
    ax.set_ylabel(with_unit(f"difference of {noun('loss')}", "loss"))
    return ax
