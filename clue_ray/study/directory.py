"""A study's folder: which study owns it, what each run left in it, and the tables made from that.

study.yaml  plan.json  corpus.json  baselines.json  grown.json  transfer.json  owner.json
tracked.json
runs.csv  runs.parquet  curves.parquet  fits.json  forecasts/*.json  report/  events.jsonl
runs/<run_id>/{spec.json, curve.json, record.json, log.txt, checkpoints/, encoder/, transfer/,
events.out.tfevents.*}

Plans and records are read by `clue_ray.runs`, which the report uses too.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import pandas as pd
import yaml

from clue_ray.errors import RunsError, StudyError, short
from clue_ray.runs import RunDescription, RunRecord, Runs, join_records, read_plan, read_record
from clue_ray.spec.specs import RunSpec, StudySpec
from clue_ray.storage.documents import is_file_name, read_document
from clue_ray.storage.files import atomic_write, read_json, write_json
from clue_ray.storage.links import check_links
from clue_ray.storage.lock import locked
from clue_ray.storage.place import place_below
from clue_ray.study.events import EVENTS_FILE, EventLog

CURVE_COLUMNS = (
    "run_id", "step", "users_seen", "train_flops", "loss", "loss_at_training_temperature",
    "recall_at_10", "mrr", "train_loss", "learning_rate", "gradient_norm", "temperature",
    "calibrated_temperature", "tokens_per_second", "memory_bytes", "masked_pairs",
)  # fmt: skip
"""One row per evaluation; docs/guide/training.md says what each column holds."""
MOST_SECONDS = 1e12
"""Longest expected time of a run that a plan may name: 30,000 years."""


class StudyDirectory:
    """Reads and writes one study's folder on a disk that all nodes see.

    `study/mirror.py` has the subclass for a study on storage. Methods that move files between
    storage and this disk do nothing here.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        self.events = EventLog(self.path / EVENTS_FILE)

    @property
    def place(self) -> str:
        """Folder or URI of the study that all nodes can write."""
        return str(self.path)

    @property
    def failure(self) -> str:
        """Why the study must stop, as where its storage is lost; empty while it may continue."""
        return ""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the study for this command.

        Raises:
            StudyError: Another command holds it, or a link in it leads out of it.
        """
        check_links(self.path)
        with locked(self.path):
            yield

    def fetch(self) -> None:
        """Fetch what other machines have written of the study.

        Raises:
            StudyError: A link in the folder leads out of it.
        """
        check_links(self.path)

    def publish(self) -> None:
        """Push the files in the study's own folder, for other machines."""

    def fetch_run(self, run_id: str) -> None:
        """Fetch what a node has written of a run."""

    def claim(self, study: StudySpec, corpus_digest: str) -> None:
        """Make the folder this study's, and write its study file.

        Raises:
            StudyError: The folder belongs to another study, or holds other files.
        """
        owner = {
            "study": study.name,
            "corpus_digest": corpus_digest,
            "candidates": study.evaluation.candidates,
        }
        file = self.path / "owner.json"
        if file.exists():
            self._check_owner(read_json(file), owner)
        elif self.path.exists() and any(self.path.iterdir()):
            raise StudyError(
                f"{self.path} is not empty and holds no study; choose another --output."
            )
        write_json(file, owner)
        with atomic_write(self.path / "study.yaml") as temporary:
            document = study.model_dump(mode="json", exclude_unset=True)
            text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
            temporary.write_text(text, encoding="utf-8")

    def _check_owner(self, found: dict[str, Any], owner: dict[str, Any]) -> None:
        """Raise where the folder's runs could not share a table with this study's."""
        if found == owner:
            return
        difference = ", ".join(
            f"{key} {short(found.get(key))} there, {value} here"
            for key, value in owner.items()
            if found.get(key) != value
        )
        raise StudyError(
            f"{self.path} belongs to another study ({difference}); choose another --output."
        )

    def run_path(self, run_id: str) -> Path:
        """Folder of one run.

        Raises:
            StudyError: The id, as of a table by somebody else, would lead to another folder.
        """
        if not is_file_name(run_id):
            raise StudyError(f"{run_id!r:.80} cannot be the id of a run; restore the runs table.")
        return self.path / "runs" / run_id

    def run_place(self, run_id: str) -> str:
        """Folder or URI of one run that all nodes can write."""
        return place_below(self.place, f"runs/{run_id}")

    def write_run(self, run: RunSpec, record: RunRecord, curve: list[dict[str, float]]) -> None:
        """Write the spec, curve and record of a run."""
        write_run(self.run_path(record.run_id), run, record, curve)

    def write_failure(self, run_id: str, name: str, failure: dict[str, Any] | None) -> None:
        """Write why a run could not be scored; None deletes what an earlier try wrote."""
        file = self.run_path(run_id) / name
        if failure is None:
            file.unlink(missing_ok=True)
        else:
            write_json(file, failure)

    def read_record(self, run_id: str) -> RunRecord | None:
        """Read a run's record; None until the run has ended."""
        return read_record(self.run_path(run_id) / "record.json")

    def planned_seconds(self) -> dict[str, float]:
        """Read the seconds that an earlier plan expected of each run, by run id.

        A run without a usable number is left out, so that the next plan times it again.
        """
        return {
            run["run_id"]: seconds
            for run in read_plan(self.path)
            if _is_duration(seconds := run.get("expected_seconds"))
        }

    def reopen(self, run_id: str) -> None:
        """Delete a run's record before it is trained again."""
        (self.run_path(run_id) / "record.json").unlink(missing_ok=True)

    def ended_run_ids(self) -> set[str]:
        """Return the ids of all runs that ended here, whichever study file they came from."""
        return {file.parent.name for file in self.path.glob("runs/*/record.json")}

    def write_tables(self, planned: list[RunDescription]) -> Runs:
        """Write the runs table and the learning curves; return the table.

        Args:
            planned: The columns known before training, for each run.
        """
        runs = join_records(self.path, [run.model_dump() for run in planned])
        runs.write(self.path)
        curves = [row for run in planned for row in self.read_curve(run.run_id)]
        with atomic_write(self.path / "curves.parquet") as temporary:
            pd.DataFrame(curves, columns=list(CURVE_COLUMNS)).to_parquet(temporary, index=False)
        return runs

    def read_curve(self, run_id: str) -> list[dict[str, Any]]:
        """Read the learning curve of a run that has ended, one row per evaluation."""
        file = self.run_path(run_id) / "curve.json"
        if not (self.read_record(run_id) and file.exists()):
            return []
        return [{"run_id": run_id, **row} for row in _read_rows(file)]


def _is_duration(seconds: Any) -> TypeGuard[float]:
    """Return whether a value of JSON is a number of seconds."""
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return is_number and 0 <= seconds < MOST_SECONDS


def _read_rows(file: Path) -> list[dict[str, Any]]:
    """Read the points of a learning curve.

    Raises:
        RunsError: The file is damaged.
    """
    try:
        rows = read_document(file)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError("not a list of mappings")
    except (OSError, ValueError) as error:
        raise RunsError(
            f"{file} is damaged ({error}); delete the record next to it, and the same command "
            "writes both again."
        ) from None
    return rows


def write_run(folder: Path, run: RunSpec, record: RunRecord, curve: list[dict[str, float]]) -> None:
    """Write the spec, curve and record of a run into its folder.

    The record is written last, because its presence means that the run has ended.
    """
    write_json(folder / "spec.json", run.model_dump(mode="json"))
    finite = [  # JSON has no NaN: what a diverged run measured becomes null
        {name: value if math.isfinite(value) else None for name, value in point.items()}
        for point in curve
    ]
    write_json(folder / "curve.json", finite)
    write_json(folder / "record.json", record.model_dump(mode="json"))
