"""Does a lower pre-training loss make better recommendations? Downstream scores over loss, task by
task.

Takes the runs table with its transfer columns, gives a section. One idea: the smaller runs predict
the largest from their losses, so the page can say that the law of the loss carries over, that the
two part, or that nobody can tell yet.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from clue_ray.report import numbers
from clue_ray.report.figures.files import HALF, Picture, picture
from clue_ray.report.figures.style import INK, LAW_COLOUR, label
from clue_ray.report.read import StudyFiles
from clue_ray.report.section import Section
from clue_ray.report.tables import Cell, Table
from clue_ray.runs import SCORES
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

ERROR = "_error"
FIRST = {"_mrr": "MRR", "_auc": "AUC", "_r2": "R2"}
"""Ends of the columns that speak for their tasks."""
WORDS = (
    "A point is a run: its score on a downstream task, features frozen, over its held-out loss. "
    "Loss falls to the "
    "right, so a line that rises means that better pre-training served the task. The line is drawn "
    "through the "
    "smaller runs; the bar is where it puts the mean of the largest, drawn open, and the diamond "
    "what they scored on "
    "average: on the bar, the law of the loss carries over to the task; off it, the two part."
)


def downstream(files: StudyFiles) -> Section | None:
    """Set each task's score over the loss of the runs that have one; without tasks there is no
    section.
    """
    columns = [str(name) for name in files.done.columns if str(name).startswith(SCORES)]
    speaking = [
        name for name in columns if name.endswith(tuple(FIRST)) and files.done[name].notna().any()
    ]
    failed = [name for name in columns if name.endswith(ERROR) and files.done[name].notna().any()]
    if not speaking and not failed:
        return None
    scored = {column: files.done.dropna(subset=[column]) for column in speaking}
    panels = tuple(_panel(column, runs) for column, runs in scored.items() if len(runs) >= FEWEST)
    points = (
        *(carries_over(column, runs) for column, runs in scored.items()),
        *(_without_score(column, files.done[column]) for column in failed),
    )
    tables = tuple(_methods_table(result) for result in files.judged)
    return Section("downstream", "Downstream tasks against loss", "downstream", (WORDS,) if panels else (), panels,
                   tables, points, layout="panels")  # fmt: skip


def _methods_table(result: dict[str, Any]) -> Table:
    """Set the encoder of lowest loss beside the other methods, with its lead over each."""
    measure = next(name for name in MEASURES if name in result["methods"][0])
    rows = [(row["method"], row[measure], row.get(f"{measure}_lead")) for row in result["methods"]]
    cells = tuple(
        tuple(Cell(text, text) for text in (method, spell(value), spell(lead, "+") if lead else ""))
        for method, value, lead in rows
    )
    name, measured = result["task"], MEASURES[measure]
    note = f"{name}, run {result['run_id']}, the lowest loss that has a score. {compare_methods(result)}"
    own = next(index for index, (method, _, _) in enumerate(rows) if method == "encoder")
    return Table(
        (name, f"{measured} [95 %]", "encoder's lead [95 %]"), cells, marked=own, note=note
    )


def _task_of(column: str) -> tuple[str, str]:
    """Split a column's name into task and measure, as words."""
    task, _, measure = column.removeprefix(SCORES).rpartition("_")
    return task.replace("_", " "), FIRST.get(f"_{measure}", measure)


def _panel(column: str, runs: pd.DataFrame) -> Picture:
    task, measure = _task_of(column)
    caption = f"{task}: {measure} over held-out loss, {len(runs)} runs."
    name = f"downstream-{column.removeprefix(SCORES).replace('_', '-')}"
    return picture(name, caption, partial(score_over_loss, runs, column=column), sizes=(HALF,))


def _values_of(runs: pd.DataFrame, column: str) -> tuple[NDArray[np.float64], ...]:
    """Give compute, loss and score of runs, as numbers."""
    compute, loss, score = (
        runs[name].to_numpy(dtype=float) for name in ("train_flops", "loss", column)
    )
    return compute, loss, score


def score_over_loss(runs: pd.DataFrame, ax: Axes, column: str) -> Axes:
    """Draw a task's score over loss, lower losses to the right, and what the smaller runs say of
    the largest.
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
    ax.set_ylabel(_task_of(column)[1])
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


def carries_over(column: str, runs: pd.DataFrame) -> str:
    """Say whether the fall of the loss goes with a better score, and whether it still does at the
    largest compute.
    """
    task, measure = _task_of(column)
    if len(runs) < FEWEST:
        return f"{task}: {len(runs)} finished runs have a score, and a correlation takes {FEWEST}."
    compute, loss, score = _values_of(runs, column)
    value, low, high = correlation(loss, score)
    if not np.isfinite(value):
        return f"{task}: all runs have one {measure} or one loss, so nothing can be told."
    found = f"{task}: correlation of {measure} with the fall of the loss {numbers.interval(value, low, high)}"
    if high < 0:
        return f"{found}; a lower loss went with a worse score: the two part, and the law of the loss does not carry over."
    seen = (
        "a lower loss went with a better score"
        if low > 0
        else "whether a lower loss serves the task is open"
    )
    return f"{found}; {seen}. {_at_scale(predict_largest(compute, loss, score))}"


def _at_scale(largest: LargestRuns | None) -> str:
    """Say how the largest runs scored beside what the smaller ones said of them."""
    if largest is None:
        return (
            f"Whether the law of the loss carries over is not known: to predict the largest runs "
            f"from the others takes "
            f"{FEWEST} smaller runs of different loss."
        )
    runs = "The largest run" if largest.larger == 1 else f"The {largest.larger} largest runs"
    mean, whose = ("", "Its") if largest.larger == 1 else (" on average", "Their")
    put = (
        f"{runs} scored {numbers.significant(largest.scored)}{mean}, where the line through the "
        f"{largest.smaller} "
        f"smaller ones says {numbers.interval(largest.expected, largest.low, largest.high)}"
    )
    stopped = numbers.significant(largest.stopped)
    return {
        "holds": f"{put}, and {stopped} had the gain stopped: the law of the loss carries over to "
        f"this task.",
        "less": f"{put}: less than their loss promised. At scale the two part, and the law of the "
        f"loss does not carry "
        "over to this task.",
        "more": f"{put}: more than their loss promised. At scale the two part, and the law of the "
        f"loss says too little "
        "of this task.",
        "no further": f"{put}. {whose} loss is no lower than the smaller runs' lowest, so what a "
        f"lower one would bring "
        "is not known.",
        "unclear": f"{put}, which does not exclude {stopped}, no gain over the smaller runs' "
        f"lowest loss: whether the "
        "law of the loss carries over cannot be told yet.",
    }[largest.verdict]


def _without_score(column: str, errors: pd.Series) -> str:
    """Count the runs a task could not be put to, with the reason met most often."""
    reasons = errors.dropna().astype(str)
    return (
        f"{_task_of(column)[0]}: {len(reasons)} of {len(errors)} finished runs have no score. "
        f"{reasons.value_counts().index[0]}"
    )
