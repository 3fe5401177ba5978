"""One run on several workers, through Ray Train (`TorchTrainer`): the same loop, another context.

Called inside a Tune trial that holds no CPU of its own, so that the workers find theirs (decision D11).
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from clue_ray.corpus.store import open_corpus
from clue_ray.runs import RunRecord
from clue_ray.spec import EvaluationSpec, RunSpec
from clue_ray.training.checkpoints import load_state, save_state
from clue_ray.training.loop import train_with

WORKER_FAILURES = 2
CONTROLLER_FAILURES = 5
"""Tries to place the workers, a minute each; Ray's default is to try for ever."""


@dataclass
class RayContext:
    """A Ray Train worker as the loop sees it; state travels in Ray checkpoints."""

    rank: int = field(default_factory=lambda: ray.train.get_context().get_world_rank())
    world_size: int = field(default_factory=lambda: ray.train.get_context().get_world_size())

    def restore(self) -> dict[str, Any] | None:
        """Read the state of the last reported checkpoint."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return load_state(Path(folder))

    def save(self, state: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Report metrics with a checkpoint of the first worker; a barrier, so every worker calls it."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                save_state(Path(folder), state)
                checkpoint = Checkpoint.from_directory(folder)
            name = f"step_{metrics['step']:08d}"
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)

    def progress(self, metrics: dict[str, Any]) -> None:
        """Do nothing: every report of Ray Train is a barrier over the workers."""


def train_on_workers(
    run: RunSpec, corpus_path: Path, evaluation: EvaluationSpec, study: str, directory: Path
) -> tuple[RunRecord, list[dict[str, float]]]:
    """Train a run on `run.resources.workers` workers; a run of the same directory resumes from its checkpoint."""
    resources = run.resources
    per_worker = {"CPU": float(resources.cpus_per_worker), "GPU": resources.gpus_per_worker}
    job = {
        "run": run.model_dump(mode="json"),
        "corpus": str(corpus_path),
        "evaluation": evaluation.model_dump(mode="json"),
        "study": study,
    }
    trainer = TorchTrainer(
        run_worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=per_worker,
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=str(directory),
            callbacks=[TuneReportCallback()],
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=WORKER_FAILURES, controller_failure_limit=CONTROLLER_FAILURES),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    outcome: Any = trainer.fit().return_value
    return RunRecord(**outcome["record"]), outcome["curve"]


def run_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Train one worker's share; every worker returns the record, Ray Train keeps the first one's."""
    run = RunSpec(**job["run"])
    torch.set_num_threads(run.resources.cpus_per_worker)
    corpus = open_corpus(job["corpus"], verify=False)
    record, curve = train_with(run, corpus, EvaluationSpec(**job["evaluation"]), RayContext(), job["study"])
    return {"record": record.model_dump(mode="json"), "curve": curve}
