"""What only the cluster can tell before anything trains: does storage serve all nodes, whose are
the checkpoints?
"""

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.tune.stopper import NoopStopper
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clue_ray.errors import ClueRayError, ClusterError, StudyError
from clue_ray.spec.specs import StudySpec
from clue_ray.storage.files import delete_file, read_file, read_file_once, with_retries, write_file
from clue_ray.storage.place import check_writable, is_uri, resolve_place
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.planned import PlannedRun
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
        ClusterError: another node does not see a place, cannot write it, or does not answer.
    """
    kept = study.resources.checkpoints
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    alone = all(node["NodeID"] == here for node in nodes) and not is_uri(directory.place)
    written = [*([] if alone else [directory.place]), *([resolve_place(kept)] if kept else [])]
    for place in written:
        check_writable(place, REMEDY)
    shared = any(is_uri(place) for place in written)
    asked = [node for node in nodes if node["NodeID"] != here or shared]
    if asked:
        with probes(written) as name:
            _ask_nodes(asked, Places(tuple(written), name, corpus), directory.place)


@contextmanager
def probes(places: Iterable[str]) -> Iterator[str]:
    """Put a file below each place, which nodes should see there; give its name."""
    name = f".probe.{uuid.uuid4().hex}"
    try:
        for place in places:
            with_retries(
                partial(write_file, place, name, b""), f"{name} cannot be written to {place}"
            )
        yield name
    finally:
        for place in places:
            with suppress(OSError, StudyError):
                delete_file(place, name)


class Places(NamedTuple):
    """What a node is to look at."""

    written: tuple[str, ...]
    "folders and URIs that it must see and can write"
    probe: str
    "name of the file that lies in each"
    corpus: str | None


def _ask_nodes(nodes: list[dict[str, Any]], places: Places, home: str) -> None:
    """Have a task on each node look at the study's places; refuse what one of them finds."""
    tasks = [
        ray.remote(find_trouble)
        .options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote(places)
        for node in nodes
    ]
    ray.wait(tasks, num_returns=len(tasks), timeout=NODE_SECONDS)
    for node, task in zip(nodes, tasks, strict=True):
        name = f"Node {node['NodeManagerAddress']}"
        try:
            trouble = ray.get(task, timeout=0)
        except ray.exceptions.GetTimeoutError:
            words = f"{name} did not answer within {NODE_SECONDS:g} s; mend it or take it away."
            raise ClusterError(words) from None
        except ray.exceptions.RayError as error:
            raise node_trouble(name, error) from None
        if trouble:
            raise ClusterError(
                f"{name} {trouble}; the study's folder is {home}: give an --output and a corpus on "
                f"a disk that all "
                "nodes share, or a --storage that all can write."
            )


def node_trouble(name: str, error: ray.exceptions.RayError) -> ClusterError:
    """Say in one sentence what a task on a node ended with."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    words = (
        lines[-1 if isinstance(cause, ray.exceptions.RayTaskError) else 0]
        if lines
        else type(cause).__name__
    )
    return ClusterError(f"{name} failed at a task ({words.rstrip('.')}); mend it or take it away.")


def find_trouble(places: Places) -> str:
    """Say what a node lacks: the first place it does not see, or why it cannot write one; else
    nothing.
    """
    try:
        for place in places.written:
            if read_file_once(place, places.probe) is None:
                return f"does not see {place}"
        if places.corpus and read_file(places.corpus, "corpus.json") is None:
            return f"does not see {places.corpus}"
        for place in (
            places.written
        ):  # after what it must see, so that no folder is made on a disk that is not shared
            check_writable(place, REMEDY)
    except (ClueRayError, OSError) as error:
        return f"cannot use storage: {str(error).split(';')[0].splitlines()[0]}"
    return ""


def check_checkpoints(pending: Iterable[PlannedRun], directory: StudyDirectory) -> None:
    """Refuse runs whose place of checkpoints holds another run's.

    Raises:
        StudyError: a place does.
    """
    for planned in pending:
        check_owner(
            checkpoint_place(planned.run, planned.run_id, directory.run_place(planned.run_id)),
            planned.run_id,
        )


class Gatherer(tune.Callback):
    """Brings each run home when its trial ends."""

    def __init__(self, directory: StudyDirectory):
        self.directory: StudyDirectory | None = directory

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Fetch what the trial left on storage."""
        if self.directory and not self.directory.trouble:
            with suppress(
                ClueRayError
            ):  # Tune would train the run again; the end of the study gathers all
                self.directory.gather(trial.config["run"]["run_id"])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the directory behind: Tune pickles its callbacks, and threads do not pickle."""
        return {"directory": None}


class StorageStopper(tune.Stopper):
    """Ends all trials once the study's storage is lost, so that nothing goes on that could not be
    kept.
    """

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
