"""Arithmetic before anything starts: does the study fit the cluster and the disk?"""

import shutil
from pathlib import Path

from clue_ray.errors import ClusterError, StudyError
from clue_ray.spec.specs import ResourcesSpec, StudySpec
from clue_ray.storage.place import is_uri, resolve_place
from clue_ray.study.placement import Node, largest, total, worker_slots
from clue_ray.study.plan import Plan

SPARE_BYTES = 256 * 2**20
"""Room for Ray's logs, Tune's tables and the report."""


def check_cluster(plan: Plan, study: StudySpec, nodes: list[Node]) -> None:
    """Refuse a study that asks for more cores, GPUs or trial slots than the cluster, or any one node, holds."""
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
                f"The study needs {amount:g} {resource} ({asked}), but the cluster has {total(nodes, resource):g}; "
                "lower resources, or start Ray with more (trial slots: --resources='{\"trial_slot\": 64}' on the head)."
            )
    check_nodes(max(workers, plan.concurrency), per_worker, nodes)


def check_nodes(workers: int, resources: ResourcesSpec, nodes: list[Node]) -> None:
    """Refuse workers that the cluster as a whole could hold but its nodes, one by one, cannot."""
    slots = worker_slots(resources, nodes)
    if workers > slots:
        raise ClusterError(
            f"{workers} workers of {resources.cpus_per_worker} CPU and {resources.gpus_per_worker:g} GPU are asked for "
            f"at a time, but the cluster's {len(nodes)} nodes (at most {largest(nodes, 'CPU'):g} CPU and "
            f"{largest(nodes, 'GPU'):g} GPU each) hold {slots}; a worker runs on one node, so lower resources."
        )


def check_disk(plan: Plan, output: Path, checkpoints: str) -> None:
    """Refuse to start when tables and logs, or checkpoints in their folder, would fill the disk."""
    needs = {str(output): SPARE_BYTES}
    if not is_uri(checkpoints):
        needs[resolve_place(checkpoints)] = plan.disk_bytes + SPARE_BYTES
    for folder, need in needs.items():
        Path(folder).mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < need:
            raise StudyError(f"No free disk at {folder}: {free:,} bytes free, about {need:,} needed; free some space.")
