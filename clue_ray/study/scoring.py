"""Finished runs put to downstream tasks: a Ray Tune trial for each run and task that has no result
yet.

Takes a study's directory and tasks, leaves results in the runs' folders. One idea: a task's log is
read and its users laid out once, here; a trial adds the encoder. What fails is a sentence in its
run's row, and ends nothing else.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from clue_ray.cluster.session import without_tune_loggers
from clue_ray.errors import ClueRayError, StudyError, describe_error
from clue_ray.runs import read_runs
from clue_ray.storage.files import with_retries, write_file, write_json
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.mirror import open_directory
from clue_ray.study.trial import REUSE_TIMEOUT
from clue_ray.transfer.encode import load_encoder
from clue_ray.transfer.encoder_file import read_card
from clue_ray.transfer.tasks.columns import failure_name, join_results, note_asked
from clue_ray.transfer.tasks.evaluate import (
    evaluate_task,
    lay_out_task,
    read_result,
    result_key,
    result_name,
    write_left_out,
)
from clue_ray.transfer.tasks.examples import Examples, plan_events
from clue_ray.transfer.tasks.spec import TaskSpec

PROCESS_FAILURES = 3
"""Times that a trial is started again after its process was lost."""

Pair = tuple[str, str]
"""Id of a run, name of a task."""
LaidOut = dict[str, "ray.ObjectRef[tuple[TaskSpec, Examples]]"]


def score_runs(
    directory: StudyDirectory,
    tasks: Sequence[TaskSpec],
    run_ids: Sequence[str],
    against: Mapping[str, str | Path] | None = None,
) -> list[dict[str, Any]]:
    """Put runs to tasks, each pair once; return every result, in the order of the tasks. Needs a
    Ray session.

    Args:
        against: further encoders to set beside each: name -> folder of their run, which all nodes
            see.

    Returns:
        What `run_task` returns; of a pair that failed `task`, `run_id` and the sentence `error`.

    Raises:
        StudyError: an encoder of `against` is none.
    """
    others = {name: str(Path(place).absolute()) for name, place in (against or {}).items()}
    pairs = [(run_id, task.name) for task in tasks for run_id in run_ids]
    keys, laid_out, troubles = _prepare(directory, tasks, pairs, others)
    pending = {
        pair: key
        for pair, key in keys.items()
        if pair not in troubles and not _has_result(directory, pair, key)
    }
    if pending:
        troubles |= run_trials(directory, pending, laid_out, others)
    for pair in pairs:
        _keep_trouble(directory, pair, troubles.get(pair))
    names = {
        pair: failure_name(pair[1]) if pair in troubles else result_name(pair[1], keys[pair])
        for pair in pairs
    }
    by_task = {
        task.name: {run: name for (run, asked), name in names.items() if asked == task.name}
        for task in tasks
    }
    note_asked(directory.path, by_task)
    return [read_result(directory.run_path(pair[0]) / name) for pair, name in names.items()]


def score_study(
    path: Path,
    tasks: Sequence[TaskSpec],
    against: Mapping[str, str | Path],
    storage: str | None = None,
) -> list[dict[str, Any]]:
    """Put every finished run of a study to tasks, add their columns to its runs table, return the
    results.

    Args:
        storage: where the study has its home, as `run_study` takes it.

    Raises:
        StudyError: no run has finished, or no run could be put to any task.
    """
    directory = open_directory(path, storage)
    with directory.held() if storage else nullcontext():
        runs = read_runs(path)
        if runs.done.empty:
            raise StudyError(f"{path} has no finished run; run the study first.")
        results = score_runs(directory, tasks, list(runs.done["run_id"]), against)
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
    """Find each pair's key, lay out the users of tasks that lack a result, and say what cannot be
    done, and why.
    """
    cards = {name: read_card(place) for name, place in others.items()}
    keys: dict[Pair, str] = {}
    laid_out: LaidOut = {}
    troubles: dict[Pair, str] = {}
    for task in tasks:
        mine = [pair for pair in pairs if pair[1] == task.name]
        with _told(troubles, mine):
            reading = plan_events(task)
            for pair in mine:
                with _told(troubles, [pair]):
                    keys[pair] = result_key(
                        read_card(directory.run_place(pair[0])), cards, task, reading
                    )
            lacking = [
                pair
                for pair in mine
                if pair in keys and not _has_result(directory, pair, keys[pair])
            ]
            with _told(troubles, lacking):
                if lacking:
                    examples = lay_out_task(task, reading)
                    write_left_out(directory.place, task, examples)
                    laid_out[task.name] = ray.put((task, examples))
    return keys, laid_out, troubles


@contextmanager
def _told(troubles: dict[Pair, str], pairs: Sequence[Pair]) -> Iterator[None]:
    """Note a mistake met in the block as the trouble of some pairs, and go on."""
    try:
        yield
    except ClueRayError as error:
        troubles.update(dict.fromkeys(pairs, str(error)))


def _has_result(directory: StudyDirectory, pair: Pair, key: str) -> bool:
    """Tell whether a pair's result is kept."""
    return (directory.run_path(pair[0]) / result_name(pair[1], key)).is_file()


