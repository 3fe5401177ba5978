"""Read the runs of W&B offline folders, MLflow stores, TensorBoard logs and Ray Tune experiments.

Each reader returns one row per run: what was set and the last value of what was logged, under the
tracker's names, with our statuses. A run that a tracker did not see end is `missing`, not `done`.
"""

import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from clue_ray.errors import SpecError
from clue_ray.foreign.wire import (
    Message,
    as_double,
    as_float,
    decode,
    leveldb_records,
    message_in,
    number_in,
    text_in,
    tf_records,
)
from clue_ray.spec.statuses import Status
from clue_ray.spec.yaml import read_yaml
from clue_ray.storage.documents import parse_json, read_bounded

Row = dict[str, Any]
EVENTS = "events.out.tfevents*"
TIME = r"\d{10}(\.\d+)?"
"""Name of a folder of hyperparameters, where their writer gives none: seconds since 1970."""
MLFLOW_STATUSES: dict[str, Status] = {
    "1": "missing", "2": "missing", "3": "done", "4": "failed", "5": "failed",
    "RUNNING": "missing", "SCHEDULED": "missing", "FINISHED": "done", "FAILED": "failed",
    "KILLED": "failed",
}  # fmt: skip
"""What MLflow's stores write, as a number in files and as a word in databases."""
VIEWS = (
    "SELECT name FROM sqlite_master WHERE type = 'view' "
    "AND lower(name) IN ('runs', 'experiments', 'params', 'latest_metrics')"
)
"""Finds what stands for a table in a database and is a query, which may compute for ever."""
TUNE_STATUSES: dict[str, Status] = {"TERMINATED": "done", "ERROR": "failed"}
MOST_BYTES = 2_000_000_000
"""Size of a file of a tracker that is read whole: event files may hold images."""
MOST_LEVELS = 50
"""Levels of settings within settings."""
WANDB_LABELS = {"project": 3, "group": 6, "job_type": 7}
"""What a W&B run belongs to, by the field of its record."""


def flatten(values: Any, above: str = "", level: int = 0) -> Row:
    """Spell nested mappings as one: {"model": {"layers": 2}} becomes {"model/layers": 2}.

    Raises:
        ValueError: they are nested too deeply.
    """
    if not isinstance(values, dict):
        return {above: values}
    if level > MOST_LEVELS:
        raise ValueError(f"settings are nested more than {MOST_LEVELS} levels deep")
    flat: Row = {}
    for key, value in values.items():
        flat |= flatten(value, f"{above}/{key}" if above else str(key), level + 1)
    return flat


def wandb_runs(files: Iterable[Path]) -> list[Row]:
    """Read `run-<id>.wandb` files, which W&B writes offline and online."""
    return [_wandb_run(file) for file in files]


def _wandb_run(file: Path) -> Row:
    own: Row = {"run_id": file.stem.removeprefix("run-"), "status": "missing"}
    row: Row = {}
    config: Row = {}
    labels: Row = {}
    for content in leveldb_records(read_bounded(file, MOST_BYTES)):
        record = decode(content)
        if 17 in record:  # a run: its name, where it belongs and its first config
            run = message_in(record, 17)
            labels |= {
                name: text for name, at in WANDB_LABELS.items() if (text := text_in(run, at))
            }
            own["name"] = text_in(run, 8) or own["run_id"]
            config |= _wandb_items(message_in(run, 4), 1)
        if 5 in record:
            config |= _wandb_items(message_in(record, 5), 1)
        if 2 in record:
            row |= _wandb_items(message_in(record, 2), 1)
        if 3 in record:
            row |= _wandb_items(message_in(record, 3), 1)
        if 18 in record:
            code = number_in(message_in(record, 18), 1)
            own["status"] = "failed" if code else "done"
    settings = {name: config[name] for name in config if not name.startswith("_wandb")}
    return labels | settings | row | own  # own last, whatever was logged under these names


def _wandb_items(record: Message, number: int) -> Row:
    """Read the items of a config, a history or a summary: a key and a value as JSON."""
    found: Row = {}
    for content in record.get(number, []):
        item = decode(content) if isinstance(content, bytes) else {}
        nested = [part.decode() for part in item.get(2, []) if isinstance(part, bytes)]
        key = text_in(item, 1) or "/".join(nested)
        if key and not key.startswith("_wandb"):
            found |= flatten(parse_json(text_in(item, 16) or "null"), key)
    return found


