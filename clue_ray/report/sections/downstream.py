"""The section on downstream tasks: does a lower pre-training loss give a better score?

For each task, the smaller runs predict the scores of the largest runs from their losses. The page
then states that the score follows the loss, that it does not, or that the runs do not decide.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from clue_ray.errors import FitError, RunsError
from clue_ray.report import numbers
from clue_ray.report.figures.files import HALF, Picture, picture
from clue_ray.report.figures.style import INK, LAW_COLOUR, label
from clue_ray.report.read import StudyFiles
from clue_ray.report.section import Section
from clue_ray.report.tables import Cell, Table
from clue_ray.runs import SCORES
from clue_ray.scaling.answering.sentences import few
from clue_ray.scaling.downstream import (
    FEWEST,
    MEASURES,
    LargestRuns,
    compare_methods,
    correlation,
    hold_out,
    predict_largest,
    spell,
)
from clue_ray.scaling.forecasting.forecast import Forecaster

ERROR = "_error"
REACH = 10.0
FIRST = {"_mrr": "MRR", "_auc": "AUC", "_r2": "R2"}
"""Endings of the columns of the main measure of a task."""
WORDS = (
    "Each point is a run: its score on a downstream task, with frozen features, over its held-out "
    "loss. Loss decreases to the right, so a rising line means that better pre-training improved "
    "the task. The line is fitted to the smaller runs. The bar is its prediction interval for "
    "the mean score of the largest runs (open points), and the diamond is their mean score. A "
    "diamond within the bar means that the task follows the loss up to the largest runs; a diamond "
    "outside means that it does not."
)


def downstream(files: StudyFiles) -> Section | None:
    """Draw the score of each task over the loss of the runs; None without tasks."""
    known = files.done.loc[:, files.done.notna().any()]
    main = main_scores(known)
    failed = [name for name in map(str, known) if name.startswith(SCORES) and name.endswith(ERROR)]
    if not main and not failed:
        return None
    scored = {column: files.done.dropna(subset=[column]) for column in main}
    panels = tuple(_panel(column, runs) for column, runs in scored.items() if len(runs) >= FEWEST)
    points = (
        *(follows_loss(column, runs) for column, runs in scored.items()),
        *(over_compute(column, runs) for column, runs in scored.items()),
        *(_without_score(column, files.done[column]) for column in failed),
    )
    tables = tuple(_methods_table(result) for result in files.judged)
    title, words = "Downstream tasks against loss", (WORDS,) if panels else ()
    return Section(
        "downstream", title, "downstream", words, panels, tables, points, layout="panels"
    )


def main_scores(table: pd.DataFrame) -> list[str]:
    """List the columns of a runs table that hold the main measure of a task."""
    return [
        name for name in map(str, table) if name.startswith(SCORES) and name.endswith(tuple(FIRST))
    ]


def _methods_table(result: dict[str, Any]) -> Table:
    """Compare the encoder of lowest loss with the other methods, with its lead over each."""
    measure = next(name for name in MEASURES if name in result["methods"][0])
    rows = [(row["method"], row[measure], row.get(f"{measure}_lead")) for row in result["methods"]]
    cells = tuple(
        tuple(Cell(text, text) for text in (method, spell(value), spell(lead, "+") if lead else ""))
        for method, value, lead in rows
    )
    name, measured = result["task"], MEASURES[measure]
    note = (
        f"{name}, run {result['run_id']}, the run of lowest loss with a score. "
        f"{compare_methods(result)}"
    )
    own = next(index for index, (method, _, _) in enumerate(rows) if method == "encoder")
    return Table(
        (name, f"{measured} [95 %]", "encoder's lead [95 %]"), cells, marked=own, note=note
    )


def task_of(column: str) -> tuple[str, str]:
    """Split the name of a column into task and measure, as words."""
    task, _, measure = column.removeprefix(SCORES).rpartition("_")
    return task.replace("_", " "), FIRST.get(f"_{measure}", measure)


def _panel(column: str, runs: pd.DataFrame) -> Picture:
    task, measure = task_of(column)
    caption = f"{task}: {measure} over held-out loss, {len(runs)} runs."
    name = f"downstream-{column.removeprefix(SCORES).replace('_', '-')}"
    return picture(name, caption, partial(score_over_loss, runs, column=column), sizes=(HALF,))


def _values_of(runs: pd.DataFrame, column: str) -> tuple[NDArray[np.float64], ...]:
    """Return compute, loss and score of runs."""
    compute, loss, score = (
        runs[name].to_numpy(dtype=float) for name in ("train_flops", "loss", column)
    )
    return compute, loss, score


def score_over_loss(runs: pd.DataFrame, ax: Axes, column: str) -> Axes:
    """Draw the score of a task over loss, with the prediction for the largest runs.

    Lower losses are to the right.
    """
    compute, loss, score = _values_of(runs, column)
    largest = predict_largest(compute, loss, score)
    held = hold_out(compute) if largest else np.zeros(len(loss), dtype=bool)
    ax.scatter(loss[~held], score[~held], s=22, color=INK, zorder=3)
    if largest:
        ax.scatter(loss[held], score[held], s=26, facecolors="white", edgecolors=INK, zorder=3)
        _draw_line(ax, largest, loss[~held], loss[held])
    ax.invert_xaxis()
    ax.set_xlabel(label("loss"))
    ax.set_ylabel(task_of(column)[1])
    return ax


def _draw_line(
    ax: Axes, largest: LargestRuns, seen: NDArray[np.float64], new: NDArray[np.float64]
) -> None:
    inner = np.array([seen.min(), seen.max()])
    outer = np.array([new.mean(), seen.min() if new.mean() < seen.min() else seen.max()])
    for ends, style in ((inner, "-"), (outer, ":")):
        ax.plot(ends, largest.offset + largest.slope * ends, style, color=LAW_COLOUR, linewidth=1)
    bar = [[largest.expected - largest.low], [largest.high - largest.expected]]
    ax.errorbar(
        [new.mean()],
        [largest.expected],
        yerr=bar,
        color=LAW_COLOUR,
        capsize=3,
        linewidth=1.2,
        zorder=2,
    )
    ax.scatter([new.mean()], [largest.scored], s=30, marker="D", color=INK, zorder=4)


def follows_loss(column: str, runs: pd.DataFrame) -> str:
    """State whether a lower loss gives a better score, and whether it still does at the largest."""
    task, measure = task_of(column)
    if len(runs) < FEWEST:
        have = few(len(runs), "finished run", "has", "have")
        return f"{task}: {have} a score; a correlation needs {FEWEST}."
    compute, loss, score = _values_of(runs, column)
    value, low, high = correlation(loss, score)
    if not np.isfinite(value):
        return (
            f"{task}: {measure} or the loss is the same for all runs, so there is no correlation."
        )
    found = (
        f"{task}: the correlation of {measure} with the decrease of the loss is "
        f"{numbers.interval(value, low, high)}"
    )
    if high < 0:
        return f"{found}. A lower loss gave a worse score: the task does not follow the loss."
    trend = (
        "A lower loss gave a better score"
        if low > 0
        else "These runs do not show whether a lower loss improves the task"
    )
    return f"{found}. {trend}. {_at_scale(predict_largest(compute, loss, score))}"


def score_forecaster(column: str, runs: pd.DataFrame) -> Forecaster:
    """Return the laws of a score over compute: of its distance from 1, which falls as a loss does.

    Raises:
        FitError, RunsError: the runs do not support a forecast.
    """
    measure = task_of(column)[1]
    error_of = f"1 - {measure}"
    table = runs.assign(**{error_of: 1 - runs[column]})
    chance = 0.5 if measure == "AUC" else None
    return Forecaster.build(table, x="train_flops", y=error_of, chance=chance)


def over_compute(column: str, runs: pd.DataFrame) -> str:
    """Forecast a score at REACH times the largest compute, as the dial of the page does."""
    task, measure = task_of(column)
    at = REACH * runs["train_flops"].max()
    try:
        found = score_forecaster(column, runs).at(at)
    except (FitError, RunsError) as error:
        return f"{task}: no law of {measure} over compute was found ({str(error).rstrip('.')})."
    low, high = found.interval()
    told = (
        f"{task}: at {at:.1e} FLOP, {REACH:g} times the largest run, the laws of "
        f"1 - {measure} over training compute give {measure} {1 - found.value:.3f} "
        f"[{1 - high:.3f}, {1 - low:.3f}] (80 %, over runs and laws, not over test users)."
    )
    return " ".join([told, *found.warnings])


def _at_scale(largest: LargestRuns | None) -> str:
    """Compare the scores of the largest runs with their prediction from the smaller runs."""
    if largest is None:
        return (
            "Whether the task follows the loss to the largest runs is not known: the prediction "
            f"needs {FEWEST} smaller runs of different loss."
        )
    runs = "The largest run" if largest.larger == 1 else f"The {largest.larger} largest runs"
    mean, whose = ("", "Its") if largest.larger == 1 else (" on average", "Their")
    scored = (
        f"{runs} scored {numbers.significant(largest.scored)}{mean}; the line through the "
        f"{largest.smaller} smaller runs predicts "
        f"{numbers.interval(largest.expected, largest.low, largest.high)}"
    )
    stopped = numbers.significant(largest.stopped)
    return {
        "holds": f"{scored}, and {stopped} without any further gain: the task follows the loss up "
        "to the largest runs.",
        "less": f"{scored}: the score is lower than predicted. At the largest compute the task "
        "does not follow the loss.",
        "more": f"{scored}: the score is higher than predicted. At the largest compute the task "
        "improves more than the loss suggests.",
        "no further": f"{scored}. {whose} loss is not below the lowest loss of the smaller runs, "
        "so the effect of a lower loss is not known.",
        "unclear": f"{scored}, which does not exclude {stopped}, the score without any further "
        "gain: the runs do not decide whether the task follows the loss.",
    }[largest.verdict]


def _without_score(column: str, errors: pd.Series) -> str:
    """Count the runs that a task could not score, with the most frequent reason."""
    reasons = errors.dropna().astype(str)
    return (
        f"{task_of(column)[0]}: {len(reasons)} of {len(errors)} finished runs have no score. "
        f"{reasons.value_counts().index[0]}"
    )
