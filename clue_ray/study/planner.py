"""A dry run: every run of a study with its parameters, tokens, FLOPs and expected time, before
anything starts.

Arithmetic before anything starts: does the study fit the cluster and the disk?
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from clue_ray.cluster.placement import Node, count_workers, largest, multi_worker_concurrency, total
from clue_ray.corpus.logs.reading import plan_reading
from clue_ray.corpus.store import Corpus
from clue_ray.errors import ClusterError, SpecError, StudyError
from clue_ray.scaling.laws.catalogue import find_law
from clue_ray.spec.compute import forward_flops, train_flops
from clue_ray.spec.grid import MOST_POINTS, Point, check_size, count_points, expand
from clue_ray.spec.specs import CorpusSpec, ResourcesSpec, RunSpec, StudySpec
from clue_ray.storage.place import is_uri, resolve_place
from clue_ray.study.costs import Rates, Workload
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.planned import Plan, PlannedRun
from clue_ray.study.warnings import find_notes, find_warnings
from clue_ray.training.checkpoints import KEPT
from clue_ray.training.counters import describe_run
from clue_ray.training.evaluate import make_pools

STARTUP_SECONDS = {True: 1.0, False: 20.0}
"""Start of a run in a reused actor, and through Ray Train."""
BYTES_PER_PARAM = 12 * KEPT
"""The weights and two moments in float32 of each checkpoint that is kept."""


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
        timed: tells how fast runs train; asked for those that an earlier plan has not timed, or
            that are to train.
    """
    runs = expand(study, added)
    make_pools(corpus, study.evaluation.candidates)
    workload = Workload(corpus)
    for run in runs:
        check_run(run, workload)
    planned = [
        replace(_plan_run(run, workload, study, directory), retry=retry_failed) for run in runs
    ]
    planned = _with_times(planned, workload, study, directory.planned_seconds(), timed)
    slots = count_workers(study.resources, nodes)
    workers = max((r.workers for r in planned if not r.finished), default=1)
    asked = study.resources.concurrency
    gangs = multi_worker_concurrency(workers, slots, nodes)
    return Plan(
        study=study.name,
        runs=planned,
        concurrency=max(1, slots) if asked == "auto" else asked,
        disk_bytes=sum(
            BYTES_PER_PARAM * r.description.total_params for r in planned if not r.finished
        ),
        warnings=[*_no_room(slots, study), *find_warnings(planned, corpus, study)],
        notes=find_notes(planned, count_points(study) + len(added), directory),
        gangs=gangs if asked == "auto" else min(asked, gangs),
    )


def check_study(study: StudySpec, most: int | None = MOST_POINTS) -> None:
    """Refuse what can be known to fail from the study file and the log's columns alone, before
    anything starts.

    Args:
        most: runs that the axes may multiply to; None for any number.
    """
    for law in study.fit.laws:
        find_law(law)
    check_size(study, most)
    share = study.resources.gpus_per_worker
    if share > 1 and share % 1:
        raise SpecError(
            f"resources.gpus_per_worker is {share:g}; give a share of one GPU, or whole GPUs."
        )
    for run in expand(study):
        check_batch(run)
    if isinstance(study.corpus, CorpusSpec):
        plan_reading(study.corpus)


def check_batch(run: RunSpec) -> None:
    """Refuse a batch that its workers cannot share, or that its horizon does not fill once."""
    batch, users = run.train.global_batch_size, run.train.users_seen
    workers = run.resources.workers
    if workers > batch:
        raise SpecError(
            f"{workers} workers are more than the {batch} users of global_batch_size; use at most "
            f"{batch}."
        )
    if batch % workers:
        raise SpecError(
            f"global_batch_size {batch} does not divide over {workers} workers; use a multiple."
        )
    if users is not None and users < batch:
        raise SpecError(
            f"train.users_seen {users:,} is less than one batch of {batch:,} users; raise it, or "
            f"use a smaller batch."
        )


def check_run(run: RunSpec, workload: Workload) -> None:
    """Refuse a run whose data do not fit, or whose budget does not pay for one step."""
    most = len(workload.corpus.train_users)
    if run.corpus_users is not None and run.corpus_users > most:
        raise SpecError(
            f"corpus_users {run.corpus_users} is more than the {most} training users of the "
            f"corpus; "
            "use fewer, or leave it out for all."
        )
    budget, step = run.train.train_flops, train_flops(run.encoder, workload.step(run).asked)
    if budget is not None and budget < step:
        raise SpecError(
            f"train.train_flops {budget:.3g} is less than one step of encoder {run.encoder.size}, "
            f"width "
            f"{run.encoder.width}, at batch {run.train.global_batch_size:,} and "
            f"{run.sequence_length} events "
            f"({step:.3g} FLOP); raise it, or use a smaller encoder, batch or history."
        )


