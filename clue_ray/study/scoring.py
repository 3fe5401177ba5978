"""Evaluate finished runs on downstream tasks, one Ray Tune trial per run and task without a result.

Each task's log is read once, in a Ray task on a node with memory for it, and its examples are
shared with the trials through Ray's object store; a trial only adds its encoder, and this process
holds neither. Results are written to the runs' folders. A failure becomes a sentence in its run's
row and does not stop the other trials.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clue_ray.cluster.placement import largest
from clue_ray.cluster.session import cluster_nodes, without_tune_loggers
from clue_ray.corpus.logs.reading import Reading
from clue_ray.errors import ClueRayError, StudyError, describe_error
from clue_ray.runs import read_runs
from clue_ray.storage.files import with_retries, write_file
from clue_ray.storage.place import is_uri
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.mirror import open_directory
from clue_ray.study.probes import node_failure
from clue_ray.study.trial import LONG_TIMEOUT, REUSE_TIMEOUT
from clue_ray.training.device import choose_device
from clue_ray.transfer.embed.pipeline import count_gpus
from clue_ray.transfer.encode import load_encoder
from clue_ray.transfer.encoder_file import read_card
from clue_ray.transfer.tasks.columns import failure_name, join_results, select_results
from clue_ray.transfer.tasks.evaluate import (
    Known,
    evaluate_task,
    prepare_examples,
    read_result,
    result_key,
    result_name,
    write_left_out,
)
from clue_ray.transfer.tasks.examples import Examples, plan_events
from clue_ray.transfer.tasks.spec import TaskSpec

logger = logging.getLogger(__name__)
MEMORY_PER_BYTE = 16
"""Memory to ask for per byte of a task's log: 12 were measured for Parquet, 4 for plain CSV."""
PROCESS_FAILURES = 3
"""Number of times that a trial is restarted after its process was lost."""

_known: Known = {}
"""The baselines that the trials of this process have evaluated; most runs share them."""

Pair = tuple[str, str]
"""Id of a run, name of a task."""
LaidOut = dict[str, "ray.ObjectRef[tuple[TaskSpec, Examples]]"]
"""By task, its examples in Ray's object store."""


def score_runs(
    directory: StudyDirectory,
    tasks: Sequence[TaskSpec],
    run_ids: Sequence[str],
    against: Mapping[str, str | Path] | None = None,
    gpus_per_worker: float = 0,
) -> list[dict[str, Any]]:
    """Evaluate runs on tasks, each pair once; needs a Ray session.

    Args:
        against: Further encoders to compare with each run, from their name to the folder of their
            run, which all nodes see.
        gpus_per_worker: GPUs of a trial, on which its encoders encode users.

    Returns:
        The result of `run_task` for each pair, in the order of the tasks. A pair that failed has
        the keys `task`, `run_id` and `error` instead.

    Raises:
        StudyError: A folder of `against` holds no encoder.
        ClusterError: The cluster has too few GPUs for one trial.
    """
    others = {name: str(Path(place).absolute()) for name, place in (against or {}).items()}
    pairs = [(run_id, task.name) for task in tasks for run_id in run_ids]
    keys, laid_out, failures = _prepare(directory, tasks, pairs, others)
    pending = {
        pair: key
        for pair, key in keys.items()
        if pair not in failures and not _has_result(directory, pair, key)
    }
    if pending:
        count_gpus(gpus_per_worker)
        failures |= _run_trials(directory, pending, laid_out, others, gpus_per_worker)
    for pair in pairs:
        _record_failure(directory, pair, failures.get(pair))
    names = {
        pair: failure_name(pair[1]) if pair in failures else result_name(pair[1], keys[pair])
        for pair in pairs
    }
    by_task = {
        task.name: {run: name for (run, asked), name in names.items() if asked == task.name}
        for task in tasks
    }
    select_results(directory.path, by_task)
    return [read_result(directory.run_path(pair[0]) / name) for pair, name in names.items()]


