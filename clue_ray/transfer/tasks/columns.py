"""What tasks found of a study's runs, as columns of the runs table.

A result lies in its run's own folder, so a run is scored once, whichever study file or command
asks; the table's columns are read off those results, and come back whenever the table is written
anew.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from clue_ray.runs import SCORES, Runs, read_runs
from clue_ray.scaling.downstream import MEASURES
from clue_ray.storage.files import read_json, write_json
from clue_ray.transfer.tasks.evaluate import read_result, result_name
from clue_ray.transfer.tasks.spec import column_of

ASKED = "transfer.json"
"""In a study's folder: by task and run, the name of the result that its tables show."""


def failure_name(task: str) -> str:
    """Name the file, within its run's folder, that says why the last try of a task failed."""
    return result_name(task, "failed")


def join_results(directory: Path, runs: Runs | None = None) -> Runs:
    """Write what runs' encoders scored into the runs table, a column a task and measure:
    transfer_<task>_<measure>.

    Of several results of one task (another log, other settings) those count that the study was last
    scored by, for all runs; of a task that no such command has ended with, the last written. A try
    that failed is a sentence in transfer_<task>_error.

    Args:
        runs: the table as it was just written; read when left out.
    """
    runs = read_runs(directory) if runs is None else runs
    table = runs.table[[name for name in runs.table.columns if not name.startswith(SCORES)]]
    file = directory / ASKED
    asked = read_json(file) if file.exists() else {}
    found = {
        run_id: _scores_of(
            directory / "runs" / run_id, {task: names.get(run_id) for task, names in asked.items()}
        )
        for run_id in table["run_id"]
    }
    if any(found.values()):
        columns = pd.DataFrame(list(found.values()), index=list(found))
        runs = Runs(table.merge(columns, how="left", left_on="run_id", right_index=True))
        runs.write(directory)
    return runs


def note_asked(directory: Path, names: dict[str, dict[str, str]]) -> None:
    """Write down which file of which run, by task, a study was last scored by; other tasks stay as
    they were.
    """
    file = directory / ASKED
    write_json(file, (read_json(file) if file.exists() else {}) | names)


def _scores_of(run: Path, asked: dict[str, str | None]) -> dict[str, Any]:
    """Read the encoder's scores off the results in a run's folder.

    Args:
        asked: by task, the one file that counts, or none; a task that is not in it has any.
    """
    scores: dict[str, dict[str, Any]] = {}
    for file in sorted((run / "transfer").glob("*.json"), key=lambda file: file.stat().st_mtime_ns):
        result = read_result(file)
        if asked.get(result["task"], f"transfer/{file.name}") != f"transfer/{file.name}":
            continue
        column = column_of(result["task"])
        if "error" in result:
            scores[column] = {f"{column}_error": result["error"]}
            continue
        (encoder,) = [row for row in result["methods"] if row["method"] == "encoder"]
        measures = {name: encoder[name]["value"] for name in MEASURES if name in encoder}
        scores[column] = {f"{column}_{name}": value for name, value in measures.items()}
    return {name: value for one in scores.values() for name, value in one.items()}
