"""Compute the numbers with intervals that answer each claim of the open CLUE study.

Laws, intervals and backtests are clue-ray's own. This file adds differences between means over
seeds, and regressions over the grids.
"""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from clue_ray.errors import FitError
from clue_ray.runs import Runs
from clue_ray.scaling.answering.analysis import Analysis, analyse
from clue_ray.scaling.deciding.isoflop import fit_isoflop
from clue_ray.scaling.downstream import correlation, predict_largest
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.result import Fit
from paper.points import VARIED, Points, seed_means

SCORED = {
    "recall_at_10": "user retrieval, recall@10",
    "mrr": "user retrieval, MRR",
    "transfer_open_clue_kitchen_mrr": "next item in kitchen from groceries, MRR",
    "transfer_open_clue_kids_auc": "children in the household, AUC",
}
MIN_SIZES = 4
"""Sizes that a budget needs for an optimum between them."""
VERDICTS = {
    "holds": "as predicted",
    "less": "lower",
    "more": "higher",
    "unclear": "undecided",
    "no further": "no further gain",
}
"""Words of the page for each `clue_ray.scaling.downstream.Verdict`."""
LAWS = ("power_law_plus_constant", "log_linear", "power_law", "bounded_power_law")


@cache
def analysis_of(points: Points) -> Analysis:
    """Analyse the runs on a corpus as its report does."""
    return analyse(Runs(points.runs), LAWS)


def headline(points: Points) -> dict[str, Any]:
    """Summarise the laws in compute and their predictions of the largest budget, held out."""
    found = analysis_of(points)
    law = found.fits[found.preferred]
    with_floor = [name for name in LAWS if found.fits[name].law.floor]
    frontier = found.points[found.points["frontier"]]
    held_out = found.points[found.points["held_out"]]
    best = held_out.loc[held_out["loss"].idxmin()]
    place = {"train_flops": float(best["train_flops"])}
    ahead = law.predict_run(**place)
    refitted = fit_law(found.preferred, frontier, x="train_flops", y="loss")
    further = float(best["train_flops"]) * 10
    by_law = {name: fit.predict_run(**place) for name, fit in found.fits.items()}
    tied = [by_law[name] for name in {found.preferred, *found.backtest.tied}]
    low, high = min(one.low for one in tied), max(one.high for one in tied)
    return {
        "runs": len(points.runs),
        "frontier": len(frontier[~frontier["held_out"]]),
        "decades": float(
            np.log10(points.runs["train_flops"].max() / points.runs["train_flops"].min())
        ),
        "law": found.preferred,
        "no_answer_reason": found.no_answer_reason,
        "formula": law.law.describe(law.parameters),
        "backtest": found.backtest.summary.set_index("law")["mean_absolute_error"].to_dict(),
        "held_out": best.to_dict(),
        "predicted": ahead,
        "by_law": by_law,
        "tied": {
            "laws": len(tied),
            "low": low,
            "high": high,
            "inside": bool(low <= best["loss"] <= high),
        },
        "floors": {name: span_of(found.fits[name], "irreducible_loss") for name in with_floor},
        "inside": bool(ahead.low <= best["loss"] <= ahead.high),
        "relative_error": ahead.value / float(best["loss"]) - 1,
        "before": law.predict(train_flops=further),
        "after": refitted.predict(train_flops=further),
    }


def span_of(fit: Fit, name: str) -> tuple[float, float, float]:
    """Return a parameter and its 95 % interval."""
    return (fit.parameters[name], *fit.interval(name))


def two_factors(points: Points) -> dict[str, Any]:
    """Regress loss on log10 of model FLOPs per user and of history length, at equal steps.

    Ordinary least squares over seed means, with Student's t intervals. Slopes are nats per decade.
    """
    rows = points.equal_steps("length")
    cells = seed_means(rows, "width", "sequence_length")
    # At one length for all sizes: otherwise the FLOPs of the model would include the length.
    at_base = rows[rows["sequence_length"] == points.base["sequence_length"]]
    flops = (at_base["train_flops"] / at_base["users_seen"]).groupby(at_base["width"]).mean()
    model = np.log10(cells["width"].map(flops))
    design = np.column_stack([np.ones(len(cells)), model, np.log10(cells["sequence_length"])])
    loss = cells["loss"].to_numpy()
    beta, *_ = np.linalg.lstsq(design, loss, rcond=None)
    residual = loss - design @ beta
    freedom = len(loss) - design.shape[1]
    error = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * (residual @ residual) / freedom)
    half = stats.t.ppf(0.975, freedom) * error
    slopes = {
        name: (beta[i], beta[i] - half[i], beta[i] + half[i])
        for i, name in enumerate(("model", "length"), start=1)
    }
    by_length = [
        np.polyfit(np.log10(own["width"].map(flops)), own["loss"], 1)[0]
        for _, own in cells.groupby("sequence_length")
    ]
    return {
        **slopes,
        "model_at_shortest": float(by_length[0]),
        "model_at_longest": float(by_length[-1]),
        "r2": float(1 - residual @ residual / ((loss - loss.mean()) ** 2).sum()),
        "rmse": float(np.sqrt((residual**2).mean())),
        "cells": len(cells),
    }


