"""What happens to the runs of a study, from Ray Tune's callbacks to the event log and metrics."""

import time
from typing import Any, NamedTuple

from ray import tune

from clue_ray.study.events import EventLog
from clue_ray.study.metrics import StudyMetrics
from clue_ray.study.planned import Plan
from clue_ray.training.ray_train import LOST, WAITING


class Mark(NamedTuple):
    """A run at its last report.

    Attributes:
        at: Time of the report on the monotonic clock, seconds.
        trained: Seconds of training that count so far; they fall when a run resumes.
    """

    at: float
    trained: float


class RunObserver(tune.Callback):
    """Logs what starts, ends, dies and is tried again, and keeps the metrics.

    Seconds lost by a restart are those between the last report before it and the first one after
    it, less the growth of the training time: waiting, and work that was done twice.
    """

    def __init__(self, plan: Plan, log: EventLog, metrics: StudyMetrics):
        self.log, self.metrics = log, metrics
        self.pending = len(plan.pending)
        self.marks: dict[str, Mark] = {}
        self.restarted: dict[str, int] = {}
        self.resuming: set[str] = set()
        metrics.set("clue_ray_runs_planned", len(plan.runs))
        metrics.set("clue_ray_runs_pending", self.pending)

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: a restored experiment is read and not continued."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Log the first start of a run; `on_trial_recover` logs the others."""
        run_id = _run_id(trial)
        if run_id not in self.marks:
            self.marks[run_id] = Mark(time.monotonic(), 0.0)
            workers = trial.config["run"]["spec"]["resources"]["workers"]
            self.log.add("run_started", run_id=run_id, workers=workers)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Log that a run's process died and starts again."""
        self._restart(_run_id(trial), _reason(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """Log lost workers and the end of a restart; update the metrics of the run."""
        run_id = _run_id(trial)
        if reason := result.get(LOST):
            self._restart(run_id, reason)
        elif reason := result.get(WAITING):
            self.log.add("run_waiting", run_id=run_id, reason=reason)
        elif (trained := result.get("trained_seconds")) is not None:
            now = Mark(time.monotonic(), trained)
            if run_id in self.resuming:
                self._resume(run_id, result["step"], now)
            self.marks[run_id] = now
            self._show(run_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Log how a run ended."""
        last = trial.last_result or {}
        facts = {name: last[name] for name in ("error", "loss") if last.get(name)}
        self._end(_run_id(trial), str(last.get("status", "stopped")), facts)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Log that a run was given up."""
        self._end(_run_id(trial), "failed", {"error": _reason(trial)})

    def _restart(self, run_id: str, reason: str) -> None:
        self.restarted[run_id] = self.restarted.get(run_id, 0) + 1
        self.resuming.add(run_id)
        self.metrics.add("clue_ray_restarts")
        self.log.add("run_restarted", run_id=run_id, restarts=self.restarted[run_id], reason=reason)

    def _resume(self, run_id: str, step: int, now: Mark) -> None:
        """Log the first report after a restart, and the seconds that the restart cost."""
        self.resuming.discard(run_id)
        before = self.marks[run_id]
        lost = max(0.0, now.at - before.at - (now.trained - before.trained))
        self.metrics.add("clue_ray_seconds_lost", lost)
        self.log.add("run_resumed", run_id=run_id, step=step, seconds_lost=round(lost, 3))

    def _show(self, run_id: str, result: dict[str, Any]) -> None:
        """Set the gauges of a run."""
        self.metrics.set("clue_ray_tokens_per_second", result["tokens_per_second"], run_id=run_id)
        if result.get("loss") is not None:
            self.metrics.set("clue_ray_loss", result["loss"], run_id=run_id)

    def _end(self, run_id: str, status: str, facts: dict[str, Any]) -> None:
        restarts = self.restarted.get(run_id, 0)
        self.log.add("run_ended", run_id=run_id, status=status, restarts=restarts, **facts)
        self.pending -= 1
        self.metrics.set("clue_ray_runs_pending", self.pending)
        self.metrics.add("clue_ray_runs_ended", status=status)
        self.metrics.set("clue_ray_tokens_per_second", 0.0, run_id=run_id)


def _run_id(trial: Any) -> str:
    return str(trial.config["run"]["run_id"])


def _reason(trial: Any) -> str:
    """Return the last error of a trial in one line."""
    lines = [line.strip() for line in str(trial.get_error() or "").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "its process was lost"
