"""What a reader should know before trusting an analysis: at most one sentence a subject, the
gravest first.

Takes runs, fits and backtest; gives sentences without raw names. The one idea: doubts that share a
cause are one.
"""

import numpy as np
import pandas as pd

from clue_ray.errors import FitError
from clue_ray.scaling.answering.sentences import listing, number
from clue_ray.scaling.fitting.fit import Fit, Prediction
from clue_ray.scaling.fitting.intervals import ENOUGH_FREEDOM
from clue_ray.scaling.fitting.warnings import ENOUGH_DECADES
from clue_ray.scaling.judging.backtest import LOOK_AHEAD, Backtest
from clue_ray.spec.columns import axes, short_label


def open_question(points: pd.DataFrame, ahead: Prediction | None) -> list[str]:
    """Say when the interval far out still holds the best loss measured."""
    best = float(points["loss"].min())
    if ahead is None or not ahead.high >= best:
        return []
    return [
        f"The interval at {LOOK_AHEAD} times the compute holds the best loss measured, {best:.3f} "
        f"nats: "
        "the runs do not exclude that more compute buys nothing."
    ]


def missed_held_out(points: pd.DataFrame, preferred_fit: Fit) -> list[str]:
    """Say when the best held-out run lies outside what the law that speaks foretold of it."""
    held = points[points["held_out"]]
    if held.empty:
        return []
    best = held.sort_values("loss").iloc[0]
    try:
        _, low, high = preferred_fit.predict_run(
            **{preferred_fit.x[0]: float(best[preferred_fit.x[0]])}
        )
    except FitError:  # a law that is not positive there
        return []
    if low <= best["loss"] <= high:
        return []
    return [
        f"The largest run on the frontier, held out, measured {best['loss']:.3f} nats, outside the "
        f"{low:.3f} to {high:.3f} that the {preferred_fit.law.words} foretold: it may not hold further "
        f"out either."
    ]


def few_runs(fit: Fit) -> list[str]:
    """Say when the runs under the preferred law are too few to tell an outlier from noise."""
    if fit.num_runs - len(fit.parameters) >= ENOUGH_FREEDOM:
        return []
    return [
        f"Only {number(fit.num_runs)} runs lie under each law, too few to tell an outlier from "
        f"noise: "
        "one odd run would move every number."
    ]


def undecided(judged: Backtest, fits: dict[str, Fit]) -> list[str]:
    """Say which laws the backtest cannot tell apart, and why one of them speaks."""
    if not judged.tied:
        return []
    count = int(judged.summary["num_predictions"].iloc[0])
    rivals = listing([f"the {fits[law].law.words}" for law in judged.tied])
    name = fits[judged.preferred].law.words
    why = "for it erred least"
    if fits[judged.preferred].law.floor:
        why = "for leaving out a floor that is there costs far more than keeping one that is not"
    return [
        f"The backtest's {number(count)} predictions cannot tell the {name} from {rivals}; the "
        f"{name} speaks, {why}."
    ]


def influential(table: pd.DataFrame, ahead: Prediction | None) -> list[str]:
    """Say when one run alone carries the prediction: without it the answer leaves its own
    interval.
    """
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
        f"The prediction hangs on run {name[:12]}: without it {without:.2f} nats ({change:+.1%}), "
        f"outside the "
        "interval; repeat that run."
    ]


def at_bound(fit: Fit) -> list[str]:
    """Say when the exponent of the law that speaks ended at the edge of the range searched."""
    return [warning for warning in fit.fit_warnings if "exponent is at its bound" in warning]


def floors(fits: dict[str, Fit], decades: float) -> list[str]:
    """Say which laws have a floor, the loss that no compute goes below, that the runs do not
    show.
    """
    bare = [
        fit.law.words
        for fit in fits.values()
        if fit.law.floor and not fit.identified(fit.law.floor)
    ]
    short = f"{decades:.1f} decades of compute"
    if bare:
        return [
            f"Over {short} the runs do not show a floor: any floor fits in the {listing(bare)}."
        ]
    held = [fit.law.words for fit in fits.values() if fit.law.floor]
    if held and decades < ENOUGH_DECADES:
        return [
            f"The floor of the {listing(held)} rests on {short}; under {ENOUGH_DECADES} it means "
            f"little."
        ]
    return []


def other_interval(fit: Fit, ahead: float) -> list[str]:
    """Say where a bootstrap of the preferred law's prediction disagrees with its interval."""
    found = fit.cross_check(**{fit.x[0]: ahead})
    if found is None:
        return []
    profile, rival = found
    side = "wider" if rival.high - rival.low > profile.high - profile.low else "narrower"
    return [
        f"A bootstrap of the {fit.law.words} gives {rival.low:.2f} to {rival.high:.2f} nats at "
        f"{LOOK_AHEAD} times the "
        f"compute, much {side} than the interval shown; trust the wider one."
    ]


def levers(points: pd.DataFrame) -> list[str]:
    """Say which settings the frontier's compute came from: a prediction holds where they can still
    grow.
    """
    best = points[points["frontier"]]
    grown = {
        short_label(column): best[column].max() / best[column].min()
        for column in axes()
        if column in best
    }
    named = [
        f"{name} ({ratio:.3g}-fold)"
        for name, ratio in grown.items()
        if np.isfinite(ratio) and ratio > 1
    ]
    if not named:
        return []
    return [
        f"Along the frontier compute came from {listing(named)}: the prediction holds only as far "
        f"as these can grow, "
        "and histories cannot outgrow the log."
    ]


def one_seed(points: pd.DataFrame) -> list[str]:
    """Say when nothing in the runs tells how much two seeds differ."""
    if "seed" not in points or points["seed"].nunique() > 1:
        return []
    return [
        "Every run has the same seed, so the intervals do not hold the difference between seeds; "
        "repeat some runs."
    ]


def above_chance(points: pd.DataFrame, chance: float) -> list[str]:
    """Count the runs worse than a guess: they learnt their training users by heart and are sure of
    it.
    """
    worse = points[points["loss"] > chance]
    if worse.empty:
        return []
    passes = ""
    if {"users_seen", "corpus_users"} <= set(worse):
        epochs = (worse["users_seen"] / worse["corpus_users"]).max()
        passes = f", after up to {epochs:.0f} passes over their users"
    return [
        f"{number(len(worse))} of the runs ended worse than a guess{passes}: overfitted, and sure "
        f"of it.".capitalize()
    ]


def decades_of(values: pd.Series) -> float:
    """Measure a column's span in powers of ten."""
    return float(np.log10(values.max() / values.min()))
