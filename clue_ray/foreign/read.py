"""Find out what tool wrote a file or a folder of runs, and read it as one table.

One row per run. Where a table or a file holds the curve of a run, its last row counts. Nothing is
dropped silently: the notes say what was read and what was left out.
"""

import ast
import glob
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clue_ray.errors import RunsError, reason_of
from clue_ray.foreign import trackers
from clue_ray.foreign.names import STEPS, all_of, first_of
from clue_ray.foreign.study import is_study
from clue_ray.runs import read_runs
from clue_ray.storage.documents import parse_json
from clue_ray.storage.links import check_links

TABLES = {".csv", ".tsv", ".parquet", ".pq", ".json", ".jsonl", ".ndjson"}
DATABASES = {".db", ".sqlite", ".sqlite3"}
SIDE_FILES = {"wandb-summary.json", "wandb-metadata.json"}
"""Tables by their ending that hold no runs."""
ONLY_NAMED = ("*.wandb", trackers.EVENTS)
"""Patterns of folders of which nothing else is read; tools link data and saved files there."""
STUDY = "a study of clue-ray"
CHART = "__MIN"
"""End of a column in the CSV export of a W&B chart."""


@dataclass(frozen=True)
class Found:
    """The runs that a file or a folder holds.

    Attributes:
        table: one row per run, with the tool's own column names.
        kind: what the file or folder is, in words.
        notes: sentences on how it was read.
    """

    table: pd.DataFrame
    kind: str
    notes: list[str] = field(default_factory=list)


def read_any(path: Path) -> Found:
    """Read the runs of a table, a tracker's store or a folder of logs.

    Raises:
        RunsError: there is nothing, or nothing that is known, or it cannot be read.
        StudyError: a link in the folder leads out of it.
    """
    if not path.exists():
        raise RunsError(
            f"There is no {path}; give a table of runs, or the folder of a tracker or a study."
        )
    try:
        found = _read_folder(path) if path.is_dir() else _read_file(path)
        table = _with_numbers(found.table)
    except RecursionError:
        raise RunsError(f"{path} cannot be read as runs (it is nested too deeply).") from None
    except (ValueError, OSError) as error:
        raise RunsError(
            f"{path} cannot be read as runs ({reason_of(error)}); export it as CSV."
        ) from None
    if found.table.empty:
        raise RunsError(f"{path}, {found.kind}, holds no run; give one with finished runs.")
    if not any(pd.api.types.is_numeric_dtype(table[name]) for name in table):
        raise RunsError(
            f"{path}, {found.kind}, has no number of its {len(table)} "
            f"run{'s' * (len(table) != 1)}; give one whose runs logged a loss."
        )
    return Found(table, found.kind, found.notes)


def _read_file(path: Path) -> Found:
    if path.suffix in DATABASES:
        return Found(pd.DataFrame(trackers.mlflow_database_runs(path)), "an MLflow database")
    if path.suffix == ".wandb":
        return Found(pd.DataFrame(trackers.wandb_runs([path])), "a W&B run")
    if "tfevents" in path.name:
        return _read_folder(path.parent)
    table, notes = one_row_per_run(_spread(read_runs(path).table), path)
    return Found(table, "a table", notes)


def _read_folder(folder: Path) -> Found:
    """Recognise a folder by its files, the most telling first: trackers nest in each other."""
    if is_study(folder):  # before its own tune/, which is a Ray Tune experiment
        kind = STUDY if (folder / "plan.json").is_file() else "the directory of a page"
        return Found(read_runs(folder).table, kind)
    if (database := folder / "mlflow.db").is_file():
        check_links(folder, database.name)
        return _read_file(database)
    readers: tuple[tuple[str, str, Callable[[Path], list[trackers.Row]]], ...] = (
        (
            "*.wandb",
            "a folder of W&B runs",
            lambda at: trackers.wandb_runs(sorted(at.rglob("*.wandb"))),
        ),
        ("params.json", "a Ray Tune experiment", trackers.ray_tune_runs),
        ("meta.yaml", "an MLflow file store", trackers.mlflow_file_runs),
        (trackers.EVENTS, "a folder of TensorBoard logs", trackers.tensorboard_runs),
    )
    for pattern, kind, read in readers:
        if next(folder.rglob(pattern), None):
            check_links(folder, pattern if pattern in ONLY_NAMED else "*")
            return Found(pd.DataFrame(read(folder)), kind)
    return _read_tables(folder)