def mlflow_file_runs(store: Path) -> list[Row]:
    """Read an MLflow file store, `mlruns/<experiment>/<run>/`; deleted runs are left out."""
    found = {meta.parent: _mlflow_meta(meta) for meta in sorted(store.glob("**/meta.yaml"))}
    rows = []
    for folder, run in found.items():
        if "run_id" in run and run.get("lifecycle_stage", "active") == "active":
            experiment = found.get(folder.parent, {}).get("name") or folder.parent.name
            rows.append({"experiment": str(experiment)} | _mlflow_file_run(folder, run))
    return rows


def _mlflow_meta(file: Path) -> Row:
    """Read the description of a run or of an experiment; a half-written one has what is there."""
    try:
        document = read_yaml(file)
    except SpecError:
        document = None
    found = document if isinstance(document, dict) else {}
    is_run = any((file.parent / name).is_dir() for name in ("params", "metrics"))
    return {"run_id": file.parent.name} | found if is_run else found


def _mlflow_file_run(folder: Path, meta: Row) -> Row:
    run_id = str(meta["run_id"])
    row: Row = {}
    own = {"run_id": run_id, "name": str(meta.get("run_name") or run_id)}
    own["status"] = MLFLOW_STATUSES.get(str(meta.get("status")), "missing")
    for file in _files_below(folder / "params"):
        row[file.relative_to(folder / "params").as_posix()] = _text(file).strip()
    for file in _files_below(folder / "metrics"):
        # Lines of time, value and step; the last step counts, and of two the later time.
        lines = [line.split() for line in _text(file).splitlines() if len(line.split()) > 1]
        last = max(lines, key=lambda line: (int([*line, "0"][2]), int(line[0])), default=None)
        if last:
            row[file.relative_to(folder / "metrics").as_posix()] = float(last[1])
    return {**row, **own}


def _text(file: Path) -> str:
    """Read a text file that fits the memory.

    Raises:
        OSError, ValueError: it does not, or it is no text.
    """
    return read_bounded(file).decode()


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def mlflow_database_runs(file: Path) -> list[Row]:
    """Read an MLflow database in sqlite, without writing to it.

    Raises:
        ValueError: it is not such a database.
    """
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as store:
            if store.execute(VIEWS).fetchone():
                raise ValueError("it has a view in place of a table")
            runs = store.execute(
                "SELECT run_uuid, runs.name, status, experiments.name FROM runs LEFT JOIN "
                "experiments USING (experiment_id) WHERE runs.lifecycle_stage = 'active'"
            ).fetchall()
            params = store.execute("SELECT run_uuid, key, value FROM params").fetchall()
            metrics = store.execute(
                "SELECT run_uuid, key, value FROM latest_metrics WHERE is_nan = 0"
            ).fetchall()
    except sqlite3.Error as error:
        raise ValueError(f"it is not an MLflow database: {error}") from None
    rows: dict[str, Row] = {
        run: {
            "experiment": experiment,
            "run_id": run,
            "name": name or run,
            "status": MLFLOW_STATUSES.get(status, "missing"),
        }
        for run, name, status, experiment in runs
    }
    for run, key, value in (*params, *metrics):
        if run in rows and key not in ("experiment", "run_id", "name", "status"):
            rows[run][key] = value
    return list(rows.values())


def tensorboard_runs(root: Path) -> list[Row]:
    """Read a folder of TensorBoard logs: each folder with event files is a run.

    The last value of every scalar counts, and hyperparameters where they were logged: writers put
    these into a folder of their own below that of the run. TensorBoard does not say whether a run
    ended, so no row has a status.
    """
    rows: dict[Path, Row] = {}
    for folder in sorted({file.parent for file in root.rglob(EVENTS)}):
        row, settings = _tensorboard_run(folder, root)
        if folder.parent in rows and (settings or re.fullmatch(TIME, folder.name)):
            rows[folder.parent] = {**row, **rows[folder.parent], **settings}
        else:
            rows[folder] = row | settings
    return list(rows.values())