def score_study(
    path: Path,
    tasks: Sequence[TaskSpec],
    against: Mapping[str, str | Path],
    storage: str | None = None,
    gpus_per_worker: float = 0,
) -> list[dict[str, Any]]:
    """Evaluate every finished run of a study on tasks, and add the scores to its runs table.

    Args:
        storage: Folder or URI of corpora and studies, as for `run_study`.
        gpus_per_worker: As for `score_runs`.

    Raises:
        StudyError: No run has finished, or no run could be evaluated on any task.
    """
    directory = open_directory(path, storage)
    with directory.held():
        runs = read_runs(path)
        if runs.finished.empty:
            raise StudyError(f"{path} has no finished run; run the study first.")
        finished = list(runs.finished["run_id"])
        results = score_runs(directory, tasks, finished, against, gpus_per_worker)
        join_results(path, runs)
        directory.publish()
    if all("error" in result for result in results):
        raise StudyError(f"No run of {path} could be scored: {results[0]['error']}")
    return results


def _prepare(
    directory: StudyDirectory,
    tasks: Sequence[TaskSpec],
    pairs: Sequence[Pair],
    others: Mapping[str, str],
) -> tuple[dict[Pair, str], LaidOut, dict[Pair, str]]:
    """Compute the key of each pair's result, and read the examples of tasks that lack a result.

    Returns:
        The keys, the examples by task, and why some pairs cannot be evaluated.
    """
    cards = {name: read_card(place) for name, place in others.items()}
    keys: dict[Pair, str] = {}
    laid_out: LaidOut = {}
    failures: dict[Pair, str] = {}
    for task in tasks:
        mine = [pair for pair in pairs if pair[1] == task.name]
        with _failing(failures, mine):
            reading = plan_events(task)
            for pair in mine:
                with _failing(failures, [pair]):
                    keys[pair] = result_key(
                        read_card(directory.run_place(pair[0])), cards, task, reading
                    )
            lacking = [
                pair
                for pair in mine
                if pair in keys and not _has_result(directory, pair, keys[pair])
            ]
            with _failing(failures, lacking):
                if lacking:
                    laid_out[task.name] = _lay_out(task, reading, directory.place)
    return keys, laid_out, failures


def _lay_out(
    task: TaskSpec, reading: Reading, place: str
) -> "ray.ObjectRef[tuple[TaskSpec, Examples]]":
    """Make a task's examples in a Ray task, and return a reference to them.

    Raises:
        ClueRayError: The task cannot be prepared, or its node failed.
    """
    asked = MEMORY_PER_BYTE * sum(file.size for file in reading.files)
    # Ray would wait for ever for more memory than a node has, and this is only an estimate.
    with_cores = [node for node in cluster_nodes() if node.get("CPU", 0) >= 1]
    memory = min(asked, largest(with_cores, "memory"))
    try:
        return _prepare_on(task, reading, place, {"num_cpus": 1, "memory": memory})
    except _UnseenError as unseen:
        # Other nodes need not see the log; this one may be a head, which has no cores for tasks.
        own = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(own, soft=False)
        held = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == own)
        options = {"memory": min(asked, held.get("memory", 0)), "scheduling_strategy": here}
        try:
            return _prepare_on(task, reading, place, {"num_cpus": 0, **options})
        except _UnseenError:
            raise unseen.reason from None


class _UnseenError(Exception):
    """A node does not see the files of a task; `reason` is the error there."""

    def __init__(self, reason: ClueRayError):
        super().__init__(str(reason))
        self.reason = reason


def _prepare_on(
    task: TaskSpec, reading: Reading, place: str, options: dict[str, Any]
) -> "ray.ObjectRef[tuple[TaskSpec, Examples]]":
    """Make a task's examples in a Ray task with some options.

    Raises:
        _UnseenError: The task failed on another node, which does not see its files.
        ClueRayError: The task cannot be prepared, or its node failed.
    """
    there = ray.remote(num_returns=2, **options)(_prepare_there)
    outcome, examples = there.remote(task, reading, place, os.getcwd())
    try:
        warnings, error, seen = ray.get(outcome)
    except RayError as lost:
        raise node_failure(f"The node that read the log of task {task.name}", lost) from None
    if error and not seen and _sees(task, reading):
        raise _UnseenError(error)
    for sentence in warnings:
        logger.warning(sentence)
    if error:
        raise error
    return examples


def _prepare_there(
    task: TaskSpec, reading: Reading, place: str, folder: str
) -> tuple[tuple[list[str], ClueRayError | None, bool], tuple[TaskSpec, Examples] | None]:
    """Make a task's examples in this process, and write the list of users left out.

    Args:
        folder: Where the command runs, from which the task's paths may be relative.

    Returns:
        Warnings, the error if there is one and whether this node sees the files; the examples.
    """
    warnings: list[str] = []
    with chdir(folder) if os.path.isdir(folder) else nullcontext():
        seen = _sees(task, reading)
        try:
            examples = prepare_examples(task, reading, warnings.append)
            write_left_out(place, task, examples)
        except ClueRayError as error:
            return (warnings, error, seen), None
    return (warnings, None, seen), (task, examples)


