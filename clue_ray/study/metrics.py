"""Prometheus metrics of a study, through Ray: each node's metrics port exports them.

Ray adds `ray_` to the names, and `_total` to those of counters. `cluster/grafana.json` shows them.
"""

from typing import Any, NamedTuple

from ray.util.metrics import Counter, Gauge


class Metric(NamedTuple):
    """One metric.

    Attributes:
        kind: A value that moves (`Gauge`), or a sum that only grows (`Counter`).
        help: What Prometheus says about it.
        tags: Labels next to `study`.
    """

    kind: type[Gauge] | type[Counter]
    help: str
    tags: tuple[str, ...] = ()

    def exported(self, name: str) -> str:
        """Return the name under which Ray exports the metric."""
        return f"ray_{name}_total" if self.kind is Counter else f"ray_{name}"


METRICS = {
    "clue_ray_runs_planned": Metric(Gauge, "Runs of the study."),
    "clue_ray_runs_pending": Metric(Gauge, "Runs that the command still has to train."),
    "clue_ray_runs_ended": Metric(Counter, "Runs that ended, by status.", ("status",)),
    "clue_ray_restarts": Metric(Counter, "Restarts of runs after a lost process."),
    "clue_ray_seconds_lost": Metric(
        Counter, "Seconds in which restarted runs waited or repeated work."
    ),
    "clue_ray_loss": Metric(Gauge, "Held-out loss of a run, in nats.", ("run_id",)),
    "clue_ray_tokens_per_second": Metric(
        Gauge, "Training tokens per second of a run; 0 once it ended.", ("run_id",)
    ),
}


class StudyMetrics:
    """The metrics of one study, in the process that drives it."""

    def __init__(self, study: str):
        self.metrics: dict[str, Any] = {}
        for name, metric in METRICS.items():
            made = metric.kind(name, metric.help, tag_keys=("study", *metric.tags))
            made.set_default_tags({"study": study})
            self.metrics[name] = made

    def set(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge."""
        self.metrics[name].set(value, tags=tags)

    def add(self, name: str, value: float = 1.0, **tags: str) -> None:
        """Add to a counter; it refuses 0, which changes nothing."""
        if value > 0:
            self.metrics[name].inc(value, tags=tags)
