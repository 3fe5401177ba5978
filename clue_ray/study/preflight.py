"""Arithmetic before anything starts: does the study fit the cluster and the disk?"""

import shutil
from pathlib import Path

from clue_ray.errors import ClusterError, StudyError
from clue_ray.spec import StudySpec
from clue_ray.study.plan import Plan

SPARE_BYTES = 256 * 2**20
"""Room for Ray's logs, Tune's tables and the report."""


def check_cluster(plan: Plan, study: StudySpec, have: dict[str, float]) -> None:
    """Refuse a study that asks for more cores, GPUs or trial slots than the cluster holds."""
    workers = max((r.run.resources.workers for r in plan.runs), default=1)
    per_worker = study.resources
    need = {
        "CPU": float(max(workers, plan.concurrency) * per_worker.cpus_per_worker),
        "GPU": max(workers, plan.concurrency) * per_worker.gpus_per_worker,
        "trial_slot": 1.0 if workers > 1 else 0.0,
    }
    for resource, amount in need.items():
        if amount > have.get(resource, 0):
            asked = f"{workers} workers or {plan.concurrency} runs at a time"
            raise ClusterError(
                f"The study needs {amount:g} {resource} ({asked}), but the cluster has {have.get(resource, 0):g}; "
                "lower resources, or start Ray with more (trial slots: --resources='{\"trial_slot\": 64}' on the head)."
            )


def check_disk(plan: Plan, output: Path) -> None:
    """Refuse to start when checkpoints would fill the disk."""
    output.mkdir(parents=True, exist_ok=True)
    free, need = shutil.disk_usage(output).free, plan.disk_bytes + SPARE_BYTES
    if free < need:
        raise StudyError(f"No free disk at {output}: {free:,} bytes free, about {need:,} needed; free some space.")
