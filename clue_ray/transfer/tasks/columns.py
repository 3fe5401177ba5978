"""Columns of the runs table with the scores of downstream tasks.

A result is stored in the folder of its run, so a run is scored once, whichever study file or
command requests it. The columns are read from the results each time the table is written.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from clue_ray.errors import RunsError
from clue_ray.runs import SCORES, Runs, read_runs
from clue_ray.scaling.downstream import MEASURES
from clue_ray.storage.documents import is_file_name
from clue_ray.storage.files import read_json, write_json
from clue_ray.transfer.tasks.evaluate import read_result, result_name
from clue_ray.transfer.tasks.spec import column_of

SELECTED = "transfer.json"
"""File in a study's folder: task -> run id -> name of the result that the runs table shows."""


def failure_name(task: str) -> str:
    """Return the file name, in a run's folder, of the error of the last failed try of a task."""
    return result_name(task, "failed")


def join_results(directory: Path, runs: Runs | None = None) -> Runs:
    """Write the scores of runs into the runs table, as columns transfer_<task>_<measure>.

    If a task has several results, of other logs or settings, all runs show those of the last
    command that scored the study, or the latest result if there was no such command. The error of
    a failed try is the column transfer_<task>_error.

    Args:
        runs: the current table; read from the directory if omitted.
    """
    runs = read_runs(directory) if runs is None else runs
    table = runs.table[[name for name in runs.table.columns if not name.startswith(SCORES)]]
    file = directory / SELECTED
    selected = read_json(file) if file.exists() else {}
    scores = {
        run_id: _read_scores(
            directory / "runs" / run_id,
            {
                task: names.get(run_id)
                for task, names in selected.items()
                if isinstance(names, dict)
            },
        )
        for run_id in table["run_id"]
        if is_file_name(run_id)  # or the table of a stranger could name a folder elsewhere
    }
    if any(scores.values()):
        columns = pd.DataFrame(list(scores.values()), index=list(scores))
        runs = Runs(table.merge(columns, how="left", left_on="run_id", right_index=True))
        runs.write(directory)
    return runs


def select_results(directory: Path, names: dict[str, dict[str, str]]) -> None:
    """Select the results that the runs table shows; other tasks keep their selection.

    Args:
        names: task -> run id -> name of the result.
    """
    file = directory / SELECTED
    write_json(file, (read_json(file) if file.exists() else {}) | names)


def _read_scores(run: Path, selected: dict[str, str | None]) -> dict[str, Any]:
    """Read the encoder's scores from the results in a run's folder.

    Args:
        selected: task -> name of its result, or None for no result. Of a task that is not in it,
            the latest result is read.
    """
    scores: dict[str, dict[str, Any]] = {}
    for file in sorted((run / "transfer").glob("*.json"), key=lambda file: file.stat().st_mtime_ns):
        task, name = file.stem.rpartition("-")[0], f"transfer/{file.name}"
        if selected.get(task, name) != name:
            continue
        column = column_of(task)
        try:
            result = read_result(file)
        except RunsError as error:  # of one run and task: the others are shown all the same
            result = {"error": str(error)}
        if "error" in result:
            scores[column] = {f"{column}_error": result["error"]}
            continue
        (encoder,) = [row for row in result["methods"] if row["method"] == "encoder"]
        measures = {name: encoder[name]["value"] for name in MEASURES if name in encoder}
        scores[column] = {f"{column}_{name}": value for name, value in measures.items()}
    return {name: value for one in scores.values() for name, value in one.items()}
