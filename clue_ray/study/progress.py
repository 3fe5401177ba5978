"""What a running study is doing: heard from Tune's callbacks, told to a listener as plain data."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.tune import Callback

from clue_ray.runs import RunDescription
from clue_ray.spec.columns import head_of, name_columns
from clue_ray.study.planned import Plan

PLAN_WEIGHT = 0.25


@dataclass
class RunProgress:
    """One run under way."""

    run_id: str
    label: str
    share: float = 0.0
    "of its steps done"
    loss: float | None = None


@dataclass
class Snapshot:
    """A study at one moment."""

    plan: Plan
    finished: int
    running: list[RunProgress]
    seconds_left: float
    ended: list[str] = field(default_factory=list)
    "one line for each run that ended since the last snapshot"
    failed: int = 0
    "of the finished, those that failed or diverged"


Listener = Callable[[Snapshot], None]


def ignore(snapshot: Snapshot) -> None:
    """Listen to nothing."""


class StudyProgress(Callback):
    """Follows the trials of a study and tells a listener; time left scales the plan by the speed
    seen so far.
    """

    def __init__(self, plan: Plan, listener: Listener):
        self.plan, self.listener = plan, listener
        self.expected = {r.run_id: r.expected_seconds for r in plan.runs}
        self.labels = {r.run_id: _label_run(r.description) for r in plan.runs}
        self.done = {r.run_id for r in plan.runs if r.finished}
        self.failed = {r.run_id for r in plan.runs if r.finished and r.status != "done"}
        self.running: dict[str, RunProgress] = {}
        self.started = time.perf_counter()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the listener behind: Tune pickles its callbacks, and a terminal does not pickle."""
        return {**vars(self), "listener": ignore}

    def tell(self, ended: list[str] | None = None) -> None:
        """Tell the listener where the study stands."""
        running = list(self.running.values())
        snapshot = Snapshot(
            self.plan, len(self.done), running, self.seconds_left(), ended or [], len(self.failed)
        )
        self.listener(snapshot)

    def seconds_left(self) -> float:
        """Expected wall seconds of what is still to do, scaled by how the plan has held so far."""
        share = {run_id: progress.share for run_id, progress in self.running.items()}
        left = sum(
            s * (1 - share.get(i, 0)) for i, s in self.expected.items() if i not in self.done
        )
        total = sum(r.expected_seconds for r in self.plan.pending)
        if not total:
            return 0.0
        trusted = (
            PLAN_WEIGHT * total
        )  # the plan counts as much as having seen this share of the study
        planned = 60 * self.plan.expected_minutes / total
        pace = (time.perf_counter() - self.started + trusted * planned) / (total - left + trusted)
        return left * pace

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Hear that a run starts."""
        run_id = trial.config["run"]["run_id"]
        self.running[run_id] = RunProgress(run_id, self.labels[run_id])
        self.tell()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Hear how far a run is."""
        progress = self.running.get(trial.config["run"]["run_id"])
        if progress and result.get("steps"):
            progress.share = result["step"] / result["steps"]
            progress.loss = result.get("loss") or progress.loss
            self.tell()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Hear that a run ended."""
        self._end(trial, str(trial.last_result.get("status", "ended")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Hear that a trial died."""
        self._end(trial, "failed")

    def _end(self, trial: Any, status: str) -> None:
        run_id = trial.config["run"]["run_id"]
        progress = self.running.pop(run_id, RunProgress(run_id, self.labels[run_id]))
        self.done.add(run_id)
        if status != "done":
            self.failed.add(run_id)
        loss = trial.last_result.get("loss") if trial.last_result else None
        outcome = (
            f"  loss {loss:.4f}"
            if loss
            else f"  {trial.last_result.get('error', '')}"
            if trial.last_result
            else ""
        )
        self.tell([f"{status} {progress.label}{outcome.rstrip()}"])


def _label_run(run: RunDescription) -> str:
    """Name a run by what usually varies."""
    columns = [*name_columns(), *["num_workers"] * (run.num_workers > 1)]
    values = {column: getattr(run, column) for column in columns}
    return ", ".join(
        f"{head_of(column)} {value if isinstance(value, str) else f'{value:,}'}"
        for column, value in values.items()
    )
