"""One run on several workers, through Ray Train (`TorchTrainer`): the same loop, another context.

It is called inside a Tune trial that holds no CPU itself, so that the workers find theirs (decision
D11). If a worker is lost (killed, out of memory, its node gone), the run starts again from its last
checkpoint, a few times. If the cluster has no room for the workers, the run waits, as a run of one
worker does. An error of the run itself ends it, as a retry would raise it again.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray import tune
from ray.exceptions import RayActorError
from ray.train import (
    ControllerError,
    DataConfig,
    FailureConfig,
    LoggingConfig,
    PreemptionError,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
)
from ray.tune.integration.ray_train import TuneReportCallback

from clue_ray.corpus.store import open_corpus
from clue_ray.errors import StudyError, describe_error
from clue_ray.runs import RunRecord
from clue_ray.spec.specs import EvaluationSpec, RunSpec
from clue_ray.storage.files import PERMANENT_ERRORS
from clue_ray.storage.sync import working_folder
from clue_ray.training.checkpoints import StateWriter, load_state
from clue_ray.training.counters import describe_run
from clue_ray.training.device import is_lost, memory_setting
from clue_ray.training.feed import Pack
from clue_ray.training.loop import train_with
from clue_ray.training.streams import Stream, make_stream, ordered
from clue_ray.training.tensorboard import EVENT_FILES, LOG_FILE, CurveEvents, log_to

LOST_WORKERS = 3
"""Times that a run resumes after losing workers without a new checkpoint in between."""
PREEMPTIONS = 20
"""Times that it resumes after a cloud took a node back, which is not a sign of a broken run."""
CONTROLLER_FAILURES = 5
"""Further attempts of Ray to place the workers, a minute each, before the run says that it waits;
Ray's default has no limit."""
LOSSES = (WorkerGroupError, PreemptionError, RayActorError, WorkerGroupStartupFailedError)
"""Errors of lost workers, the last one of workers that were lost while they started."""
LOST, WAITING = "lost", "waiting"
"""Keys of a report to Ray Tune that says why workers were lost, or why a run waits."""
LOST_CONTACT = (
    "gloo/transport",
    "NCCL error",
    "NCCL communicator",
    "Connection closed by peer",
    "Connection reset by peer",
)
"""Fragments of the errors that the loss of a worker causes in the others."""


logger = logging.getLogger(__name__)


class LoopError(Exception):
    """An error of the run itself, raised on one worker; a retry would raise it again.

    It carries text, because the original error may not be picklable.

    Args:
        reason: type and first line of the original error.
        trace: its traceback.
    """

    def __init__(self, reason: str, trace: str):
        super().__init__(reason, trace)
        self.reason, self.trace = reason, trace


