"""A task put to every finished run of a study, and what it found as columns of the runs table.

A result lies in its run's own folder, so a run is scored once, whichever study file or command asks; the table's
columns are read off those results, and come back whenever the table is written anew.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from clue_ray.errors import StudyError
from clue_ray.runs import Runs, read_runs
from clue_ray.transfer.evaluate import run_task
from clue_ray.transfer.tables import MEASURES
from clue_ray.transfer.tasks import TaskSpec, read_task

PREFIX = "transfer_"


def evaluate_study(directory: Path, task: TaskSpec, against: dict[str, str]) -> list[dict[str, Any]]:
    """Put a task to the encoder of every finished run, add its columns to the runs table, return the results.

    Raises:
        StudyError: no run has finished.
    """
    done = read_runs(directory).done
    if done.empty:
        raise StudyError(f"{directory} has no finished run; run the study first.")
    results = [run_task(directory / "runs" / run_id, task, against) for run_id in done["run_id"]]
    join_results(directory)
    return results


def score_runs(directory: Path, tasks: Sequence[str], runs: Runs) -> Runs:
    """Put every finished run to the tasks of its study, and return the table with their columns.

    Args:
        tasks: task files.
        runs: the table as it was just written.
    """
    for task in map(read_task, tasks):
        for run_id in runs.done["run_id"]:
            run_task(directory / "runs" / run_id, task)
    return join_results(directory, runs)


def join_results(directory: Path, runs: Runs | None = None) -> Runs:
    """Write what runs' encoders scored into the runs table, a column a task and measure: transfer_<task>_<measure>.

    Of several results of one task (another log, other settings) the last written counts.

    Args:
        runs: the table as it was just written; read when left out.
    """
    runs = read_runs(directory) if runs is None else runs
    table = runs.table[[name for name in runs.table.columns if not name.startswith(PREFIX)]]
    found = pd.DataFrame({run_id: scores_of(directory / "runs" / run_id) for run_id in table["run_id"]}).T
    if not found.empty:
        runs = Runs(table.merge(found, how="left", left_on="run_id", right_index=True))
        runs.write(directory)
    return runs


def scores_of(run: Path) -> dict[str, float]:
    """Read the encoder's scores off the results in a run's folder."""
    scores: dict[str, float] = {}
    for file in sorted((run / "transfer").glob("*.json"), key=lambda file: file.stat().st_mtime_ns):
        result = json.loads(file.read_text(encoding="utf-8"))
        (encoder,) = [row for row in result["methods"] if row["method"] == "encoder"]
        name = result["task"].replace("-", "_")
        scores |= {f"{PREFIX}{name}_{measure}": encoder[measure]["value"] for measure in MEASURES if measure in encoder}
    return scores
