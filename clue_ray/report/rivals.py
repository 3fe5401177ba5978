"""The rivals of the encoder, and the verdict: by how much, beyond noise and from where is it ahead?

Rivals are the baselines of baselines.json, and the runs of the table that train one part of the
encoder only. All were scored on the same users.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clue_ray.report import numbers
from clue_ray.report.read import StudyFiles
from clue_ray.runs import chance_loss
from clue_ray.scaling.fitting.frontier import mark, settings_of

SIGNIFICANT = 2.0
"""Standard deviations between seeds above which a difference is not taken for noise."""
OVERCONFIDENT = 0.1
"""Nats between the losses at the learned and at the calibrated temperature that are reported."""
FITTED_AT_EACH_LENGTH = "linear_map"
"""The method with an entry per history length, of which a figure shows only the best."""


PARTS = {
    "bag": "the bag of tokens alone, trained",
    "transformer": "CLUE's own model, without a bag",
}


class SeedSpread(NamedTuple):
    """Standard deviations of the loss over seeds, in nats."""

    pooled: float
    low: float
    high: float
    settings: int
    "number of configurations that were repeated"
    freedom: int
    "degrees of freedom of the pooled one"


def list_rivals(files: StudyFiles) -> list[dict[str, Any]]:
    """List the rivals with their name, loss, recall_at_10 and mrr, in the order of their table."""
    return [*files.baselines, *_trained_parts(files.ablations)]


def _trained_parts(ablations: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the best run of each part of the encoder."""
    if ablations.empty:
        return []
    best = ablations.sort_values("loss", kind="stable").groupby("encoder_parts", sort=False).head(1)
    return [
        {
            "name": f"{PARTS[run['encoder_parts']]}, {run['sequence_length']:,} events",
            "method": run["encoder_parts"],
            **{score: run[score] for score in ("loss", "recall_at_10", "mrr")},
        }
        for _, run in best.iterrows()
    ]


def best_rival(files: StudyFiles) -> dict[str, Any] | None:
    """Return the rival with the lowest loss; None where there is none."""
    return min(list_rivals(files), key=lambda rival: float(rival["loss"]), default=None)


def headline_rivals(files: StudyFiles) -> list[tuple[str, float]]:
    """Return names and losses of the rivals for a figure: the best, and one per other method."""
    best = best_rival(files)
    shown = [
        rival
        for rival in list_rivals(files)
        if rival is best or rival.get("method") != FITTED_AT_EACH_LENGTH
    ]
    return [(str(rival["name"]), float(rival["loss"])) for rival in shown]


def seed_spread(done: pd.DataFrame) -> SeedSpread | None:
    """Compute the standard deviation over seeds; None where no configuration was repeated."""
    spread = done.groupby(settings_of(done))["loss"].agg(["std", "count"])
    repeated = spread[spread["count"] > 1]
    if repeated.empty:
        return None
    # Weighted by degrees of freedom: the pooled variance of an analysis of variance.
    pooled = float(np.sqrt(np.average(repeated["std"] ** 2, weights=repeated["count"] - 1)))
    low, high = float(repeated["std"].min()), float(repeated["std"].max())
    return SeedSpread(pooled, low, high, len(repeated), int((repeated["count"] - 1).sum()))


def verdict(files: StudyFiles, candidates: int) -> str:
    """State how far the best run is ahead of chance and of the best rival, and from where on."""
    best = files.done.sort_values("loss", kind="stable").iloc[0]
    loss, rival, chance = float(best["loss"]), best_rival(files), chance_loss(candidates)
    gain = f"The best run is {numbers.significant(abs(chance - loss), 2)} nats " + (
        "below chance" if loss < chance else "above chance: nothing was learned"
    )
    if rival is None:
        return " ".join(filter(None, (f"{gain}.", _overconfidence(best))))
    lead = float(rival["loss"]) - loss
    gap = f"{numbers.significant(abs(lead), 2)} nats"
    if lead <= 0:
        behind = (
            f"{gain} and {gap} above the best rival, {rival['name']}: at this scale a trained "
            "encoder is not better than this baseline."
        )
        return " ".join(filter(None, (behind, _overconfidence(best))))
    ahead = f"{gain} and {gap} below the best rival, {rival['name']}."
    sentences = (
        ahead,
        _beyond_noise(lead, files.done),
        _from_compute(float(rival["loss"]), files.done),
        _overconfidence(best),
    )
    return " ".join(filter(None, sentences))


def _beyond_noise(lead: float, done: pd.DataFrame) -> str:
    """Compare a lead with the standard deviation between seeds."""
    spread = seed_spread(done)
    if spread is None:
        return "Whether this lead exceeds the noise between seeds was not measured."
    noise = f"{numbers.significant(spread.pooled, 2)} nats"
    if lead < SIGNIFICANT * spread.pooled:
        return f"This lead is within the noise between seeds (standard deviation {noise})."
    return f"This lead is beyond the noise between seeds (standard deviation {noise})."


def _from_compute(level: float, done: pd.DataFrame) -> str:
    """State the smallest compute from which on every run of the frontier beats a loss."""
    known = done[done["train_flops"].notna()]
    if known.empty:
        return ""
    marked = mark(known)
    frontier = marked[marked["frontier"]].groupby("train_flops")["loss"].mean().sort_index()
    behind = frontier.index[frontier >= level]
    if behind.empty:
        return "Every run on the frontier beats this rival."
    ahead = frontier.index[frontier.index > behind.max()]
    if ahead.empty:
        return "The mean over seeds of the frontier's largest run does not beat this rival yet."
    return f"From {numbers.flop(ahead[0])} FLOP on, every run on the frontier beats this rival."


def _overconfidence(best: pd.Series) -> str:
    """State the loss at the learned temperature where it is far from the calibrated loss."""
    learned = best.get("loss_at_training_temperature")
    if numbers.is_absent(learned) or abs(learned - best["loss"]) < OVERCONFIDENT:
        return ""
    return (
        f"At the temperature that training learned, the loss of the best run is {learned:.3f} "
        f"nats instead of {best['loss']:.3f}: the learned temperature does not suit new users."
    )