def _read_tables(folder: Path) -> Found:
    """Read a folder of tables, of which each holds the curve of one run or some runs."""
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in TABLES and file.name not in SIDE_FILES
    ]
    for link in filter(Path.is_symlink, files):  # others in the folder are not read
        check_links(folder, glob.escape(link.name))
    if not files:
        raise RunsError(
            f"{folder} holds no runs: no study, W&B, MLflow, TensorBoard or Ray Tune files and no "
            "tables are in it; give the folder that a tracker wrote, or a table."
        )
    parts, curves = [], 0
    for file in files:
        part = _spread(read_runs(file).table)
        run = _run_of(part)
        if run and part[run].nunique() > 1:
            part = one_row_per_run(part, file)[0]
        elif len(part) > 1 and (step := _step_of(part)) and part[step].is_unique:
            part, curves = _last_values(part, step), curves + 1
        name = file.relative_to(folder).with_suffix("").as_posix()
        if run is None:
            rows = [f"{name}-{row}" for row in range(len(part))]
            part = part.assign(run=name if len(part) == 1 else rows)
        parts.append(part)
    notes = (
        [f"Of {curves} files, each the curve of one run, the last values count."] if curves else []
    )
    return Found(pd.concat(parts, ignore_index=True), f"a folder of {len(files)} tables", notes)


MOST_REPEATED = 0.2
"""Share of a table's rows that may repeat a run and step."""
MISSING = ("", "nan", "none", "null", "n/a", "na")
"""Words for no value; trackers write the loss of a run that diverged so."""
NOT_FINITE = re.compile(r"\b(nan|inf)\b", re.IGNORECASE)


