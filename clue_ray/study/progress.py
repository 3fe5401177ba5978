"""Follow a running study through Ray Tune's callbacks, and report its progress as plain data."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.tune import Callback

from clue_ray.runs import RunDescription
from clue_ray.spec.columns import head_of, name_columns
from clue_ray.study.planned import Plan

PLAN_WEIGHT = 0.25
"""Share of the study whose measured pace weighs as much as the plan in the time left."""


@dataclass
class RunProgress:
    """One run in training.

    Attributes:
        label: The run's settings in short.
        share: Share of its steps that is done.
        loss: Its last held-out loss, if it has one yet.
    """

    run_id: str
    label: str
    share: float = 0.0
    loss: float | None = None


@dataclass
class Snapshot:
    """A study at one moment.

    Attributes:
        finished: Number of runs that need no more training.
        seconds_left: Expected wall-clock seconds until the last run ends.
        ended: One line for each run that ended since the last snapshot.
        failed: Number of finished runs that failed or diverged.
    """

    plan: Plan
    finished: int
    running: list[RunProgress]
    seconds_left: float
    ended: list[str] = field(default_factory=list)
    failed: int = 0


OnProgress = Callable[[Snapshot], None]


def ignore_progress(snapshot: Snapshot) -> None:
    """Do nothing."""


class StudyProgress(Callback):
    """Counts the trials of a study and calls `on_progress` with a `Snapshot` at each change.

    The time left is the plan's, scaled by the pace measured so far.
    """

    def __init__(self, plan: Plan, on_progress: OnProgress):
        self.plan, self.on_progress = plan, on_progress
        self.expected = {r.run_id: r.expected_seconds for r in plan.runs}
        self.labels = {r.run_id: _label_run(r.description) for r in plan.runs}
        self.done = {r.run_id for r in plan.runs if r.finished}
        self.failed = {r.run_id for r in plan.runs if r.finished and r.status != "done"}
        self.running: dict[str, RunProgress] = {}
        self.started = time.perf_counter()

    def __getstate__(self) -> dict[str, Any]:
        """Return a state without `on_progress`, which may hold a terminal and cannot be pickled."""
        return {**vars(self), "on_progress": ignore_progress}

    def report(self, ended: list[str] | None = None) -> None:
        """Call `on_progress` with the study's current state."""
        running = list(self.running.values())
        snapshot = Snapshot(
            self.plan, len(self.done), running, self.seconds_left(), ended or [], len(self.failed)
        )
        self.on_progress(snapshot)

    def seconds_left(self) -> float:
        """Estimate the wall-clock seconds until the last run ends."""
        share = {run_id: progress.share for run_id, progress in self.running.items()}
        left = sum(
            s * (1 - share.get(i, 0)) for i, s in self.expected.items() if i not in self.done
        )
        total = sum(r.expected_seconds for r in self.plan.pending)
        if not total:
            return 0.0
        # The pace is wall-clock seconds per run second. The plan enters as if `trusted` run seconds
        # had already been measured at its pace, so that the first runs do not swing the estimate.
        trusted = PLAN_WEIGHT * total
        planned = 60 * self.plan.expected_minutes / total
        pace = (time.perf_counter() - self.started + trusted * planned) / (total - left + trusted)
        return left * pace

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Add a run that starts."""
        run_id = trial.config["run"]["run_id"]
        self.running[run_id] = RunProgress(run_id, self.labels[run_id])
        self.report()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Update the share and loss of a run."""
        progress = self.running.get(trial.config["run"]["run_id"])
        if progress and result.get("steps"):
            progress.share = result["step"] / result["steps"]
            progress.loss = result.get("loss") or progress.loss
            self.report()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count a run that ended."""
        self._end(trial, str(trial.last_result.get("status", "ended")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count a run whose trial died."""
        self._end(trial, "failed")

    def _end(self, trial: Any, status: str) -> None:
        run_id = trial.config["run"]["run_id"]
        progress = self.running.pop(run_id, RunProgress(run_id, self.labels[run_id]))
        self.done.add(run_id)
        if status != "done":
            self.failed.add(run_id)
        result = trial.last_result or {}
        loss = result.get("loss")
        outcome = f"loss {loss:.4f}" if loss else result.get("error", "")
        self.report([f"{status} {progress.label}  {outcome}".rstrip()])


def _label_run(run: RunDescription) -> str:
    """Name a run by what usually varies."""
    columns = [*name_columns(), *["num_workers"] * (run.num_workers > 1)]
    values = {column: getattr(run, column) for column in columns}
    return ", ".join(
        f"{head_of(column)} {value if isinstance(value, str) else f'{value:,}'}"
        for column, value in values.items()
    )
