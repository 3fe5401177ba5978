"""What only the cluster can tell before anything trains: does storage serve all nodes, whose are the checkpoints?"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.stopper import NoopStopper
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clue_ray.corpus.storage import check_writable, is_uri, read_file, resolve_place
from clue_ray.errors import ClueRayError, ClusterError
from clue_ray.spec import StudySpec
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.plan import PlannedRun
from clue_ray.study.trial import checkpoint_place
from clue_ray.training.checkpoints import check_owner

NODE_SECONDS = 120.0
"""Longest wait for a node's answer; its first task starts a process."""
REMEDY = "give resources.checkpoints and --storage folders or URIs that every node can write, by its own credentials"


def check_storage(study: StudySpec, directory: StudyDirectory, corpus: str | None = None) -> None:
    """Refuse storage, an output or a corpus that this machine or a node of the cluster cannot use.

    Args:
        corpus: folder or URI that the runs open it from; None while there is none yet.

    Raises:
        StudyError: this machine cannot write a place of the study's.
        ClusterError: another node does not see a folder, cannot write a place, or does not answer.
    """
    kept = study.resources.checkpoints
    written = [directory.place, *([resolve_place(kept)] if kept else [])]
    for place in written:
        check_writable(place, REMEDY)
    here = ray.get_runtime_context().get_node_id()
    asked = [node for node in ray.nodes() if node["Alive"] and (node["NodeID"] != here or is_uri(directory.place))]
    if asked:
        with visible(Path(directory.place).parent, not is_uri(directory.place)) as probes:
            ask_nodes(asked, [*probes, *([corpus] if corpus else [])], written, directory.place)


@contextmanager
def visible(folder: Path, wanted: bool) -> Iterator[list[str]]:
    """Put a file into a folder that nodes should see, where that is wanted."""
    if not wanted:
        yield []
        return
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe.{os.getpid()}"
    probe.touch()
    try:
        yield [str(probe)]
    finally:
        probe.unlink(missing_ok=True)


def ask_nodes(nodes: list[dict[str, Any]], needed: list[str], written: list[str], place: str) -> None:
    """Have a task on each node look at the study's places; refuse what one of them finds."""
    tasks = [
        ray.remote(find_trouble)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(needed, written)
        for node in nodes
    ]
    try:
        troubles = ray.get(tasks, timeout=NODE_SECONDS)
    except ray.exceptions.GetTimeoutError:
        raise ClusterError(f"A node did not answer within {NODE_SECONDS:g} s; mend it or take it away.") from None
    for node, trouble in zip(nodes, troubles, strict=True):
        if trouble:
            raise ClusterError(
                f"Node {node['NodeManagerAddress']} {trouble}; the study's folder is {place}: give an --output and a "
                "corpus on a disk that all nodes share, or a --storage that all can write."
            )


def find_trouble(needed: list[str], written: list[str]) -> str:
    """Say what a node lacks: the first place it does not see, or why it cannot write one; else nothing."""
    try:
        for place in needed:
            there = read_file(place, "corpus.json") is not None if is_uri(place) else Path(place).exists()
            if not there:
                return f"does not see {Path(place).parent if Path(place).name.startswith('.probe') else place}"
        for place in written:  # after what it must see, so that no folder is made on a disk that is not shared
            check_writable(place, REMEDY)
    except ClueRayError as error:
        return f"cannot use storage: {str(error).split(';')[0]}"
    return ""


def check_checkpoints(pending: Iterable[PlannedRun], directory: StudyDirectory) -> None:
    """Refuse runs whose place of checkpoints holds another run's.

    Raises:
        StudyError: a place does.
    """
    for planned in pending:
        check_owner(checkpoint_place(planned.run, planned.run_id, directory.run_place(planned.run_id)), planned.run_id)


class Gatherer(tune.Callback):
    """Brings each run home when its trial ends."""

    def __init__(self, directory: StudyDirectory):
        self.directory: StudyDirectory | None = directory

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Fetch what the trial left on storage."""
        if self.directory and not self.directory.trouble:
            with suppress(ClueRayError):  # Tune would train the run again; the end of the study gathers all
                self.directory.gather(trial.config["run"]["run_id"])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the directory behind: Tune pickles its callbacks, and threads do not pickle."""
        return {"directory": None}


class StorageStopper(tune.Stopper):
    """Ends all trials once the study's storage is lost, so that nothing goes on that could not be kept."""

    def __init__(self, directory: StudyDirectory):
        self.directory = directory

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Let every trial end by itself."""
        return False

    def stop_all(self) -> bool:
        """Tell whether storage is lost."""
        return bool(self.directory.trouble)

    def __reduce__(self) -> tuple[Any, ...]:
        """Become nothing where Tune pickles it, as threads do not pickle."""
        return NoopStopper, ()
