"""What a study will do, as data: one `PlannedRun` per run, and the `Plan` of all of them.

The planner builds a plan, the terminal prints it, plan.json stores it, and Ray Tune trains what is
pending in it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from clue_ray.cluster.placement import makespan
from clue_ray.runs import RunDescription
from clue_ray.spec.specs import ResourcesSpec, RunSpec


@dataclass(frozen=True)
class PlannedRun:
    """One run before it starts.

    Attributes:
        description: The columns of the runs table that are known before training.
        train_tokens: Expected tokens over all steps.
        train_flops: Expected training compute, FLOP.
        status: Status in the record that an earlier command left, else `missing`.
        retry: Whether a run that failed before is trained again.
    """

    run: RunSpec
    description: RunDescription
    steps: int
    train_tokens: int
    train_flops: float
    expected_seconds: float
    status: str = "missing"
    retry: bool = False

    @property
    def run_id(self) -> str:
        """The run's identity, a hash of its spec and corpus."""
        return self.description.run_id

    @property
    def finished(self) -> bool:
        """Whether the run needs no more training: done, diverged, or failed without a retry."""
        return self.status in {"done", "diverged"} or (self.status == "failed" and not self.retry)

    @property
    def workers(self) -> int:
        """Number of processes that train the run together."""
        return self.run.resources.workers


@dataclass(frozen=True)
class Plan:
    """What a study will do here.

    Attributes:
        concurrency: Number of one-worker runs that train concurrently.
        disk_bytes: Expected size of the checkpoints and encoders of all pending runs.
        warnings: What would weaken the study's answer, one sentence each.
        notes: What earlier commands left and how much of it counts, one sentence each.
        multi_worker_runs: Number of multi-worker runs that train concurrently.
    """

    study: str
    runs: list[PlannedRun]
    concurrency: int
    disk_bytes: int
    warnings: list[str]
    notes: list[str] = field(default_factory=list)
    multi_worker_runs: int = 1

    @property
    def pending(self) -> list[PlannedRun]:
        """Runs still to train, the longest first."""
        return sorted((r for r in self.runs if not r.finished), key=lambda r: -r.expected_seconds)

    @property
    def expected_minutes(self) -> float:
        """Expected wall-clock minutes of all pending runs."""
        several = [r.expected_seconds for r in self.pending if r.workers > 1]
        single = [r.expected_seconds for r in self.pending if r.workers == 1]
        # Multi-worker runs go first, and one-worker runs start when the last of them has ended.
        seconds = makespan(several, self.multi_worker_runs) + makespan(single, self.concurrency)
        return seconds / 60

    @property
    def gpu_hours(self) -> float:
        """Expected GPU-hours of all pending runs."""
        return sum(_worker_hours(r) * r.run.resources.gpus_per_worker for r in self.pending)

    @property
    def core_hours(self) -> float:
        """Expected core-hours of all pending runs."""
        return sum(_worker_hours(r) * r.run.resources.cpus_per_worker for r in self.pending)

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of plan.json."""
        return {
            "study": self.study,
            "concurrency": self.concurrency,
            "gangs": self.multi_worker_runs,  # its name in plan.json, which readers know
            "expected_minutes": self.expected_minutes,
            "gpu_hours": self.gpu_hours,
            "core_hours": self.core_hours,
            "disk_bytes": self.disk_bytes,
            "notes": self.notes,
            "warnings": self.warnings,
            "runs": [_run_to_dict(run) for run in self.runs],
        }


def chosen_resources(resources: ResourcesSpec, pending: Iterable[PlannedRun]) -> ResourcesSpec:
    """Return a study's resources with the feed that was chosen: Ray Data if it feeds any run."""
    streamed = any(planned.run.resources.feed == "ray_data" for planned in pending)
    return resources.model_copy(update={"feed": "ray_data" if streamed else "worker"})


def _worker_hours(planned: PlannedRun) -> float:
    """Return the expected hours of a run, summed over its workers."""
    return planned.expected_seconds * planned.workers / 3600


def _run_to_dict(planned: PlannedRun) -> dict[str, Any]:
    """Return one entry of plan.json's `runs`."""
    facts = ("steps", "train_tokens", "train_flops", "expected_seconds", "finished")
    return {**planned.description.model_dump(), **{fact: getattr(planned, fact) for fact in facts}}
