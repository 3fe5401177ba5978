"""Warnings about an analysis: at most one sentence per subject, without raw column or law names.

Each function returns an empty list or one sentence. `analyse` orders them, the most serious first.
"""

import numpy as np
import pandas as pd

from clue_ray.scaling.answering.axes import axes_of
from clue_ray.scaling.answering.sentences import listing, loss_words, number
from clue_ray.scaling.fitting.intervals import MIN_FREEDOM_TO_CLIP
from clue_ray.scaling.fitting.result import Fit, Prediction
from clue_ray.scaling.fitting.warnings import MIN_DECADES
from clue_ray.scaling.forecasting.forecast import Forecast
from clue_ray.scaling.judging.backtest import LOOK_AHEAD
from clue_ray.spec.columns import noun, short_label


def open_question(points: pd.DataFrame, ahead: Forecast | None) -> list[str]:
    """Warn where the 80 % interval of the forecast still contains the best measured loss."""
    best = float(points["loss"].min())
    if ahead is None or not ahead.interval(0.8)[1] >= best:
        return []
    return [
        f"The 80 % interval at {LOOK_AHEAD} times the {noun('train_flops')} contains the best "
        f"measured {noun('loss')}, {loss_words(best)}: these runs do not exclude that more "
        f"{noun('train_flops')} brings no gain."
    ]


def few_runs(fit: Fit) -> list[str]:
    """Warn where the preferred law has too few runs to distinguish an outlier from noise."""
    if fit.num_runs - len(fit.parameters) >= MIN_FREEDOM_TO_CLIP:
        return []
    return [
        f"Each law is fitted to only {number(fit.num_runs)} runs, too few to distinguish an "
        "outlier from noise: one odd run would change every number."
    ]


def influential(table: pd.DataFrame, ahead: Prediction | None) -> list[str]:
    """Warn where the prediction leaves its own interval when one run is left out."""
    moved = table.dropna(subset=["change"])
    if ahead is None or moved.empty:
        return []
    name, without, change = (
        str(moved["run"].iloc[0]),
        float(moved["predicted"].iloc[0]),
        moved["change"].iloc[0],
    )
    if ahead.low <= without <= ahead.high:
        return []
    return [
        f"The prediction depends on run {name[:12]}: without it the law predicts "
        f"{loss_words(without, 2)} ({change:+.1%}), outside the interval; repeat that run."
    ]


def at_bound(fit: Fit) -> list[str]:
    """Warn where the exponent of the preferred law is at the edge of the searched range."""
    return [warning for warning in fit.fit_warnings if "exponent is at its bound" in warning]


def floors(fits: dict[str, Fit], decades: float) -> list[str]:
    """Warn which laws have a floor (an irreducible loss) that the runs do not identify."""
    bare = [
        fit.law.words
        for fit in fits.values()
        if fit.law.floor and not fit.identified(fit.law.floor)
    ]
    short = f"{decades:.1f} decades of {noun('train_flops')}"
    if bare:
        return [
            f"Over {short} the runs do not identify a floor: any floor fits in the {listing(bare)}."
        ]
    held = [fit.law.words for fit in fits.values() if fit.law.floor]
    if held and decades < MIN_DECADES:
        return [
            f"The floor of the {listing(held)} rests on {short}; with fewer than "
            f"{MIN_DECADES} decades it is unreliable."
        ]
    return []


def levers(points: pd.DataFrame) -> list[str]:
    """State which settings raised the compute along the frontier.

    The prediction assumes that these settings can grow further.
    """
    best = points[points["frontier"]]
    grown = {
        short_label(column): best[column].max() / best[column].min()
        for column in axes_of(points)
        if column in best
    }
    own = "corpus_users" in points and points["corpus_users"].notna().any()
    named = [
        f"{name} ({ratio:.3g}-fold)"
        for name, ratio in grown.items()
        if np.isfinite(ratio) and ratio > 1
    ]
    if not named:
        return []
    return [
        f"Along the frontier, {noun('train_flops')} was raised through {listing(named)}: the "
        "prediction holds only as far as these can grow"
        f"{', and histories cannot be longer than those in the log' if own else ''}."
    ]


def one_seed(points: pd.DataFrame) -> list[str]:
    """Warn where all runs have one seed, so that the variance between seeds is unknown."""
    if "seed" not in points or points["seed"].nunique() != 1:
        return []
    return [
        "Every run has the same seed, so the intervals do not include the variance between seeds; "
        "repeat some runs with other seeds."
    ]


def above_chance(points: pd.DataFrame, chance: float | None) -> list[str]:
    """Count the runs with a loss above chance, a sign of overfitting."""
    worse = points[points["loss"] > (np.inf if chance is None else chance)]
    if worse.empty:
        return []
    passes = ""
    if {"users_seen", "corpus_users"} <= set(worse):
        epochs = (worse["users_seen"] / worse["corpus_users"]).max()
        passes = f", after up to {epochs:.0f} epochs over their users"
    # A loss above chance takes confident wrong predictions: the training users were memorised.
    return [
        f"{number(len(worse)).capitalize()} of the runs ended with a loss above chance{passes}: "
        "they are overfitted."
    ]


def decades_of(values: pd.Series) -> float:
    """Return the range of a column in powers of ten."""
    return float(np.log10(values.max() / values.min()))