def _tensorboard_run(folder: Path, root: Path) -> tuple[Row, Row]:
    """Return the id and last scalars of a folder, and its hyperparameters."""
    name = folder.relative_to(root).as_posix()
    row: Row = {"run_id": folder.name if name == "." else name}
    steps: dict[str, int] = {}
    settings: Row = {}
    for file in sorted(folder.glob(EVENTS)):
        for content in tf_records(read_bounded(file, MOST_BYTES)):
            event = decode(content)
            step = number_in(event, 2)
            for value in message_in(event, 5).get(1, []):
                found = decode(value) if isinstance(value, bytes) else {}
                tag, number = text_in(found, 1), _scalar(found)
                if number is not None and step >= steps.get(tag, 0):
                    row[tag], steps[tag] = number, step
                settings |= _hyperparameters(found)
    if steps:
        row["step"] = max(steps.values())
    return row, settings


def _scalar(value: Message) -> float | None:
    """Read a scalar of a summary: a plain value, or a tensor of one element."""
    if 2 in value:
        return as_float(number_in(value, 2))
    tensor = message_in(value, 8)
    packed = next((tensor[at][-1] for at in (5, 6, 4) if at in tensor), None)
    if isinstance(packed, int):
        return as_double(packed) if number_in(tensor, 1) == 2 else as_float(packed)
    if isinstance(packed, bytes) and len(packed) in (4, 8):
        bits = int.from_bytes(packed, "little")
        return as_float(bits) if len(packed) == 4 else as_double(bits)
    return None


def _hyperparameters(value: Message) -> Row:
    """Read the hyperparameters of TensorBoard's hparams plugin."""
    plugin = message_in(message_in(value, 9), 1)
    if text_in(plugin, 1) != "hparams":
        return {}
    found: Row = {}
    for entry in message_in(message_in(plugin, 2), 3).get(1, []):
        pair = decode(entry) if isinstance(entry, bytes) else {}
        setting = message_in(pair, 2)
        if 2 in setting:
            found[text_in(pair, 1)] = as_double(number_in(setting, 2))
        elif 3 in setting:
            found[text_in(pair, 1)] = text_in(setting, 3)
    return found


def ray_tune_runs(root: Path) -> list[Row]:
    """Read a Ray Tune experiment: config, last result and status of each trial.

    The experiment's state file knows how trials ended and of those that failed before they wrote
    anything. Without it a trial counts as done where its last result says so.
    """
    folders = {params.parent: _ray_tune_run(params.parent) for params in root.rglob("params.json")}
    # States of one experiment are named by their time: the last one read is the current one.
    for file in sorted(root.rglob("experiment_state-*.json")):
        for trial in _tune_trials(file):
            folder = file.parent / str(trial.get("relative_logdir"))
            row = folders.setdefault(
                folder, {"run_id": folder.name} | flatten(trial.get("config", {}), "config")
            )
            row["status"] = TUNE_STATUSES.get(str(trial.get("status")), "missing")
    return [{"experiment": folder.parent.name} | folders[folder] for folder in sorted(folders)]


def _tune_trials(file: Path) -> list[Row]:
    """Return the trials of a state file, each a JSON text within JSON; none of a damaged file."""
    try:
        listed = parse_json(read_bounded(file))["trial_data"]
        trials = [parse_json(trial[0]) for trial in listed]
    except (ValueError, LookupError, TypeError):
        return []
    return [trial for trial in trials if isinstance(trial, dict)]


def _ray_tune_run(folder: Path) -> Row:
    row: Row = {}
    with suppress(ValueError):  # the file of a trial that was killed
        row |= flatten(parse_json(_text(folder / "params.json") or "{}"), "config")
    results = folder / "result.json"
    last: Row = {}
    for line in _text(results).splitlines() if results.is_file() else ():
        try:
            last |= parse_json(line)
        except (ValueError, TypeError):
            break  # the last line of a trial that was killed
    last.pop("config", None)
    row |= flatten(last)
    status: Status = "done" if last.get("done") else "missing"
    if (folder / "error.txt").is_file() or (folder / "error.pkl").is_file():
        status = "failed"
    return {**row, "run_id": folder.name, "status": status}