def _no_room(slots: int, study: StudySpec) -> list[str]:
    """Say that the nodes at hand could not train a run, so that times are those of one run at a
    time.
    """
    if slots:
        return []
    need = f"{study.resources.cpus_per_worker} CPU and {study.resources.gpus_per_worker:g} GPU"
    return [
        f"no node here has the {need} that a worker asks for: minutes are those of one run at a "
        f"time; --address "
        "plans for a cluster."
    ]


def _plan_run(
    run: RunSpec, workload: Workload, study: StudySpec, directory: StudyDirectory
) -> PlannedRun:
    """Plan one run from its spec and the corpus alone, its time not yet known."""
    description = describe_run(run, workload.corpus, study.evaluation, study.name)
    steps, step = workload.steps(run), workload.step(run)
    record = directory.read_record(description.run_id)
    return PlannedRun(
        run=run,
        description=description,
        steps=steps,
        train_tokens=step.asked.tokens * steps,
        train_flops=float(train_flops(run.encoder, step.asked) * steps),
        expected_seconds=0.0,
        status=record.status if record else "missing",
    )


def _with_times(
    planned: list[PlannedRun],
    workload: Workload,
    study: StudySpec,
    earlier: dict[str, float],
    timed: Callable[[list[RunSpec]], Rates],
) -> list[PlannedRun]:
    """Add the seconds that runs are expected to take; of a finished run, what was expected before
    it was trained.
    """
    known = {r.run_id: earlier[r.run_id] for r in planned if r.finished and r.run_id in earlier}
    untimed = [r.run for r in planned if r.run_id not in known]
    rates = timed(untimed) if untimed else {}
    expected = {
        r.run_id: _seconds_of(r, workload, study, rates) for r in planned if r.run_id not in known
    } | known
    return [replace(r, expected_seconds=expected[r.run_id]) for r in planned]


def _seconds_of(planned: PlannedRun, workload: Workload, study: StudySpec, rates: Rates) -> float:
    """Expect the seconds of a run: its start, its steps, its evaluations."""
    run = planned.run
    per_step, per_flop = rates[run.encoder.model_dump_json()]
    step_seconds = per_step + per_flop * train_flops(run.encoder, workload.step(run).executed)
    evaluations = -(-1 // study.evaluation.every)
    score_seconds = (
        evaluations
        * per_flop
        * forward_flops(run.encoder, workload.evaluation(run.sequence_length))
    )
    return (
        planned.steps * step_seconds / planned.workers
        + score_seconds
        + STARTUP_SECONDS[planned.workers == 1]
    )


SPARE_BYTES = 256 * 2**20
"""Room for Ray's logs, Tune's tables and the report."""


def check_cluster(plan: Plan, study: StudySpec, nodes: list[Node]) -> None:
    """Refuse a study that asks for more cores, GPUs or trial slots than the cluster, or any one
    node, holds.
    """
    if not plan.pending:
        return
    workers = max(r.workers for r in plan.pending)
    per_worker = study.resources
    need = {
        "CPU": float(max(workers, plan.concurrency) * per_worker.cpus_per_worker),
        "GPU": max(workers, plan.concurrency) * per_worker.gpus_per_worker,
        "trial_slot": float(plan.gangs) if workers > 1 else 0.0,
    }
    for resource, amount in need.items():
        if amount > total(nodes, resource):
            asked = f"{workers} workers or {plan.concurrency} runs at a time"
            raise ClusterError(
                f"The study needs {amount:g} {resource} ({asked}), but the cluster has "
                f"{total(nodes, resource):g}; "
                "lower resources, or start Ray with more (trial slots: "
                "--resources='{\"trial_slot\": 64}' on the head)."
            )
    check_nodes(max(workers, plan.concurrency), per_worker, nodes)


def check_nodes(workers: int, resources: ResourcesSpec, nodes: list[Node]) -> None:
    """Refuse workers that the cluster as a whole could hold but its nodes, one by one, cannot."""
    slots = count_workers(resources, nodes)
    if workers > slots:
        raise ClusterError(
            f"{workers} workers of {resources.cpus_per_worker} CPU and "
            f"{resources.gpus_per_worker:g} GPU are asked for "
            f"at a time, but the cluster's {len(nodes)} nodes (at most {largest(nodes, 'CPU'):g} "
            f"CPU and "
            f"{largest(nodes, 'GPU'):g} GPU each) hold {slots}; a worker runs on one node, so "
            f"lower resources."
        )


def check_disk(plan: Plan, output: Path, checkpoints: str) -> None:
    """Refuse to start when tables and logs, or checkpoints in their folder, would fill the disk."""
    needs = {str(output): SPARE_BYTES}
    if not is_uri(checkpoints):
        needs[resolve_place(checkpoints)] = plan.disk_bytes + SPARE_BYTES
    for folder, need in needs.items():
        Path(folder).mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < need:
            raise StudyError(
                f"No free disk at {folder}: {free:,} bytes free, about {need:,} needed; free some "
                f"space."
            )
