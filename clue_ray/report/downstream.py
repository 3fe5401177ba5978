"""Does a lower pre-training loss make better recommendations? Downstream scores over loss, task by task.

Takes the runs table with its transfer columns, gives a section. One idea: the correlation comes with its interval over
runs, so the page can say that the law of the loss carries over, that it does not, or that nobody can tell yet.
"""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from clue_ray.report import numbers
from clue_ray.report.directory import StudyFiles
from clue_ray.report.rendering import HALF, Picture, picture
from clue_ray.report.section import Section
from clue_ray.report.style import INK, LAW_COLOUR, label

PREFIX = "transfer_"
FIRST = ("_mrr", "_auc", "_r2")
"""Ends of the columns that speak for their tasks."""
FEWEST = 4
RESAMPLES = 2000


def downstream(files: StudyFiles) -> Section | None:
    """Set each task's score over the loss of the runs that have one; without tasks there is no section."""
    columns = [str(name) for name in files.table.columns if str(name).startswith(PREFIX) and str(name).endswith(FIRST)]
    scored = {column: files.done.dropna(subset=[column]) for column in columns}
    scored = {column: runs for column, runs in scored.items() if len(runs) >= FEWEST}
    if not scored:
        return None
    panels = tuple(_panel(column, runs) for column, runs in scored.items())
    words = (
        "A point is a run: its score on a downstream task, features frozen, over its held-out loss. Loss falls to the "
        "right, so a line that rises means that better pre-training served the task."
    )
    points = tuple(carries_over(column, runs) for column, runs in scored.items())
    return Section("downstream", "Downstream tasks against loss", "downstream", (words,), panels, (), points,
                   layout="panels")  # fmt: skip


def task_of(column: str) -> tuple[str, str]:
    """Split a column's name into task and measure, as words."""
    task, _, measure = column.removeprefix(PREFIX).rpartition("_")
    return task.replace("_", " "), {"mrr": "MRR", "auc": "AUC", "r2": "R2"}[measure]


def _panel(column: str, runs: pd.DataFrame) -> Picture:
    task, measure = task_of(column)
    caption = f"{task}: {measure} over held-out loss, {len(runs)} runs."
    name = f"downstream-{column.removeprefix(PREFIX).replace('_', '-')}"
    return picture(name, caption, partial(score_over_loss, runs, column=column), sizes=(HALF,))


def score_over_loss(runs: pd.DataFrame, ax: Axes, column: str) -> Axes:
    """Draw a task's score over loss, lower losses to the right, with the straight line through them."""
    loss, score = (runs[name].to_numpy(dtype=float) for name in ("loss", column))
    ax.scatter(loss, score, s=22, color=INK, zorder=3)
    if np.ptp(loss) > 0:
        slope, offset = np.polyfit(loss, score, 1)
        ends = np.array([loss.min(), loss.max()])
        ax.plot(ends, offset + slope * ends, color=LAW_COLOUR, linewidth=1)
    ax.invert_xaxis()
    ax.set_xlabel(label("loss"))
    ax.set_ylabel(task_of(column)[1])
    return ax


def correlation(loss: NDArray[np.float64], score: NDArray[np.float64]) -> tuple[float, float, float]:
    """Pearson's correlation of a score with the fall of the loss, and its percentile bootstrap interval over runs."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(loss), (RESAMPLES, len(loss)))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.array([np.corrcoef(-loss[rows], score[rows])[0, 1] for rows in draws])
        value = float(np.corrcoef(-loss, score)[0, 1])
    low, high = np.nanquantile(found, [0.025, 0.975]) if np.isfinite(found).any() else (np.nan, np.nan)
    return value, float(low), float(high)


def carries_over(column: str, runs: pd.DataFrame) -> str:
    """Say whether the fall of the loss goes with a better score."""
    task, measure = task_of(column)
    value, low, high = correlation(*(runs[name].to_numpy(dtype=float) for name in ("loss", column)))
    if not np.isfinite(value):
        return f"{task}: all runs have one {measure} or one loss, so nothing can be told."
    verdict = "what the runs show leaves open whether the law of the loss carries over"
    if low > 0:
        verdict = "a lower loss went with a better score, so the law of the loss carries over in this range"
    elif high < 0:
        verdict = "a lower loss went with a worse score: the two part, and the law of the loss does not carry over"
    return (
        f"{task}: correlation of {measure} with the fall of the loss {numbers.interval(value, low, high)}; {verdict}."
    )
