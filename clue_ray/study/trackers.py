"""Send the runs of a study, their curves and its report to MLflow or Weights & Biases.

A study names them in one line, `trackers: [mlflow]`. Everything is sent from the files of the study
once the report is written, so no tracker can slow down or end training. tracked.json remembers what
was sent; the same command sends the rest. Places and logins are those of the libraries'
environment: MLFLOW_TRACKING_URI, WANDB_MODE, WANDB_DIR.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from clue_ray.corpus.hashes import sha256
from clue_ray.errors import SpecError, StudyError
from clue_ray.runs import RunDescription, RunRecord, Runs
from clue_ray.storage.files import read_json, write_json
from clue_ray.study.directory import StudyDirectory

SENT = "tracked.json"
"""In the study directory: tracker -> run id -> when the run that was sent had started."""
REPORT = "report"
"""Key of the report in it, whose value is the hash of the runs table."""
FILES = ("runs.csv", "fits.json")
"""Sent with the report."""
MOST_METRICS = 1_000
"""Metrics in one request to MLflow."""
POSITION = "step"
TAG = "clue_ray"
"""Tag of the runs in MLflow that were sent, with what they are: a run id, or the report."""
Curve = list[dict[str, Any]]


class Tracker(Protocol):
    """Where runs and reports are sent."""

    def send_run(self, record: RunRecord, curve: Curve) -> None:
        """Send the settings, the curve and the results of one run."""

    def send_report(self, page: Path, files: list[Path]) -> None:
        """Send the folder of the report, and files."""


def check_trackers(names: Iterable[str]) -> None:
    """Raise SpecError where the library of a tracker is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise SpecError(
                f"trackers names {name}, which is not installed; run pip install "
                f"'clue-ray[{name}]', or leave it out."
            )


def send_study(directory: StudyDirectory, study: str, names: Iterable[str], runs: Runs) -> None:
    """Send what the trackers do not have yet.

    Raises:
        StudyError: a tracker failed; what it has got is remembered.
    """
    for name in names:
        try:
            _send_to(_TRACKERS[name](study), name, directory, runs)
        except Exception as error:  # each library has errors of its own
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise StudyError(
                f"{name} failed ({reason}); the runs and the report are in {directory.path}, and "
                "the same command sends what is missing."
            ) from error


def _send_to(tracker: Tracker, name: str, directory: StudyDirectory, runs: Runs) -> None:
    file = directory.path / SENT
    document = read_json(file) if file.exists() else {}
    sent = document.setdefault(name, {})
    for record in _ended(directory, runs):
        if sent.get(record.run_id) != record.started_at:
            tracker.send_run(record, directory.read_curve(record.run_id))
            sent[record.run_id] = record.started_at
            write_json(file, document)
    table = sha256(directory.path / "runs.csv")
    if sent.get(REPORT) != table:
        files = [directory.path / name for name in FILES]
        tracker.send_report(directory.path / "report", [path for path in files if path.exists()])
        sent[REPORT] = table
        write_json(file, document)


def _ended(directory: StudyDirectory, runs: Runs) -> Iterator[RunRecord]:
    """Yield the records of the runs that ended."""
    for run_id in runs.table["run_id"]:
        if record := directory.read_record(run_id):
            yield record


def _settings(record: RunRecord) -> dict[str, Any]:
    """Return what was known before training."""
    return {name: getattr(record, name) for name in RunDescription.model_fields}


def _results(record: RunRecord) -> dict[str, float]:
    """Return the numbers that were measured."""
    measured = record.model_dump(exclude=set(RunDescription.model_fields))
    return {name: value for name, value in measured.items() if isinstance(value, int | float)}


def _points(record: RunRecord, curve: Curve) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (step, numbers) for the curve and then for the results."""
    for row in [*curve, {**_results(record), POSITION: record.steps}]:
        numbers = {
            name: value
            for name, value in row.items()
            if isinstance(value, int | float) and name not in (POSITION, "steps")
        }
        yield int(row.get(POSITION) or 0), numbers


class _MLflow:
    """An experiment of the study's name, with one run per run and one for each report."""

    def __init__(self, study: str):
        import mlflow

        self.client = mlflow.MlflowClient()
        self.entities = mlflow.entities
        found = self.client.get_experiment_by_name(study)
        self.experiment = (
            found.experiment_id if found is not None else self.client.create_experiment(study)
        )

    def send_run(self, record: RunRecord, curve: Curve) -> None:
        start, end = _milliseconds(record)
        run_id = self._start(record.run_id, start)
        metrics = [
            self.entities.Metric(name, float(value), end, step)
            for step, numbers in _points(record, curve)
            for name, value in numbers.items()
        ]
        params = [self.entities.Param(name, str(v)) for name, v in _settings(record).items()]
        self.client.log_batch(run_id, params=params)
        for first in range(0, len(metrics), MOST_METRICS):
            self.client.log_batch(run_id, metrics=metrics[first : first + MOST_METRICS])
        if record.error:
            self.client.set_tag(run_id, "error", record.error)
        self.client.set_terminated(
            run_id, "FINISHED" if record.status == "done" else "FAILED", end_time=end
        )

    def send_report(self, page: Path, files: list[Path]) -> None:
        run_id = self._start(REPORT, None)
        self.client.log_artifacts(run_id, str(page), REPORT)
        for file in files:
            self.client.log_artifact(run_id, str(file))
        self.client.set_terminated(run_id)

    def _start(self, name: str, start: int | None) -> str:
        """Create a run, in the place of those that an interrupted command left half sent."""
        half_sent = f"tags.{TAG} = '{name}' and attributes.status = 'RUNNING'"
        for run in self.client.search_runs([self.experiment], half_sent):
            self.client.delete_run(run.info.run_id)
        made = self.client.create_run(
            self.experiment, run_name=name, start_time=start, tags={TAG: name}
        )
        return str(made.info.run_id)


def _milliseconds(record: RunRecord) -> tuple[int, int]:
    """Return when a run started and ended, in ms since 1970."""
    start = datetime.fromisoformat(record.started_at).timestamp() if record.started_at else 0.0
    return int(1000 * start), int(1000 * (start + (record.wall_seconds or 0)))


class _WandB:
    """A project of the study's name, with one run per run and one for each report."""

    def __init__(self, study: str):
        import wandb

        self.wandb, self.study = wandb, study

    def send_run(self, record: RunRecord, curve: Curve) -> None:
        run = self._start(id=record.run_id, name=record.run_id, config=_settings(record))
        for step, numbers in _points(record, curve):
            run.log(numbers, step=step)
        run.summary.update({**_results(record), "status": record.status, "error": record.error})
        run.finish(exit_code=0 if record.status == "done" else 1)

    def send_report(self, page: Path, files: list[Path]) -> None:
        run = self._start(name=REPORT, job_type=REPORT)
        made = self.wandb.Artifact(f"{self.study}-{REPORT}", type=REPORT)
        made.add_dir(str(page), REPORT)
        for file in files:
            made.add_file(str(file))
        run.log_artifact(made)
        run.finish()

    def _start(self, **named: Any) -> Any:
        return self.wandb.init(project=self.study, reinit="create_new", **named)


_TRACKERS: dict[str, Callable[[str], Tracker]] = {"mlflow": _MLflow, "wandb": _WandB}