def by_axis(points: Points, varied: str) -> pd.DataFrame:
    """Tabulate the mean loss in nats by width (rows) and axis value (columns), at equal steps."""
    column = VARIED[varied]
    cells = seed_means(points.equal_steps(varied), "width", column)
    return cells.pivot(index="width", columns=column, values="loss")


def change(
    points: Points, rows: pd.DataFrame, column: str, first: Any, last: Any
) -> tuple[float, float, float]:
    """Return the change of the mean loss between two values of a column, with its 95 % interval.

    The noise between seeds is taken as normal, with the pooled standard deviation of the corpus.
    """
    before, after = (rows.loc[rows[column] == value, "loss"] for value in (first, last))
    if before.empty or after.empty:
        return (np.nan, np.nan, np.nan)
    found = float(after.mean() - before.mean())
    half = 1.96 * points.noise() * np.sqrt(1 / len(before) + 1 / len(after))
    return found, found - half, found + half


def batch_effects(points: Points) -> pd.DataFrame:
    """Tabulate the change from the smallest to the largest batch, by regime and width."""
    regimes = {
        "equal steps": points.equal_steps("batch"),
        "equal examples": points.equal_examples(),
    }
    budgets = points.equal_compute().groupby("budget")
    regimes |= {f"equal compute, {budget:.1e} FLOP": own for budget, own in budgets}
    found = []
    for regime, rows in regimes.items():
        for width, own in rows.groupby("width"):
            sizes = sorted(own["global_batch_size"].unique())
            effect = change(points, own, "global_batch_size", sizes[0], sizes[-1])
            means = seed_means(own, "global_batch_size").set_index("global_batch_size")
            best = means["loss"].idxmin()
            found.append((regime, width, f"{sizes[0]} to {sizes[-1]}", *effect, best))
    return pd.DataFrame(
        found, columns=["regime", "width", "batches", "change", "low", "high", "best"]
    )


def last_step(points: Points, varied: str) -> pd.DataFrame:
    """Tabulate the change between the last two values of an axis, by width."""
    column, rows = VARIED[varied], points.equal_steps(varied)
    *_, first, last = sorted(rows[column].unique())
    found = [
        (width, *change(points, own, column, first, last)) for width, own in rows.groupby("width")
    ]
    return pd.DataFrame(found, columns=["width", "change", "low", "high"])


def best_sizes(points: Points) -> dict[str, Any]:
    """Find the best size per budget and its growth with compute, or the reason for no answer."""
    rows = points.isoflop()
    rows = rows[rows.groupby("budget")["width"].transform("nunique") >= MIN_SIZES]
    try:
        found = fit_isoflop(rows.assign(train_flops=rows["budget"]), size="non_embedding_params")
    except FitError as error:
        return {"error": str(error), "levels": None}
    return {
        "error": "",
        "levels": found.levels,
        "exponent": found.line.exponent,
        "interval": found.interval(),
        "warnings": found.warnings,
    }


def follows(points: Points) -> list[dict[str, Any]]:
    """Relate each score of the runs to their loss, one row per score.

    The correlation (Pearson, Fisher's interval) and the verdict on the quarter with the most
    compute are those of clue-ray's reports, over the runs that are better than chance. The rank
    correlation (Spearman) is over all runs.
    """
    found = []
    for column, name in SCORED.items():
        if column not in points.runs or not (rows := points.runs.dropna(subset=[column])).size:
            continue
        learnt = rows[rows["loss"] < np.log(rows["loss_candidates"])]
        compute, loss, score = (
            learnt[key].to_numpy(dtype=float) for key in ("train_flops", "loss", column)
        )
        largest = predict_largest(compute, loss, score)
        found.append(
            {
                "name": name,
                "runs": len(learnt),
                "correlation": correlation(loss, score),
                "ranks": -float(stats.spearmanr(rows["loss"], rows[column]).statistic),
                "best": float(rows.loc[rows["loss"].idxmin(), column]),
                "verdict": VERDICTS[largest.verdict] if largest else "",
            }
        )
    return found
