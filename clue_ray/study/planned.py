from dataclasses import dataclass, field
from typing import Any

from clue_ray.cluster.placement import makespan
from clue_ray.runs import RunDescription
from clue_ray.spec.specs import RunSpec


@dataclass(frozen=True)
class PlannedRun:
    """One run before it starts."""

    run: RunSpec
    description: RunDescription
    steps: int
    train_tokens: int
    train_flops: float
    expected_seconds: float
    status: str = "missing"
    "of the record that an earlier command left"
    retry: bool = False
    "a run that failed before is to be trained again"

    @property
    def run_id(self) -> str:
        """The run's identity."""
        return self.description.run_id

    @property
    def finished(self) -> bool:
        """Tell whether it needs no more training: done, diverged, or failed and not to be
        retried.
        """
        return self.status in {"done", "diverged"} or (self.status == "failed" and not self.retry)

    @property
    def workers(self) -> int:
        """Processes that train it together."""
        return self.run.resources.workers


@dataclass(frozen=True)
class Plan:
    """What a study will do here."""

    study: str
    runs: list[PlannedRun]
    concurrency: int
    "runs of one worker at a time"
    disk_bytes: int
    warnings: list[str]
    notes: list[str] = field(default_factory=list)
    "what earlier commands left, and what of it counts"
    gangs: int = 1
    "runs of several workers at a time"

    @property
    def pending(self) -> list[PlannedRun]:
        """Runs still to train, the longest first."""
        return sorted((r for r in self.runs if not r.finished), key=lambda r: -r.expected_seconds)

    def lanes(self, several: bool) -> int:
        """Runs at a time, of several workers or of one."""
        return self.gangs if several else self.concurrency

    @property
    def expected_minutes(self) -> float:
        """Wall minutes of what is pending: runs of several workers, then those of one, the longest
        first.
        """
        minutes = 0.0
        for several in (True, False):
            seconds = [r.expected_seconds for r in self.pending if (r.workers > 1) == several]
            minutes += makespan(seconds, self.lanes(several)) / 60
        return minutes

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of what is pending."""
        return (
            sum(
                r.expected_seconds * r.workers * r.run.resources.gpus_per_worker
                for r in self.pending
            )
            / 3600
        )

    @property
    def core_hours(self) -> float:
        """Core-hours of what is pending."""
        return (
            sum(
                r.expected_seconds * r.workers * r.run.resources.cpus_per_worker
                for r in self.pending
            )
            / 3600
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what plan.json holds."""
        facts = ("steps", "train_tokens", "train_flops", "expected_seconds", "finished")
        runs = [
            {**r.description.model_dump(), **{fact: getattr(r, fact) for fact in facts}}
            for r in self.runs
        ]
        totals = (
            "study",
            "concurrency",
            "gangs",
            "expected_minutes",
            "gpu_hours",
            "core_hours",
            "disk_bytes",
        )
        return {**{key: getattr(self, key) for key in (*totals, "notes", "warnings")}, "runs": runs}
