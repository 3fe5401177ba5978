"""The function that Ray Tune runs for each trial: train one run and write its record.

A run that raises becomes a record with status `failed`. It is not tried again, because it would
raise again; only a CUDA error that no later call survives ends the process. A trial that dies with
its process (killed, out of memory, a lost node) is restarted by Tune a few times, and resumes from
the run's last checkpoint.
"""

import os
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.data import Dataset

from clue_ray.cluster.session import data_pool
from clue_ray.corpus.store import Corpus, open_corpus
from clue_ray.errors import ClueRayError, describe_error
from clue_ray.runs import RunDescription, RunRecord
from clue_ray.spec.specs import EvaluationSpec, RunSpec
from clue_ray.storage.files import PERMANENT_ERRORS, write_file
from clue_ray.storage.place import is_uri, place_below
from clue_ray.storage.sync import working_folder
from clue_ray.study.directory import write_run
from clue_ray.training.context import LocalContext
from clue_ray.training.device import is_lost
from clue_ray.training.feed import Pack
from clue_ray.training.loop import train_with
from clue_ray.training.ray_train import LoopError, train_on_workers
from clue_ray.training.streams import Stream, make_stream
from clue_ray.training.tensorboard import (
    DRIVER_LOG,
    EVENT_FILES,
    LOG_FILE,
    CurveEvents,
    log_to,
)
from clue_ray.transfer.encoder_file import export_run

REUSE_TIMEOUT = "TUNE_FUNCTION_THREAD_TIMEOUT_S"
"""Environment variable: how long Tune waits for a thread to end before it reuses the actor."""
LONG_TIMEOUT = "60"
"""Seconds; Tune's default of 2 s ends studies on busy machines."""
TROUBLE_SECONDS = 10.0
"""Pause before a run that met a full or failing disk is given back to Tune."""


def run_trial(config: dict[str, Any]) -> None:
    """Train one run in this trial's process; record an error of the run instead of raising it."""
    os.environ.setdefault(REUSE_TIMEOUT, LONG_TIMEOUT)
    run, evaluation = RunSpec(**config["run"]["spec"]), EvaluationSpec(**config["evaluation"])
    corpus = cached_corpus(config["corpus"])
    # From the plan: a trial that only drives workers need not read the corpus for it.
    description = RunDescription(**config["run"]["description"])
    place = place_below(config["directory"], f"runs/{description.run_id}")
    # On storage, log.txt of a multi-worker run is written by its first worker, not by this driver.
    log = DRIVER_LOG if is_uri(place) and run.resources.workers > 1 else LOG_FILE
    with working_folder(place, LOG_FILE, "record.json", EVENT_FILES) as folder:
        try:
            with log_to(folder, log):
                record, curve = _train_here(run, corpus, evaluation, description, folder, place)
                if record.status == "done":
                    states = checkpoint_place(run, record.run_id, place)
                    last = record.steps
                    if not export_run(folder, states, run, record.run_id, corpus, last):
                        raise OSError(f"the checkpoint of step {last} is damaged")
        except Exception as error:
            if is_lost(error):
                _die(place, error)
            if isinstance(error, OSError) and not isinstance(error, PERMANENT_ERRORS):
                # Trouble of a disk or of storage is none of the run: Tune starts the trial again.
                _keep_trace(place, error)
                time.sleep(TROUBLE_SECONDS)
                raise
            reason, trace = error.args if isinstance(error, LoopError) else describe_error(error)
            (folder / "error.txt").write_text(trace, encoding="utf-8")
            record, curve = description.to_record("failed", error=reason), []
        # Training knows no study; the record gets its name where it joins one.
        record = record.model_copy(update={"study": description.study})
        write_run(folder, run, record, curve)
    ended = {"status": record.status, "error": record.error, "loss": record.loss}
    tune.report({**ended, "step": record.steps, "steps": record.steps})


def _die(place: str, error: Exception) -> None:
    """End this process, whose CUDA is unusable: every later run of it would fail, too.

    Tune starts the trial again in another process, and gives up after a few times.
    """
    _keep_trace(place, error)
    os._exit(1)


def _keep_trace(place: str, error: Exception) -> None:
    """Write the traceback into the run's folder, if it can be written."""
    with suppress(ClueRayError, OSError):
        write_file(place, "error.txt", describe_error(error)[1].encode())


def _train_here(
    run: RunSpec,
    corpus: Corpus,
    evaluation: EvaluationSpec,
    description: RunDescription,
    folder: Path,
    place: str,
) -> tuple[RunRecord, list[dict[str, float]]]:
    """Train in this process, or drive the workers that train.

    Args:
        folder: The run's folder on this node.
        place: Folder or URI of the run that all nodes can write.
    """
    states = checkpoint_place(run, description.run_id, place)
    with data_pool():
        if run.resources.workers > 1:
            return train_on_workers(run, corpus.place, evaluation, folder, place, states)
        torch.set_num_threads(run.resources.cpus_per_worker)
        streamed = run.resources.feed == "ray_data"
        stream = make_stream(run, corpus.place, states, 0, 1) if streamed else None
        with CurveEvents(folder, description) as events:
            return train_with(run, corpus, evaluation, TrialContext(states, events, stream))


def checkpoint_place(run: RunSpec, run_id: str, place: str) -> str:
    """Return the folder or URI of a run's checkpoints.

    It lies below `resources.checkpoints` where that is set, otherwise in the run's own place.
    """
    kept = run.resources.checkpoints
    return place_below(place, "checkpoints") if kept is None else place_below(kept, run_id)


class TrialContext(LocalContext):
    """The context of a one-worker run: checkpoints, TensorBoard events, and progress for Tune."""

    def __init__(self, place: str, events: CurveEvents, stream: Dataset | None = None):
        super().__init__(place)
        self.events, self.stream = events, stream

    def restore(self) -> dict[str, Any] | None:
        """Read the last checkpoint, and write its learning curve to the event file."""
        state = super().restore()
        if state:
            self.events.show(state["curve"])
        return state

    def save(self, state: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Write a checkpoint and the learning curve so far."""
        super().save(state, metrics)
        self.events.show(state["curve"])

    def progress(self, metrics: dict[str, Any]) -> None:
        """Report metrics to Tune."""
        tune.report(metrics)

    def source(self, pack: Pack) -> Pack:
        """Pack in this process, or take shares from the stream of Ray Data."""
        return pack if self.stream is None else Stream(self.stream.iterator(), pack)


@lru_cache(maxsize=2)
def cached_corpus(path: str) -> Corpus:
    """Open a corpus once for all runs of a reused actor; the study has verified its checksums."""
    return open_corpus(path, verify=False)
