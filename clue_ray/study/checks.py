"""Every reason to refuse a study, in the order in which they are checked.

The checks form four stages, because each stage needs what the one before it has opened:

1. `check_study`: the study file alone, and the columns of its log. Nothing has been opened.
2. `probes.check_storage`: the places that the nodes must see and write to. Ray is connected; the
   corpus is not prepared yet, which can take hours.
3. `check_corpus`: the runs against the prepared corpus.
4. `check_resources`: the plan against the nodes, the disk and the checkpoints that exist.

Each stage raises the first mistake that it finds, so a file with three mistakes reports only one.
Later checks rely on earlier ones: batches are divided over workers only once the axes are valid.
`plan` runs stages 1 and 3; `run` and `train` run all four. Contradictions between command line
options are checked in the cli folder.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from clue_ray.cluster.placement import Node, cores_per_worker, count_workers, largest, total
from clue_ray.corpus.logs.reading import plan_reading
from clue_ray.encoder.attention import WIDEST_HEAD
from clue_ray.errors import ClusterError, SpecError, StudyError
from clue_ray.scaling.laws.catalogue import find_law
from clue_ray.spec.compute import train_flops
from clue_ray.spec.grid import MOST_POINTS, check_size, expand
from clue_ray.spec.specs import CorpusSpec, ResourcesSpec, RunSpec, StudySpec
from clue_ray.storage.place import is_uri, resolve_place
from clue_ray.study.costs import Workload
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.planned import Plan, chosen_resources
from clue_ray.study.probes import check_checkpoints
from clue_ray.study.trackers import check_trackers
from clue_ray.training.pools import make_pools
from clue_ray.transfer.tasks.spec import read_tasks

SPARE_BYTES = 256 * 2**20
"""Room for Ray's logs, Tune's tables and the report."""


def check_study(study: StudySpec, most_points: int | None = MOST_POINTS) -> None:
    """Raise for what must fail by the study file and the log's columns alone.

    Args:
        most_points: Number of runs that the axes may multiply to; None for any number.

    Raises:
        ClueRayError: The study cannot be run anywhere.
    """
    for law in study.fit.laws:
        find_law(law)
    check_size(study, most_points)
    for run in expand(study):
        _check_gpu_share(run.resources)
        _check_heads(run)
        check_batch(run)
    if isinstance(study.corpus, CorpusSpec):
        plan_reading(study.corpus)
    read_tasks(study.transfer)
    check_trackers(study.trackers)


def check_corpus(study: StudySpec, runs: Iterable[RunSpec], workload: Workload) -> None:
    """Raise for runs that the corpus cannot train or evaluate.

    Raises:
        CorpusError: There are too few held-out, validation or training users.
        SpecError: A run asks for more users than there are, or its budget buys no step.
    """
    make_pools(workload.corpus, study.evaluation.candidates)
    for run in runs:
        check_run(run, workload)


def check_resources(
    plan: Plan, study: StudySpec, nodes: list[Node], output: Path, directory: StudyDirectory
) -> None:
    """Raise for a plan that the cluster, the disk or existing checkpoints do not allow.

    Raises:
        ClusterError: The nodes have too few cores, GPUs or trial slots.
        StudyError: The disk is too full, or checkpoints of another run are in the way.
    """
    check_cluster(plan, study, nodes)
    _check_disk(plan, output, study.resources.checkpoints or directory.place)
    check_checkpoints(plan.pending, directory)


def _check_gpu_share(resources: ResourcesSpec) -> None:
    """Raise for GPUs that a worker cannot use, or that several workers would have to share."""
    share, workers = resources.gpus_per_worker, resources.workers
    if share > 1:
        raise SpecError(
            f"resources.gpus_per_worker is {share:g}, and a worker uses one GPU; set it to 1 and "
            f"resources.workers to the number of GPUs."
        )
    if 0 < share < 1 and workers > 1:
        raise SpecError(
            f"resources.gpus_per_worker is {share:g} with {workers} workers, and NCCL needs a GPU "
            f"for each worker; set it to 1, or resources.workers to 1."
        )


def _check_heads(run: RunSpec) -> None:
    """Raise for heads that the attention kernels of a GPU do not take."""
    width, heads = run.encoder.width, run.encoder.heads
    half = run.resources.gpus_per_worker and run.train.precision == "bf16"
    if half and run.encoder.transformer and width // heads > WIDEST_HEAD:
        fitting = next(n for n in range(-(-width // WIDEST_HEAD), width + 1) if not width % n)
        raise SpecError(
            f"encoder width {width} with {heads} heads makes heads of {width // heads}, and "
            f"attention on a GPU in bf16 takes at most {WIDEST_HEAD}; use {fitting} heads."
        )


def check_batch(run: RunSpec) -> None:
    """Raise for a batch that its workers cannot share or that is larger than the horizon."""
    batch, users = run.train.global_batch_size, run.train.users_seen
    workers = run.resources.workers
    if workers > batch:
        raise SpecError(
            f"resources.workers is {workers}, more than the {batch} users of global_batch_size; "
            f"use at most {batch}."
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
    """Raise for a run with more users than the corpus has, or a budget below one step."""
    most = len(workload.corpus.train_users)
    if run.corpus_users is not None and run.corpus_users > most:
        raise SpecError(
            f"corpus_users {run.corpus_users} is more than the {most} training users of the "
            f"corpus; use fewer, or leave it out for all."
        )
    budget, step = run.train.train_flops, train_flops(run.encoder, workload.step(run).required)
    if budget is not None and budget < step:
        raise SpecError(
            f"train.train_flops {budget:.3g} is less than one step of encoder {run.encoder.size}, "
            f"width {run.encoder.width}, at batch {run.train.global_batch_size:,} and "
            f"{run.sequence_length} events ({step:.3g} FLOP); raise it, or use a smaller encoder, "
            f"batch or history."
        )


def check_cluster(plan: Plan, study: StudySpec, nodes: list[Node]) -> None:
    """Raise for a plan that needs more cores, GPUs or trial slots than the nodes have."""
    if not plan.pending:
        return
    workers = max(r.workers for r in plan.pending)
    resources = chosen_resources(study.resources, plan.pending)
    most = max(workers, plan.concurrency)
    need = {
        "CPU": float(most * cores_per_worker(resources)),
        "GPU": most * resources.gpus_per_worker,
        "trial_slot": float(plan.multi_worker_runs) if workers > 1 else 0.0,
    }
    for resource, amount in need.items():
        if amount > total(nodes, resource):
            raise ClusterError(
                f"The study needs {amount:g} {resource} ({workers} workers or {plan.concurrency} "
                f"concurrent runs), but the cluster has {total(nodes, resource):g}; lower "
                "resources, or start Ray with more (trial slots: "
                "--resources='{\"trial_slot\": 64}' on the head)."
            )
    check_nodes(most, resources, nodes)


def check_nodes(workers: int, resources: ResourcesSpec, nodes: list[Node]) -> None:
    """Raise for workers that fit the cluster's total resources but not its single nodes."""
    fitting = count_workers(resources, nodes)
    if workers > fitting:
        packing = " and a core each where Ray Data packs" * (resources.feed == "ray_data")
        raise ClusterError(
            f"{workers} concurrent workers of {resources.cpus_per_worker} CPU and "
            f"{resources.gpus_per_worker:g} GPU{packing} are needed, but the cluster's "
            f"{len(nodes)} nodes (at most {largest(nodes, 'CPU'):g} CPU and "
            f"{largest(nodes, 'GPU'):g} GPU each) hold {fitting}; a worker runs on "
            f"one node, so lower resources."
        )


def _check_disk(plan: Plan, output: Path, checkpoints: str) -> None:
    """Raise where tables, logs or checkpoints would fill the disk."""
    needs = {str(output): SPARE_BYTES}
    if not is_uri(checkpoints):
        needs[resolve_place(checkpoints)] = plan.disk_bytes + SPARE_BYTES
    for folder, need in needs.items():
        Path(folder).mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < need:
            raise StudyError(
                f"The disk at {folder} is too full: {free:,} bytes are free, about {need:,} are "
                f"needed; free some space."
            )