def run_trials(
    directory: StudyDirectory,
    pending: Mapping[Pair, str],
    laid_out: LaidOut,
    others: Mapping[str, str],
) -> dict[Pair, str]:
    """Score pairs through one Tune experiment, a core each; return what failed, and why."""
    asked = [
        {"place": directory.run_place(run_id), "run_id": run_id, "task": task, "key": key}
        for (run_id, task), key in pending.items()
    ]
    judge = tune.with_parameters(_score_trial, laid_out=laid_out, others=dict(others))
    temporary = tempfile.TemporaryDirectory(prefix="clue-ray-transfer-", ignore_cleanup_errors=True)
    with temporary as folder, without_tune_loggers():  # the results are files already
        results = tune.Tuner(
            tune.with_resources(judge, {"CPU": 1.0}),
            param_space={"asked": tune.grid_search(asked)},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name="transfer",
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=PROCESS_FAILURES),
            ),
        ).fit()
    told_by = {
        (one.config["asked"]["run_id"], one.config["asked"]["task"]): one
        for one in results
        if one.config
    }
    troubles = {}
    for pair, key in pending.items():
        directory.gather(pair[0])
        if not _has_result(directory, pair, key):
            troubles[pair] = _why_failed(told_by.get(pair))
    return troubles


def _why_failed(result: "tune.Result | None") -> str:
    """Say why a trial left no result."""
    if result is None or not (
        result.error or result.metrics
    ):  # Tune swallows Ctrl-C and returns what it has
        raise KeyboardInterrupt
    if result.error:
        return f"the trial died: {str(result.error).splitlines()[0]}"
    return str((result.metrics or {})["error"])


def _score_trial(config: dict[str, Any], laid_out: LaidOut, others: dict[str, str]) -> None:
    """Score one run on one task and write the result into the run's folder; what fails is reported,
    not raised.
    """
    os.environ.setdefault(REUSE_TIMEOUT, "60")  # Tune's own 2 s end a study on a crowded machine
    torch.set_num_threads(1)
    asked, error = config["asked"], ""
    try:
        task, examples = ray.get(laid_out[asked["task"]])
        encoders = {name: load_encoder(place) for name, place in others.items()}
        result = evaluate_task(load_encoder(asked["place"]), encoders, task, examples)
        content = json.dumps({"key": asked["key"], **result}, indent=2, allow_nan=False).encode()
        name = result_name(asked["task"], asked["key"])
        with_retries(
            lambda: write_file(asked["place"], name, content),
            f"{name} cannot be written to {asked['place']}",
        )
    except ClueRayError as mistake:
        error = str(mistake)
    except Exception as fault:
        error = describe_error(fault)[0]
    tune.report({"error": error})


def _keep_trouble(directory: StudyDirectory, pair: Pair, trouble: str | None) -> None:
    """Write why a pair failed where the results lie, or take back what an earlier try left."""
    run_id, task = pair
    file = directory.run_path(run_id) / failure_name(task)
    if trouble is None:
        file.unlink(missing_ok=True)
    else:
        write_json(file, {"task": task, "run_id": run_id, "error": trouble})
