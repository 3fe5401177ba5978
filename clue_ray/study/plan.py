"""A dry run: every run of a study with its parameters, tokens, FLOPs and expected time, before anything starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clue_ray.corpus.logs.reading import plan_reading
from clue_ray.corpus.store import Corpus
from clue_ray.errors import SpecError
from clue_ray.scaling.laws import find_law
from clue_ray.spec.compute import forward_flops, train_flops
from clue_ray.spec.grid import MOST_POINTS, Point, check_size, count_points, expand
from clue_ray.spec.specs import CorpusSpec, RunSpec, StudySpec
from clue_ray.study.calibrate import Rates
from clue_ray.study.design import find_notes, find_warnings
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.placement import Node, gangs_at_once, makespan, worker_slots
from clue_ray.study.workload import Workload
from clue_ray.training.checkpoints import KEPT
from clue_ray.training.counters import describe_run
from clue_ray.training.evaluate import make_pools

STARTUP_SECONDS = {True: 1.0, False: 20.0}
"""Start of a run in a reused actor, and through Ray Train."""
BYTES_PER_PARAM = 12 * KEPT
"""The weights and two moments in float32 of each checkpoint that is kept."""


@dataclass(frozen=True)
class PlannedRun:
    """One run before it starts."""

    run: RunSpec
    known: dict[str, Any]
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
        return str(self.known["run_id"])

    @property
    def finished(self) -> bool:
        """Tell whether it needs no more training: done, diverged, or failed and not to be retried."""
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
        """Wall minutes of what is pending: runs of several workers, then those of one, the longest first."""
        minutes = 0.0
        for several in (True, False):
            seconds = [r.expected_seconds for r in self.pending if (r.workers > 1) == several]
            minutes += makespan(seconds, self.lanes(several)) / 60
        return minutes

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of what is pending."""
        return sum(r.expected_seconds * r.workers * r.run.resources.gpus_per_worker for r in self.pending) / 3600

    @property
    def core_hours(self) -> float:
        """Core-hours of what is pending."""
        return sum(r.expected_seconds * r.workers * r.run.resources.cpus_per_worker for r in self.pending) / 3600

    def to_dict(self) -> dict[str, Any]:
        """Return what plan.json holds."""
        facts = ("steps", "train_tokens", "train_flops", "expected_seconds", "finished")
        runs = [{**r.known, **{fact: getattr(r, fact) for fact in facts}} for r in self.runs]
        totals = ("study", "concurrency", "gangs", "expected_minutes", "gpu_hours", "core_hours", "disk_bytes")
        return {**{key: getattr(self, key) for key in (*totals, "notes", "warnings")}, "runs": runs}


def plan_runs(
    study: StudySpec,
    corpus: Corpus,
    directory: StudyDirectory,
    nodes: list[Node],
    *,
    added: Sequence[Point] = (),
    retry_failed: bool = False,
    timed: Callable[[list[RunSpec]], Rates],
) -> Plan:
    """Plan a study on a prepared corpus; refuse what cannot train or be scored.

    Args:
        nodes: what each node of the cluster offers, for the runs at a time.
        added: points beyond the study's grids.
        retry_failed: whether runs that failed before are to be trained again.
        timed: tells how fast runs train; asked for those that an earlier plan has not timed, or that are to train.
    """
    runs = expand(study, added)
    make_pools(corpus, study.evaluation.candidates)
    workload = Workload(corpus)
    for run in runs:
        check_run(run, workload)
    planned = [replace(plan_run(run, workload, study, directory), retry=retry_failed) for run in runs]
    planned = with_times(planned, workload, study, directory.planned_seconds(), timed)
    slots = worker_slots(study.resources, nodes)
    workers = max((r.workers for r in planned if not r.finished), default=1)
    asked = study.resources.concurrency
    gangs = gangs_at_once(workers, slots, nodes)
    return Plan(
        study=study.name,
        runs=planned,
        concurrency=max(1, slots) if asked == "auto" else asked,
        disk_bytes=sum(BYTES_PER_PARAM * r.known["total_params"] for r in planned if not r.finished),
        warnings=[*no_room(slots, study), *find_warnings(planned, corpus, study)],
        notes=find_notes(planned, count_points(study) + len(added), directory),
        gangs=gangs if asked == "auto" else min(asked, gangs),
    )


