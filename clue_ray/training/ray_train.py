"""One run on several workers, through Ray Train (`TorchTrainer`): the same loop, another context.

Called inside a Tune trial that holds no CPU of its own, so that the workers find theirs (decision
D11). A worker that is lost (killed, out of memory, its node gone) costs a new start from the last
checkpoint, a few times; an error of the run itself ends it, as it would come again.
"""

import itertools
import logging
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from clue_ray.corpus.store import open_corpus
from clue_ray.errors import StudyError
from clue_ray.runs import RunRecord
from clue_ray.spec.specs import EvaluationSpec, RunSpec
from clue_ray.storage.sync import working_folder
from clue_ray.training.checkpoints import load_state, save_state
from clue_ray.training.counters import describe_run
from clue_ray.training.loop import train_with
from clue_ray.training.tensorboard import LOG_FILE, CurveEvents, log_to

LOST_WORKERS = 3
"""Times that a run goes on after losing workers."""
PREEMPTIONS = 20
"""Times that it goes on after a cloud took a node back, which is nobody's fault."""
CONTROLLER_FAILURES = 5
"""Tries to place the workers, a minute each; Ray's default is to try for ever."""
LOST_CONTACT = (
    "gloo/transport",
    "NCCL error",
    "NCCL communicator",
    "Connection closed by peer",
    "Connection reset by peer",
)
"""Words of the errors that a lost worker leaves in the others."""


logger = logging.getLogger(__name__)


class LoopError(Exception):
    """An error of the run itself, on one worker: it would come again, so nobody tries again.

    Attributes:
        reason, trace: kind and words of what was raised, and its traceback, as the error may not
            travel itself.
    """

    def __init__(self, reason: str, trace: str):
        super().__init__(reason, trace)
        self.reason, self.trace = reason, trace


@dataclass
class RayContext:
    """A Ray Train worker as the loop sees it; the first worker keeps state and curve for all."""

    directory: str
    events: CurveEvents | None
    "the first worker's"
    rank: int = field(default_factory=lambda: ray.train.get_context().get_world_rank())
    world_size: int = field(default_factory=lambda: ray.train.get_context().get_world_size())

    def restore(self) -> dict[str, Any] | None:
        """Read the state that the first worker chose; a barrier."""
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
        """Keep the state and report; a barrier, so every worker calls it."""
        if self.events:
            save_state(self.directory, state)
            self.events.show(state["curve"])
        ray.train.report(metrics)

    def progress(self, metrics: dict[str, Any]) -> None:
        """Do nothing: every report of Ray Train is a barrier over the workers."""


def train_on_workers(
    run: RunSpec,
    corpus: str,
    evaluation: EvaluationSpec,
    study: str,
    folder: Path,
    place: str,
    checkpoints: str,
) -> tuple[RunRecord, list[dict[str, float]]]:
    """Train a run on `run.resources.workers` workers, from its last checkpoint where there is one.

    Args:
        corpus: folder or URI.
        folder: this node's for the run.
        place: folder or URI of the run that all nodes can write.
        checkpoints: folder or URI of its states.

    Raises:
        LoopError: the run itself failed.
        TrainingFailedError, RayActorError: workers, or what watches over them, were lost too often.
    """
    job = {
        "run": run.model_dump(mode="json"),
        "corpus": corpus,
        "evaluation": evaluation.model_dump(mode="json"),
        "study": study,
        "folder": str(folder),
        "place": place,
        "checkpoints": checkpoints,
    }
    for tries in itertools.count(1):
        try:
            outcome: Any = make_trainer(run, job).fit().return_value
            return RunRecord(**outcome["record"]), outcome["curve"]
        except (WorkerGroupError, RayActorError) as error:
            lost = list(getattr(error, "worker_failures", {0: error}).values())
            for failure in lost:
                if isinstance(failure, LoopError):
                    raise failure from None
            if tries > LOST_WORKERS:
                raise
            reason = str(getattr(lost[0], "health_check_failure", lost[0])).split("\n")[0]
            logger.warning(
                "Workers were lost (%.200s); try %d of %d.", reason, tries + 1, LOST_WORKERS + 1
            )
    raise AssertionError("the last try returns or raises")


def make_trainer(run: RunSpec, job: dict[str, Any]) -> TorchTrainer:
    """Set up Ray Train for a run; what is tried again is decided in `train_on_workers`, not by
    Ray.
    """
    resources = run.resources
    return TorchTrainer(
        _run_worker,
        train_loop_config=job,
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
        ),
    )


def _run_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Train one worker's share; every worker returns the record, Ray Train keeps the first
    one's.
    """
    try:
        return _train_share(job)
    except Exception as error:
        if any(sign in str(error) for sign in LOST_CONTACT):
            raise
        raise LoopError(*explain_failure(error)) from None


def explain_failure(error: Exception) -> tuple[str, str]:
    """Return the kind and first line of an error, and its traceback."""
    if isinstance(error, LoopError):
        return error.reason, error.trace
    words = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {words}", "".join(traceback.format_exception(error))


def _train_share(job: dict[str, Any]) -> dict[str, Any]:
    run, evaluation = RunSpec(**job["run"]), EvaluationSpec(**job["evaluation"])
    torch.set_num_threads(run.resources.cpus_per_worker)
    corpus = open_corpus(job["corpus"], verify=False)
    with ExitStack() as stack:
        events = None
        if ray.train.get_context().get_world_rank() == 0:
            folder = stack.enter_context(working_folder(job["place"], fetch=LOG_FILE))
            stack.enter_context(log_to(folder))
            known = describe_run(run, corpus, evaluation, job["study"])
            events = stack.enter_context(CurveEvents(folder, known))
        context = RayContext(job["checkpoints"], events)
        record, curve = train_with(run, corpus, evaluation, context, job["study"])
    return {"record": record.model_dump(mode="json"), "curve": curve}
