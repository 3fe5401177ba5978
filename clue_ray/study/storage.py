"""What only the cluster can tell before anything trains: is storage one for all nodes, whose are the checkpoints?"""

import os
from collections.abc import Iterable
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clue_ray.errors import ClueRayError, ClusterError
from clue_ray.spec import StudySpec
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.plan import PlannedRun
from clue_ray.study.trial import checkpoint_place
from clue_ray.training.checkpoints import check_owner, check_writable

NODE_SECONDS = 120.0
"""Longest wait for a node's answer; its first task starts a process."""


def check_storage(study: StudySpec, output: Path, corpus: Path) -> None:
    """Refuse an output, corpus or place of checkpoints that this machine or another node of the cluster cannot use.

    Raises:
        StudyError: checkpoints cannot be written to `resources.checkpoints`.
        ClusterError: another node does not see a folder, cannot write checkpoints, or does not answer.
    """
    place = study.resources.checkpoints
    if place:
        check_writable(place)
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not others:
        return
    output.mkdir(parents=True, exist_ok=True)
    probe = output / f".probe.{os.getpid()}"
    probe.touch()
    try:
        needed = [str(probe), str(corpus)]
        tasks = [
            ray.remote(find_trouble)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(needed, place)
            for node in others
        ]
        for node, trouble in zip(others, ray.get(tasks, timeout=NODE_SECONDS), strict=True):
            refuse(node["NodeManagerAddress"], trouble, output)
    except ray.exceptions.GetTimeoutError:
        raise ClusterError(f"A node did not answer within {NODE_SECONDS:g} s; mend it or take it away.") from None
    finally:
        probe.unlink(missing_ok=True)


def find_trouble(needed: list[str], place: str | None) -> str:
    """Say what a node lacks: the first path it does not see, or why it cannot write checkpoints; else nothing.

    Args:
        place: `resources.checkpoints`.
    """
    for path in needed:
        if not Path(path).exists():
            return f"does not see {Path(path).parent if Path(path).name.startswith('.probe') else path}"
    try:
        if place:
            check_writable(place)
    except ClueRayError as error:
        return f"cannot keep checkpoints: {error}"
    return ""


def refuse(address: str, trouble: str, output: Path) -> None:
    """Turn a node's trouble into a refusal."""
    if trouble:
        raise ClusterError(
            f"Node {address} {trouble}; give an --output (now {output}) and a corpus on storage that all nodes share."
        )


def check_checkpoints(pending: Iterable[PlannedRun], directory: StudyDirectory) -> None:
    """Refuse runs whose place of checkpoints holds another run's.

    Raises:
        StudyError: a place does.
    """
    for planned in pending:
        check_owner(checkpoint_place(planned.run, planned.run_id, directory.run_path(planned.run_id)), planned.run_id)
