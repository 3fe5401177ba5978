"""The training loop: one for every launcher (decision D9). It imports no ray.

A launcher hands over a `Context`: which worker this is, where state is kept, whom to tell of progress.
`train_run` is the plain one: this process, no Ray.
"""

import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from clue_ray.compute import Work, train_flops
from clue_ray.corpus.store import Corpus
from clue_ray.encoder.batches import BatchSampler, Packed, count_executed, pack
from clue_ray.encoder.loss import info_nce
from clue_ray.encoder.model import Encoder
from clue_ray.runs import RunRecord
from clue_ray.spec import EvaluationSpec, RunSpec
from clue_ray.training.caching import cached_backward, split_windows
from clue_ray.training.checkpoints import load_state, save_state
from clue_ray.training.evaluate import Pools, evaluate, make_pools
from clue_ray.training.prefetch import Prefetch
from clue_ray.training.progress import Progress, describe_run
from clue_ray.training.schedule import learning_rate_share, make_optimizer, resolve_steps, set_learning_rate

PROGRESS_REPORTS = 20


class Context(Protocol):
    """What a launcher offers the loop."""

    rank: int
    world_size: int

    def restore(self) -> dict[str, Any] | None:
        """Return the last saved state, or None at a fresh start."""

    def save(self, state: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Keep a state; every worker calls it at the same steps."""

    def progress(self, metrics: dict[str, Any]) -> None:
        """Hear that the run is alive."""


@dataclass
class LocalContext:
    """One process; state in a folder, or nowhere."""

    directory: Path | None = None
    rank: int = 0
    world_size: int = 1

    def restore(self) -> dict[str, Any] | None:
        """Read the folder's state."""
        return load_state(self.directory) if self.directory else None

    def save(self, state: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Write the folder's state."""
        if self.directory:
            save_state(self.directory, state)
        self.progress(metrics)

    def progress(self, metrics: dict[str, Any]) -> None:
        """Do nothing; a launcher that shows progress overrides it."""


class Batch(NamedTuple):
    """One worker's share of a global batch, packed in one chunk or several, and the work the whole batch asks for."""

    chunks: list[Packed]
    work: Work


class Trainer:
    """One run on one worker: model, optimiser, batches and what has been counted so far."""

    def __init__(self, run: RunSpec, corpus: Corpus, evaluation: EvaluationSpec, context: Context):
        if run.train.global_batch_size % context.world_size:
            raise ValueError(
                f"batch of {run.train.global_batch_size} does not divide over {context.world_size} workers"
            )
        self.run, self.corpus, self.evaluation, self.context = run, corpus, evaluation, context
        self.pools: Pools = make_pools(corpus, evaluation.candidates)
        self.sampler = BatchSampler(run, corpus)
        self.steps = resolve_steps(run, self.sampler)
        self.device = torch.device("cuda" if run.resources.gpus_per_worker and torch.cuda.is_available() else "cpu")
        vocabulary = corpus.vocabulary(run.sequence_length)
        self.model = Encoder(run.encoder, vocabulary, run.train.temperature, run.train.seed).to(self.device)
        self.optimizer = make_optimizer(self.model, run.train, run.encoder.width)
        self.state = Progress()
        self.curve: list[dict[str, float]] = []
        self._restore()

    @cached_property
    def forward(self) -> torch.nn.Module:
        """The model, wrapped for gradient averaging where there are several workers."""
        return DistributedDataParallel(self.model) if self.context.world_size > 1 else self.model

    @property
    def evaluation_steps(self) -> int:
        """Steps between two points of the learning curve."""
        return max(1, math.ceil(self.steps * self.evaluation.every))

    def train(self) -> bool:
        """Train to the horizon; return False when the loss stopped being finite."""
        with Prefetch(self.prepare, self.steps) as batches:
            return self._train(batches)

    def _train(self, batches: Prefetch[Batch]) -> bool:
        while self.state.step < self.steps:
            started = time.perf_counter()
            if not self.step(batches(self.state.step)):
                return False
            last = self.state.step == self.steps
            if last or self.state.step % self.evaluation_steps == 0:
                self._evaluate()
            self.state.wall_seconds += time.perf_counter() - started
            if last or self.state.step % self.evaluation_steps == 0:
                self.context.save(self._snapshot(), self._metrics())
            elif self.state.step % max(1, self.steps // PROGRESS_REPORTS) == 0:
                self.context.progress(self._metrics())
        return True

    def prepare(self, step: int) -> Batch:
        """Draw and pack this worker's share of a global batch."""
        windows = self.sampler.worker_windows(step, self.context.rank, self.context.world_size)
        users = self.run.resources.users_per_chunk or len(windows.lengths)
        chunks = [pack(self.corpus, chunk) for chunk in split_windows(windows, users)]
        return Batch(chunks, self.sampler.work(step))

    def step(self, batch: Batch) -> bool:
        """Train one step; return False when the loss is not finite, with the weights as they were."""
        train = self.run.train
        set_learning_rate(self.optimizer, learning_rate_share(self.state.step, self.steps, train.warmup))
        self.optimizer.zero_grad(set_to_none=True)
        mean_loss = self._mean(self.backward(batch.chunks))
        if not math.isfinite(mean_loss):
            return False
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), train.clip_norm)
        self.optimizer.step()
        workers = self.context.world_size
        matrices = 1 if workers == 1 else 2  # a worker's rows and its columns overlap in one block only
        similarities = matrices * train.global_batch_size**2 // workers
        self.state.add(batch.work, sum(map(count_executed, batch.chunks), Work(similarities=similarities)), mean_loss)
        return True

    def backward(self, chunks: list[Packed]) -> torch.Tensor:
        """Accumulate the gradient of a worker's share of a batch and return its loss."""
        chunks = [chunk.to(self.device) for chunk in chunks]
        if len(chunks) > 1:
            return cached_backward(self.forward, chunks, info_nce)
        users, scale = self.forward(chunks[0])
        first, second = users.chunk(2)
        loss = info_nce(first, second, scale)
        loss.backward()
        return loss.detach()

    def _mean(self, loss: torch.Tensor) -> float:
        if self.context.world_size > 1:
            dist.all_reduce(loss)
            loss /= self.context.world_size
        return loss.item()

    def _evaluate(self) -> None:
        if self.context.rank:
            return
        scores = evaluate(self.model, self.corpus, self.pools, self.run.sequence_length)
        self.curve.append(
            {
                "step": self.state.step,
                "train_flops": float(train_flops(self.run.encoder, self.state.work)),
                **scores._asdict(),
                "train_loss": self.state.train_loss,
            }
        )

    def _metrics(self) -> dict[str, Any]:
        latest = self.curve[-1]["loss"] if self.curve else None
        return {
            "step": self.state.step,
            "steps": self.steps,
            "train_loss": self.state.train_loss,
            "loss": latest,
        }

    def _snapshot(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": self.state.to_dict(),
            "curve": self.curve,
        }

    def _restore(self) -> None:
        saved = self.context.restore()
        if saved is None:
            return
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state = Progress.from_dict(saved["progress"])
        self.curve = list(saved["curve"])

    def results(self) -> dict[str, Any]:
        """Return the columns of the runs table that only training can fill."""
        last = self.curve[-1] if self.curve else {}
        scores = {key: last.get(key) for key in ("loss", "recall_at_10", "mrr")}
        return {**self.state.results(self.run, self.context.world_size), **scores, "device": self.device.type}


def train_with(
    run: RunSpec, corpus: Corpus, evaluation: EvaluationSpec, context: Context, study: str = ""
) -> tuple[RunRecord, list[dict[str, float]]]:
    """Train one run under a launcher's context; return its record and learning curve."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    trainer = Trainer(run, corpus, evaluation, context)
    finite = trainer.train()
    known = describe_run(run, corpus, evaluation, study)
    outcome: dict[str, Any] = {"status": "done"}
    if not finite:
        outcome = {"status": "diverged", "error": f"loss was not finite at step {trainer.state.step + 1}"}
    return RunRecord(**{**known, **trainer.results(), **outcome, "started_at": started}), trainer.curve


def train_run(run: RunSpec, corpus: Corpus, evaluation: EvaluationSpec | None = None) -> RunRecord:
    """Train one run in this process, without Ray, and return its record."""
    return train_with(run, corpus, evaluation or EvaluationSpec(), LocalContext())[0]
