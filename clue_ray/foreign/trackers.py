"""Read the runs of W&B offline folders, MLflow stores, TensorBoard logs and Ray Tune experiments.

Each reader returns one row per run: what was set and the last value of what was logged, under the
tracker's names, with our statuses. A run that a tracker did not see end is `missing`, not `done`.
"""

import json
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import yaml

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

TUNE_STATUSES: dict[str, Status] = {"TERMINATED": "done", "ERROR": "failed"}


def flatten(values: Any, above: str = "") -> Row:
    """Spell nested mappings as one: {"model": {"layers": 2}} becomes {"model/layers": 2}."""
    if not isinstance(values, dict):
        return {above: values}
    flat: Row = {}
    for key, value in values.items():
        flat |= flatten(value, f"{above}/{key}" if above else str(key))
    return flat


def wandb_runs(files: Iterable[Path]) -> list[Row]:
    """Read `run-<id>.wandb` files, which W&B writes offline and online."""
    return [_wandb_run(file) for file in files]


def _wandb_run(file: Path) -> Row:
    row: Row = {"run_id": file.stem.removeprefix("run-"), "status": "missing"}
    config: Row = {}
    for content in leveldb_records(file.read_bytes()):
        record = decode(content)
        if 17 in record:  # a run: its name and first config
            run = message_in(record, 17)
            row["name"] = text_in(run, 8) or row["run_id"]
            config |= _wandb_items(message_in(run, 4), 1)
        if 5 in record:
            config |= _wandb_items(message_in(record, 5), 1)
        if 2 in record:
            row |= _wandb_items(message_in(record, 2), 1)
        if 3 in record:
            row |= _wandb_items(message_in(record, 3), 1)
        if 18 in record:
            code = number_in(message_in(record, 18), 1)
            row["status"] = "failed" if code else "done"
    return {**{name: config[name] for name in config if not name.startswith("_wandb")}, **row}


def _wandb_items(record: Message, number: int) -> Row:
    """Read the items of a config, a history or a summary: a key and a value as JSON."""
    found: Row = {}
    for content in record.get(number, []):
        item = decode(content) if isinstance(content, bytes) else {}
        nested = [part.decode() for part in item.get(2, []) if isinstance(part, bytes)]
        key = text_in(item, 1) or "/".join(nested)
        if key and not key.startswith("_wandb"):
            found |= flatten(json.loads(text_in(item, 16) or "null"), key)
    return found


def mlflow_file_runs(store: Path) -> list[Row]:
    """Read an MLflow file store, `mlruns/<experiment>/<run>/`; deleted runs are left out."""
    rows = []
    for meta in sorted(store.glob("**/meta.yaml")):
        document = _mlflow_meta(meta)
        if "run_id" in document and document.get("lifecycle_stage", "active") == "active":
            rows.append(_mlflow_file_run(meta.parent, document))
    return rows


def _mlflow_meta(file: Path) -> Row:
    """Read the description of a run, or of an experiment; of a half-written one the run's id."""
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        document = None
    if isinstance(document, dict) and "run_id" in document:
        return document
    is_run = any((file.parent / name).is_dir() for name in ("params", "metrics"))
    return {"run_id": file.parent.name} if is_run else {}


def _mlflow_file_run(folder: Path, meta: Row) -> Row:
    row: Row = {"run_id": meta["run_id"], "name": meta.get("run_name") or meta["run_id"]}
    row["status"] = MLFLOW_STATUSES.get(str(meta.get("status")), "missing")
    for file in _files_below(folder / "params"):
        row[file.relative_to(folder / "params").as_posix()] = file.read_text().strip()
    for file in _files_below(folder / "metrics"):
        # Lines of time, value and step; the last step counts, and of two the later time.
        lines = [line.split() for line in file.read_text().splitlines() if len(line.split()) > 1]
        last = max(lines, key=lambda line: (int([*line, "0"][2]), int(line[0])), default=None)
        if last:
            row[file.relative_to(folder / "metrics").as_posix()] = float(last[1])
    return row


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def mlflow_database_runs(file: Path) -> list[Row]:
    """Read an MLflow database in sqlite, without writing to it.

    Raises:
        ValueError: it is not such a database.
    """
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as store:
            runs = store.execute(
                "SELECT run_uuid, name, status FROM runs WHERE lifecycle_stage = 'active'"
            ).fetchall()
            params = store.execute("SELECT run_uuid, key, value FROM params").fetchall()
            metrics = store.execute(
                "SELECT run_uuid, key, value FROM latest_metrics WHERE is_nan = 0"
            ).fetchall()
    except sqlite3.Error as error:
        raise ValueError(f"it is not an MLflow database: {error}") from None
    rows: dict[str, Row] = {
        run: {"run_id": run, "name": name or run, "status": MLFLOW_STATUSES.get(status, "missing")}
        for run, name, status in runs
    }
    for run, key, value in (*params, *metrics):
        if run in rows:
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
        for content in tf_records(file.read_bytes()):
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
    return [folders[folder] for folder in sorted(folders)]


def _tune_trials(file: Path) -> list[Row]:
    """Return the trials of a state file, each a JSON text within JSON; none of a damaged file."""
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))["trial_data"]
        trials = [json.loads(trial[0]) for trial in listed]
    except (ValueError, LookupError, TypeError):
        return []
    return [trial for trial in trials if isinstance(trial, dict)]


def _ray_tune_run(folder: Path) -> Row:
    row: Row = {"run_id": folder.name, "status": "missing"}
    with suppress(ValueError):  # the file of a trial that was killed
        row |= flatten(json.loads((folder / "params.json").read_text() or "{}"), "config")
    results = folder / "result.json"
    last: Row = {}
    for line in results.read_text().splitlines() if results.is_file() else ():
        try:
            last |= json.loads(line)
        except ValueError:
            break  # the last line of a trial that was killed
    last.pop("config", None)
    row |= flatten(last)
    if last.get("done"):
        row["status"] = "done"
    if (folder / "error.txt").is_file() or (folder / "error.pkl").is_file():
        row["status"] = "failed"
    return row
