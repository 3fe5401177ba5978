"""Check the places of a study from every node, and stop a study whose storage is lost.

Only the nodes themselves can say whether they see a folder or may write to a bucket, so a task on
each node is asked before anything trains.
"""

import logging
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.stopper import NoopStopper

from clue_ray.cluster.asking import NODE_SECONDS, ask_nodes
from clue_ray.cluster.places import REMEDY, Places, find_failure
from clue_ray.errors import ClusterError, StudyError, reason_of
from clue_ray.spec.specs import StudySpec
from clue_ray.storage.files import delete_file, with_retries, write_file
from clue_ray.storage.place import check_writable, is_uri, resolve_place
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.planned import PlannedRun
from clue_ray.study.trial import checkpoint_place
from clue_ray.training.checkpoints import check_owner

logger = logging.getLogger(__name__)


def check_storage(study: StudySpec, directory: StudyDirectory, corpus: str | None = None) -> None:
    """Raise for storage, an output or a corpus that a node of the cluster cannot use.

    Args:
        corpus: Folder or URI from which the runs open the corpus; None while there is none yet.

    Raises:
        StudyError: This machine cannot write to a place of the study.
        ClusterError: Another node does not see a place, cannot write to it, or does not answer.
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
    """Write a file to each place, for nodes to look for; yield its name."""
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


def _ask_nodes(nodes: list[dict[str, Any]], places: Places, home: str) -> None:
    """Run a task on each node that checks the study's places; raise what one of them finds."""
    for node, failure in zip(nodes, ask_nodes(find_failure, nodes, places), strict=True):
        name = f"Node {node['NodeManagerAddress']}"
        if isinstance(failure, ray.exceptions.GetTimeoutError):
            raise ClusterError(
                f"{name} did not answer within {NODE_SECONDS:g} s; repair or remove it."
            )
        if isinstance(failure, ray.exceptions.RayError):
            raise node_failure(name, failure)
        if failure:
            raise ClusterError(
                f"{name} {failure}; the study's folder is {home}: give an --output and a corpus on "
                f"a disk that all nodes share, or a --storage that all can write."
            )


def node_failure(name: str, error: ray.exceptions.RayError) -> ClusterError:
    """Return an error that says in one sentence why a task on a node failed."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if not lines:
        reason = type(cause).__name__
    else:  # the message of a RayTaskError is a traceback, which ends with the error
        reason = lines[-1 if isinstance(cause, ray.exceptions.RayTaskError) else 0]
    return ClusterError(f"{name} failed a task ({reason.rstrip('.')}); repair or remove it.")


def check_checkpoints(pending: Iterable[PlannedRun], directory: StudyDirectory) -> None:
    """Raise StudyError where a run's folder of checkpoints holds those of another run."""
    for planned in pending:
        place = checkpoint_place(planned.run, planned.run_id, directory.run_place(planned.run_id))
        check_owner(place, planned.run_id)


class RunFetcher(tune.Callback):
    """Fetches each run when its trial ends."""

    def __init__(self, directory: StudyDirectory):
        self.directory: StudyDirectory | None = directory

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Fetch what the trial wrote to storage."""
        if self.directory and not self.directory.failure:
            # An error here would make Tune train the run again; the end of the study fetches all.
            try:
                self.directory.fetch_run(trial.config["run"]["run_id"])
            except Exception as error:  # a full disk, a file cut short: of this node, not the run
                logger.warning("A run is fetched at the end of the study (%s).", reason_of(error))

    def __getstate__(self) -> dict[str, Any]:
        """Return a state without the directory, which may hold a thread and cannot be pickled."""
        return {"directory": None}


class StorageStopper(tune.Stopper):
    """Stops all trials once the study's storage is lost, because results could not be kept."""

    def __init__(self, directory: StudyDirectory):
        self.directory = directory

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stop a single trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether storage is lost."""
        return bool(self.directory.failure)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a stopper that does nothing, because the directory holds a thread."""
        return NoopStopper, ()