def _sees(task: TaskSpec, reading: Reading) -> bool:
    """Return whether this node sees the local files of a task."""
    files = [*reading.files, *(file for plan in reading.catalogues for file in plan.files)]
    paths = [file.path for file in files if not file.root]
    table = task.attribute.table if task.attribute else ""
    if table and not is_uri(table) and not table.startswith("package:"):
        paths.append(table)
    return all(map(os.path.exists, paths))


@contextmanager
def _failing(failures: dict[Pair, str], pairs: Sequence[Pair]) -> Iterator[None]:
    """Record an error of the block as the failure of some pairs, and continue after the block."""
    try:
        yield
    except ClueRayError as error:
        failures.update(dict.fromkeys(pairs, str(error)))


def _has_result(directory: StudyDirectory, pair: Pair, key: str) -> bool:
    """Return whether a pair already has a result."""
    return (directory.run_path(pair[0]) / result_name(pair[1], key)).is_file()


def _run_trials(
    directory: StudyDirectory,
    pending: Mapping[Pair, str],
    laid_out: LaidOut,
    others: Mapping[str, str],
    gpus: float,
) -> dict[Pair, str]:
    """Evaluate pairs in one Tune experiment, one core each; return why some failed."""
    asked = [
        {"place": directory.run_place(run_id), "run_id": run_id, "task": task, "key": key}
        for (run_id, task), key in pending.items()
    ]
    trial = tune.with_parameters(_score_trial, laid_out=laid_out, others=dict(others), gpus=gpus)
    # Tune's own records go to a temporary folder: the results are files in the runs' folders.
    temporary = tempfile.TemporaryDirectory(prefix="clue-ray-transfer-", ignore_cleanup_errors=True)
    with temporary as folder, without_tune_loggers():
        results = tune.Tuner(
            tune.with_resources(trial, {"CPU": 1.0, "GPU": gpus}),
            param_space={"asked": tune.grid_search(asked)},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name="transfer",
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=PROCESS_FAILURES),
            ),
        ).fit()
    ended = {
        (one.config["asked"]["run_id"], one.config["asked"]["task"]): one
        for one in results
        if one.config
    }
    failures = {}
    for pair, key in pending.items():
        directory.fetch_run(pair[0])
        if not _has_result(directory, pair, key):
            failures[pair] = _failure_reason(ended.get(pair))
    return failures


def _failure_reason(result: "tune.Result | None") -> str:
    """Return why a trial wrote no result."""
    if result is None or not (result.error or result.metrics):
        raise KeyboardInterrupt  # on Ctrl-C, Tune returns what it has so far
    if result.error:
        return f"the trial died: {str(result.error).splitlines()[0]}"
    return str((result.metrics or {})["error"])


def _score_trial(
    config: dict[str, Any], laid_out: LaidOut, others: dict[str, str], gpus: float
) -> None:
    """Evaluate one run on one task and write the result; report an error instead of raising it."""
    os.environ.setdefault(REUSE_TIMEOUT, LONG_TIMEOUT)
    torch.set_num_threads(1)
    asked, error = config["asked"], ""
    try:
        task, examples = ray.get(laid_out[asked["task"]])
        device = choose_device(gpus)
        encoders = {name: load_encoder(place, device) for name, place in others.items()}
        encoder = load_encoder(asked["place"], device)
        result = evaluate_task(encoder, encoders, task, examples, _known)
        content = json.dumps({"key": asked["key"], **result}, indent=2, allow_nan=False).encode()
        name = result_name(asked["task"], asked["key"])
        with_retries(
            lambda: write_file(asked["place"], name, content),
            f"{name} cannot be written to {asked['place']}",
        )
    except ClueRayError as expected:
        error = str(expected)
    except Exception as unexpected:
        error = describe_error(unexpected)[0]
    tune.report({"error": error})


def _record_failure(directory: StudyDirectory, pair: Pair, failure: str | None) -> None:
    """Write why a pair failed next to the results, or delete the failure of an earlier try."""
    run_id, task = pair
    told = failure and {"task": task, "run_id": run_id, "error": failure}
    directory.write_failure(run_id, failure_name(task), told or None)
