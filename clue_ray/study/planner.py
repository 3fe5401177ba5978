"""Plan a study: count the tokens, FLOPs and expected time of every run before anything trains."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from clue_ray.cluster.placement import Node, count_workers, multi_worker_concurrency
from clue_ray.corpus.store import Corpus
from clue_ray.spec.compute import forward_flops, train_flops
from clue_ray.spec.grid import Point, count_points, expand
from clue_ray.spec.specs import RunSpec, StudySpec
from clue_ray.study.checks import check_corpus
from clue_ray.study.costs import Rates, Workload
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.planned import Plan, PlannedRun, chosen_resources
from clue_ray.study.warnings import find_notes, find_warnings
from clue_ray.training.checkpoints import KEPT
from clue_ray.training.counters import describe_run

INLINE_STARTUP_SECONDS = 1.0
"""Start of a one-worker run in a reused Tune actor."""
RAY_TRAIN_STARTUP_SECONDS = 20.0
"""Start of the workers of a multi-worker run through Ray Train."""
STATE_BYTES = 12
"""A checkpoint per parameter: the weights and Adam's two moments in float32."""
ENCODER_BYTES = 4
"""The encoder that a finished run exports, per parameter."""


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
    """Plan a study on a prepared corpus.

    Args:
        nodes: The resources of each node of the cluster, which limit the concurrent runs.
        added: Points beyond the study's grids.
        retry_failed: Whether runs that failed before are trained again.
        timed: Returns how fast runs train. It is called with the runs that are pending, or that no
            earlier plan has timed.

    Raises:
        ClueRayError: The corpus cannot train or evaluate a run.
    """
    runs, workload = expand(study, added), Workload(corpus)
    check_corpus(study, runs, workload)
    planned = [
        replace(_plan_run(run, workload, study, directory), retry=retry_failed) for run in runs
    ]
    planned = _with_times(planned, workload, study, directory.planned_seconds(), timed, nodes)
    pending = [run for run in planned if not run.finished]
    workers = max((run.workers for run in pending), default=1)
    fitting = count_workers(chosen_resources(study.resources, pending), nodes)
    multi_worker_runs = multi_worker_concurrency(workers, fitting, nodes)
    asked = study.resources.concurrency
    concurrency = max(1, fitting) if asked == "auto" else asked
    return Plan(
        study=study.name,
        runs=planned,
        concurrency=concurrency,
        multi_worker_runs=multi_worker_runs if asked == "auto" else min(asked, multi_worker_runs),
        disk_bytes=_disk_bytes([run.description.total_params for run in pending], concurrency),
        warnings=[*_no_room(fitting, study), *find_warnings(planned, corpus, study)],
        notes=[
            *find_notes(planned, count_points(study) + len(added), directory),
            *_find_streamed(pending, study),
        ],
    )


def _disk_bytes(params: list[int], concurrency: int) -> int:
    """Return the bytes that runs leave; runs that train write a state before an old one goes."""
    kept = (STATE_BYTES * KEPT + ENCODER_BYTES) * sum(params)
    return kept + STATE_BYTES * sum(sorted(params)[-concurrency:])


def _no_room(fitting: int, study: StudySpec) -> list[str]:
    """Warn where no node could train a run, so that times assume one run at a time."""
    if fitting:
        return []
    need = f"{study.resources.cpus_per_worker} CPU and {study.resources.gpus_per_worker:g} GPU"
    return [
        f"no node here has the {need} that a worker needs: minutes are those of one run at a "
        f"time; --address plans for a cluster."
    ]


def _plan_run(
    run: RunSpec, workload: Workload, study: StudySpec, directory: StudyDirectory
) -> PlannedRun:
    """Plan one run from its spec and the corpus; its time is not known yet."""
    description = describe_run(run, workload.corpus, study.evaluation, study.name)
    steps, step = workload.steps(run), workload.step(run)
    record = directory.read_record(description.run_id)
    return PlannedRun(
        run=run,
        description=description,
        steps=steps,
        train_tokens=step.required.tokens * steps,
        train_flops=float(train_flops(run.encoder, step.required) * steps),
        expected_seconds=0.0,
        status=record.status if record else "missing",
    )


def _choose_feed(planned: PlannedRun, rates: Rates, nodes: list[Node]) -> PlannedRun:
    """Choose who packs a run's batches: Ray Data if the GPU would wait, and cores are free for it.

    On CPUs packing and training share the cores, so others would have to be free. They must be free
    for as many runs at a time as the study file says.
    """
    run = planned.run
    resources, rate = run.resources, rates.get(run.encoder.model_dump_json())
    if resources.feed != "auto":
        return planned
    packed = rate.packing_on(resources.workers) if rate and resources.gpus_per_worker else 0.0
    streamed, here = (
        resources.model_copy(update={"feed": feed}) for feed in ("ray_data", "worker")
    )
    asked = resources.concurrency if planned.workers == 1 else "auto"  # else as many as fit
    needed = planned.workers if asked == "auto" else asked
    chosen = streamed if packed > 1 and count_workers(streamed, nodes) >= needed else here
    return replace(planned, run=run.model_copy(update={"resources": chosen}))


def _find_streamed(pending: list[PlannedRun], study: StudySpec) -> list[str]:
    """Say which runs Ray Data feeds though the study file does not ask for it."""
    streamed = sum(r.run.resources.feed == "ray_data" for r in pending)
    if not streamed or study.resources.feed == "ray_data":
        return []
    return [
        f"{streamed} of {len(pending)} pending runs are fed by Ray Data: packing a batch takes "
        f"longer than its step (resources.feed: worker packs in the workers)."
    ]


def _with_times(
    planned: list[PlannedRun],
    workload: Workload,
    study: StudySpec,
    earlier: dict[str, float],
    timed: Callable[[list[RunSpec]], Rates],
    nodes: list[Node],
) -> list[PlannedRun]:
    """Add the expected seconds of each run, and choose who packs its batches.

    A finished run keeps the seconds that were expected before it was trained, so that the report
    can compare them with the measured ones.
    """
    kept = {r.run_id: earlier[r.run_id] for r in planned if r.finished and r.run_id in earlier}
    untimed = [r for r in planned if r.run_id not in kept]
    rates = timed([r.run for r in untimed]) if untimed else {}
    planned = [_choose_feed(r, rates, nodes) for r in planned]
    expected = {r.run_id: _seconds_of(r, workload, study, rates) for r in untimed} | kept
    return [replace(r, expected_seconds=expected[r.run_id]) for r in planned]


def _seconds_of(planned: PlannedRun, workload: Workload, study: StudySpec, rates: Rates) -> float:
    """Estimate the seconds of a run: its start, its steps and its evaluations."""
    run = planned.run
    rate = rates[run.encoder.model_dump_json()]
    per_flop = rate.per_flop
    step_seconds = rate.per_step + per_flop * train_flops(run.encoder, workload.step(run).executed)
    evaluations = -(-1 // study.evaluation.every)  # `every` is a share of the steps; rounded up
    evaluated = workload.evaluation(run.sequence_length, study.evaluation.candidates)
    evaluation_flops = forward_flops(run.encoder, evaluated)
    evaluation_seconds = evaluations * per_flop * evaluation_flops
    startup = INLINE_STARTUP_SECONDS if planned.workers == 1 else RAY_TRAIN_STARTUP_SECONDS
    return planned.steps * step_seconds / planned.workers + evaluation_seconds + startup