def check_study(study: StudySpec, most: int | None = MOST_POINTS) -> None:
    """Refuse what can be known to fail from the study file and the log's columns alone, before anything starts.

    Args:
        most: runs that the axes may multiply to; None for any number.
    """
    for law in study.fit.laws:
        find_law(law)
    check_size(study, most)
    share = study.resources.gpus_per_worker
    if share > 1 and share % 1:
        raise SpecError(f"resources.gpus_per_worker is {share:g}; give a share of one GPU, or whole GPUs.")
    for run in expand(study):
        check_batch(run)
    if isinstance(study.corpus, CorpusSpec):
        plan_reading(study.corpus)


def check_batch(run: RunSpec) -> None:
    """Refuse a batch that its workers cannot share, or that its horizon does not fill once."""
    batch, users = run.train.global_batch_size, run.train.users_seen
    workers = run.resources.workers
    if workers > batch:
        raise SpecError(f"{workers} workers are more than the {batch} users of global_batch_size; use at most {batch}.")
    if batch % workers:
        raise SpecError(f"global_batch_size {batch} does not divide over {workers} workers; use a multiple.")
    if users is not None and users < batch:
        raise SpecError(
            f"train.users_seen {users:,} is less than one batch of {batch:,} users; raise it, or use a smaller batch."
        )


def check_run(run: RunSpec, workload: Workload) -> None:
    """Refuse a run whose data do not fit, or whose budget does not pay for one step."""
    most = len(workload.corpus.train_users)
    if run.corpus_users is not None and run.corpus_users > most:
        raise SpecError(
            f"corpus_users {run.corpus_users} is more than the {most} training users of the corpus; "
            "use fewer, or leave it out for all."
        )
    budget, step = run.train.train_flops, train_flops(run.encoder, workload.step(run).asked)
    if budget is not None and budget < step:
        raise SpecError(
            f"train.train_flops {budget:.3g} is less than one step of encoder {run.encoder.size}, width "
            f"{run.encoder.width}, at batch {run.train.global_batch_size:,} and {run.sequence_length} events "
            f"({step:.3g} FLOP); raise it, or use a smaller encoder, batch or history."
        )


def no_room(slots: int, study: StudySpec) -> list[str]:
    """Say that the nodes at hand could not train a run, so that times are those of one run at a time."""
    if slots:
        return []
    need = f"{study.resources.cpus_per_worker} CPU and {study.resources.gpus_per_worker:g} GPU"
    return [
        f"no node here has the {need} that a worker asks for: minutes are those of one run at a time; --address "
        "plans for a cluster."
    ]


def plan_run(run: RunSpec, workload: Workload, study: StudySpec, directory: StudyDirectory) -> PlannedRun:
    """Plan one run from its spec and the corpus alone, its time not yet known."""
    known = describe_run(run, workload.corpus, study.evaluation, study.name)
    steps, step = workload.steps(run), workload.step(run)
    record = directory.read_record(str(known["run_id"]))
    return PlannedRun(
        run=run,
        known=known,
        steps=steps,
        train_tokens=step.asked.tokens * steps,
        train_flops=float(train_flops(run.encoder, step.asked) * steps),
        expected_seconds=0.0,
        status=record.status if record else "missing",
    )


def with_times(
    planned: list[PlannedRun],
    workload: Workload,
    study: StudySpec,
    earlier: dict[str, float],
    timed: Callable[[list[RunSpec]], Rates],
) -> list[PlannedRun]:
    """Add the seconds that runs are expected to take; of a finished run, what was expected before it was trained."""
    known = {r.run_id: earlier[r.run_id] for r in planned if r.finished and r.run_id in earlier}
    untimed = [r.run for r in planned if r.run_id not in known]
    rates = timed(untimed) if untimed else {}
    expected = {r.run_id: seconds_of(r, workload, study, rates) for r in planned if r.run_id not in known} | known
    return [replace(r, expected_seconds=expected[r.run_id]) for r in planned]


def seconds_of(planned: PlannedRun, workload: Workload, study: StudySpec, rates: Rates) -> float:
    """Expect the seconds of a run: its start, its steps, its evaluations."""
    run = planned.run
    per_step, per_flop = rates[run.encoder.model_dump_json()]
    step_seconds = per_step + per_flop * train_flops(run.encoder, workload.step(run).executed)
    evaluations = -(-1 // study.evaluation.every)
    score_seconds = evaluations * per_flop * forward_flops(run.encoder, workload.evaluation(run.sequence_length))
    return planned.steps * step_seconds / planned.workers + score_seconds + STARTUP_SECONDS[planned.workers == 1]