@dataclass
class RayContext:
    """A Ray Train worker's context; the first worker keeps state and curve for all."""

    directory: str
    events: CurveEvents | None
    "on the first worker only"
    streamed: bool = False
    "whether Ray Data packs the batches"
    rank: int = field(default_factory=lambda: ray.train.get_context().get_world_rank())
    world_size: int = field(default_factory=lambda: ray.train.get_context().get_world_size())

    @cached_property
    def writer(self) -> StateWriter:
        """Writes the states."""
        return StateWriter(self.directory)

    def restore(self) -> dict[str, Any] | None:
        """Read the state that the first worker chose; a barrier.

        Only one worker chooses: storage may list a new state to some workers and not to others.
        """
        state = load_state(self.directory) if self.rank == 0 else None
        step = broadcast_from_rank_zero(state and state["progress"]["step"])
        if self.rank and step is not None:
            state = load_state(self.directory, step)
            if state is None:
                raise StudyError(
                    f"Worker {self.rank} cannot read the checkpoint of step {step} at "
                    f"{self.directory}."
                )
        if self.events and state:
            self.events.show(state["curve"])
        return state

    def save(self, state: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Start to write the state and report it; a barrier, so every worker must call it."""
        if self.events:
            self.writer.write(state)
            self.events.show(state["curve"])
        ray.train.report(metrics)

    def progress(self, metrics: dict[str, Any]) -> None:
        """Do nothing, as every report of Ray Train is a barrier over the workers."""

    def flush(self) -> None:
        """Wait until the last state is written."""
        self.writer.close()

    def source(self, pack: Pack) -> Pack:
        """Pack in this process, or take shares from this worker's stream."""
        if not self.streamed:
            return pack
        return Stream(ray.train.get_dataset_shard(_stream_name(self.rank)), pack)


def _stream_name(rank: int) -> str:
    return f"rank-{rank}"


def train_on_workers(
    run: RunSpec,
    corpus: str,
    evaluation: EvaluationSpec,
    folder: Path,
    place: str,
    checkpoints: str,
) -> tuple[RunRecord, list[dict[str, float]]]:
    """Train a run on `run.resources.workers` workers, from its last checkpoint if there is one.

    Args:
        corpus: folder or URI.
        folder: this node's for the run.
        place: folder or URI of the run that all nodes can write.
        checkpoints: folder or URI of its states.

    Raises:
        LoopError: the run itself failed.
        WorkerGroupError, PreemptionError: workers were lost too often without progress.
        RayActorError: the controller of the workers was lost too often.
        WorkerGroupStartupFailedError: workers were lost too often while they started.
        Exception: the controller failed, as where its disk is full.
    """
    job = {
        "run": run.model_dump(mode="json"),
        "corpus": corpus,
        "evaluation": evaluation.model_dump(mode="json"),
        "folder": str(folder),
        "place": place,
        "checkpoints": checkpoints,
    }
    tries, kept = 0, _kept_step(checkpoints)
    while True:
        try:
            outcome: Any = make_trainer(run, job).fit().return_value
            return RunRecord(**outcome["record"]), outcome["curve"]
        except (TrainingFailedError, RayActorError) as error:
            cause = error.controller_failure if isinstance(error, ControllerError) else error
            if isinstance(cause, WorkerGroupStartupTimeoutError):
                # No room says nothing about the run, so it does not count.
                tune.report({WAITING: _explain_wait(cause)})
                continue
            tries += 1
            if (now := _kept_step(checkpoints)) > kept:
                tries, kept = 1, now
            tune.report({LOST: _explain_loss(cause, tries)})


def _explain_wait(cause: WorkerGroupStartupTimeoutError) -> str:
    reason = f"the cluster has no room for {cause.num_workers} workers"
    logger.warning("The run waits: %s.", reason)
    return reason


def _explain_loss(cause: Exception, tries: int) -> str:
    """Return why a run starts again; raise the error that ends it instead.

    Args:
        tries: times that it lost workers without a new checkpoint in between.
    """
    lost = list((getattr(cause, "worker_failures", None) or {0: cause}).values())
    if failure := next((each for each in lost if isinstance(each, LoopError)), None):
        raise failure from None
    if tries > LOST_WORKERS or not isinstance(cause, LOSSES):
        raise cause
    reason = str(getattr(lost[0], "health_check_failure", lost[0])).split("\n")[0][:300]
    logger.warning("Workers were lost (%.200s); try %d of %d.", reason, tries + 1, LOST_WORKERS + 1)
    return reason


def _kept_step(checkpoints: str) -> int:
    """Return the step of the last whole checkpoint; -1 where there is none."""
    state = load_state(checkpoints, where="meta")
    return -1 if state is None else int(state["progress"]["step"])


def make_trainer(run: RunSpec, job: dict[str, Any]) -> TorchTrainer:
    """Build the Ray Train trainer of a run, without Ray's own retries.

    `train_on_workers` decides what to retry: Ray does not distinguish a lost worker from an error.
    """
    resources = run.resources
    return TorchTrainer(
        _run_worker,
        train_loop_config=job,
        # Called when the workers start, so that a group that starts again resumes its streams.
        datasets={
            _stream_name(rank): partial(
                make_stream, run, job["corpus"], job["checkpoints"], rank, resources.workers
            )
            for rank in range(resources.workers)
            if resources.feed == "ray_data"
        },
        dataset_config=DataConfig(datasets_to_split=[], execution_options=ordered()),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={
                "CPU": float(resources.cpus_per_worker),
                "GPU": resources.gpus_per_worker,
            },
        ),
        run_config=RunConfig(
            name="workers",
            storage_path=job["folder"],
            callbacks=[TuneReportCallback()],
            failure_config=FailureConfig(
                max_failures=0,
                controller_failure_limit=CONTROLLER_FAILURES,
                max_preemption_failures=PREEMPTIONS,
            ),
            logging_config=LoggingConfig(log_level="ERROR"),
            # Ray Train calls CUDA before the run does, and torch's allocator reads this only once.
            worker_runtime_env={"env_vars": memory_setting()} if resources.gpus_per_worker else {},
        ),
    )


def _run_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Train one worker's share; every worker returns the record, and Ray Train keeps the first."""
    try:
        return _train_share(job)
    except Exception as error:
        if is_lost(error) or any(sign in str(error) for sign in LOST_CONTACT):
            raise
        if isinstance(error, OSError) and not isinstance(error, PERMANENT_ERRORS):
            raise  # trouble of a disk or of storage, which may pass
        raise LoopError(*describe_error(error)) from None


def _train_share(job: dict[str, Any]) -> dict[str, Any]:
    run, evaluation = RunSpec(**job["run"]), EvaluationSpec(**job["evaluation"])
    torch.set_num_threads(run.resources.cpus_per_worker)
    corpus = open_corpus(job["corpus"], verify=False)
    with ExitStack() as stack:
        events = None
        if ray.train.get_context().get_world_rank() == 0:
            folder = stack.enter_context(working_folder(job["place"], LOG_FILE, stale=EVENT_FILES))
            stack.enter_context(log_to(folder))
            description = describe_run(run, corpus, evaluation)
            events = stack.enter_context(CurveEvents(folder, description))
        context = RayContext(job["checkpoints"], events, run.resources.feed == "ray_data")
        record, curve = train_with(run, corpus, evaluation, context)
    return {"record": record.model_dump(mode="json"), "curve": curve}