def one_row_per_run(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Take the last row of each run where a table holds curves.

    Raises:
        RunsError: the table is a chart, or the curve of a single run.
    """
    if any(str(name).endswith(CHART) for name in table):
        raise RunsError(
            f"{path} is the export of a W&B chart, which has the curves but not the settings of "
            "the runs; export the table of runs instead."
        )
    step, run = _step_of(table), _run_of(table)
    if step is None:
        return table, []
    if run is not None:
        table = _without_repeats(table, run, step)
    if run and table[run].duplicated().any() and not table.duplicated([run, step]).any():
        last = pd.concat([_last_values(rows, step) for _, rows in table.groupby(run, sort=False)])
        note = f"{len(table)} rows are the curves of {len(last)} runs; the last values count."
        return last.reset_index(drop=True), [note, *_on_models(run, step)]
    steps = table[step]
    rising = len(table) > 2 and steps.is_monotonic_increasing and steps.is_unique
    if run is None and rising and _can_be_curves(table, [0] * len(table)):
        raise RunsError(
            f"{path} is the curve of one run, one row per {step}; a law needs the ends of several "
            "runs: give a folder with the files of all runs, or a table of runs."
        )
    return table, []


GROWS = ("compute", "train_tokens", "wall_seconds")
FIXED = ("non_embedding_params", "global_batch_size", "sequence_length", "seed")
"""What grows along a curve, and what stays as it is."""


def _run_of(table: pd.DataFrame) -> str | None:
    """Return the column that names runs: by its name, or a model's where each has one curve."""
    columns = list(map(str, table))
    step = _step_of(table)
    if (run := first_of("run", columns)) or step is None:
        return run
    for name in all_of("model", columns):
        repeated = 1 < table[name].nunique() <= len(table) / 2
        if repeated and not table.duplicated([name, step]).any():
            ordered = table.sort_values(step, kind="stable")
            if _can_be_curves(ordered, ordered[name]):
                return name
    return None


def _can_be_curves(ordered: pd.DataFrame, of: Any) -> bool:
    """Return whether the rows of each group, in their order, can be the curve of one run."""
    columns = [name for name in map(str, ordered) if pd.api.types.is_numeric_dtype(ordered[name])]
    rows = ordered[columns].groupby(np.asarray(of))
    fixed = [name for meaning in FIXED for name in all_of(meaning, columns)]
    grows = [name for meaning in GROWS for name in all_of(meaning, columns)]
    return all((rows[name].nunique() <= 1).all() for name in fixed) and not any(
        (rows[name].diff() < 0).any() for name in grows
    )


def _on_models(run: str, step: str) -> list[str]:
    """Say that the rows of a model were taken as one run, where no column names runs."""
    if first_of("run", [run]):
        return []
    return [
        f"No column names runs, so the rows of one {run!r} are one run, by {step!r}; where each "
        "row is a run of its own, give it a column 'run' with a name per row."
    ]


def _without_repeats(table: pd.DataFrame, run: str, step: str) -> pd.DataFrame:
    """Keep the last of a few rows of one run and step, as where a resumed run logged them twice.

    Where most rows repeat, they are runs of their own, such as seeds under one name.
    """
    again = table.duplicated([run, step], keep="last")
    curves = (table.groupby(run)[step].nunique() > 1).mean() > 0.5
    if not again.any() or not curves or again.mean() >= MOST_REPEATED:
        return table
    # Validation and training may be logged in rows of their own.
    others = [name for name in table if name not in (run, step)]
    filled = table.assign(**table.groupby([run, step])[others].ffill())
    return filled[~again]


def _step_of(table: pd.DataFrame) -> str | None:
    """Return the column that counts steps, where it is filled with numbers."""
    by_name = {str(name).lower(): str(name) for name in table}
    found = next((by_name[name] for name in STEPS if name in by_name), None)
    numeric = found is not None and pd.api.types.is_numeric_dtype(table[found])
    return found if numeric and table[found].notna().all() else None


def _last_values(curve: pd.DataFrame, step: str) -> pd.DataFrame:
    """Return one row: the last value of each column of a curve."""
    return curve.sort_values(step, kind="stable").ffill().tail(1)


def _spread(table: pd.DataFrame) -> pd.DataFrame:
    """Spread columns of mappings, such as config and summary of W&B, over columns of their own."""
    parts = []
    for name in table:
        values = table[name].map(_as_mapping)
        if values.map(lambda value: isinstance(value, dict)).any():
            rows = [trackers.flatten(value) if isinstance(value, dict) else {} for value in values]
            spread = pd.DataFrame(rows, index=table.index).add_prefix(f"{name}/")
            parts.append(spread[[c for c in spread.columns if "/_wandb" not in str(c)]])
        else:
            parts.append(table[[name]])
    return pd.concat(parts, axis=1) if parts else table


def _as_mapping(value: Any) -> Any:
    """Read a mapping that a table holds as text, in JSON or as Python writes it."""
    if not (isinstance(value, str) and re.fullmatch(r"\s*\{.*\}\s*", value, re.DOTALL)):
        return value
    for read in (parse_json, ast.literal_eval):
        try:
            return read(value if read is parse_json else NOT_FINITE.sub("None", value))
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return value


def _with_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Read texts that are all numbers as numbers: trackers keep settings as text."""
    read = {}
    for name in table.columns:
        values = table[name]
        if name in ("run_id", "status") or pd.api.types.is_numeric_dtype(values):
            continue
        numbers = pd.to_numeric(values.astype(str), errors="coerce")
        known = values.notna() & ~values.astype(str).str.strip().str.lower().isin(MISSING)
        if known.any() and numbers[known].notna().all():
            read[name] = numbers
    return table.assign(**read)
