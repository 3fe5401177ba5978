"""The training loop: one for every launcher (decision D9). It imports no ray.

A launcher passes a `Context`: which worker this is, where state is kept, who hears of progress.
`train_run` uses the simplest one: this process, without Ray. Batches are drawn and packed ahead, by
a thread, while the model trains.
"""

import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.nn.parallel import DistributedDataParallel

from clue_ray.batches.packing import Packed, count_executed
from clue_ray.batches.sampler import BatchSampler
from clue_ray.corpus.store import Corpus
from clue_ray.encoder.loss import OBJECTIVES, at_temperature, count_similarities
from clue_ray.encoder.model import Encoder
from clue_ray.runs import RunRecord, is_at_bound
from clue_ray.spec.compute import Work, train_flops
from clue_ray.spec.specs import EvaluationSpec, RunSpec
from clue_ray.training.checkpoints import check_run_id, load_state, save_state
from clue_ray.training.counters import Counters, describe_run, peak_memory
from clue_ray.training.evaluate import USERS_AT_ONCE, evaluate
from clue_ray.training.gradient_cache import Loss, cached_backward, split_rows
from clue_ray.training.pools import make_pools
from clue_ray.training.schedule import (
    learning_rate_share,
    make_optimizer,
    resolve_steps,
    set_learning_rate,
)

PROGRESS_REPORTS = 20
"""Reports of progress per run, besides those of the evaluations."""

Prepared = TypeVar("Prepared")
logger = logging.getLogger(__name__)


class Context(Protocol):
    """What a launcher offers the loop."""

    rank: int
    world_size: int

    @property
    def directory(self) -> str | Path | None:
        """Folder or URI where states are kept."""

    def restore(self) -> dict[str, Any] | None:
        """Return the last saved state, or None at a fresh start."""

    def save(self, state: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Keep a state; every worker calls it at the same steps."""

    def progress(self, metrics: dict[str, Any]) -> None:
        """Report that the run is alive."""

    def source(self, pack: "Pack") -> "Pack":
        """Return what gives this worker its share of each batch: `pack`, or who packs for it."""


@dataclass
class LocalContext:
    """One process; state in a folder, or nowhere."""

    directory: str | Path | None = None
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

    def source(self, pack: "Pack") -> "Pack":
        """Pack in this process."""
        return pack


class Prefetch(Generic[Prepared]):
    """Calls `prepare(step)` up to `ahead` steps early; a context that ends its thread.

    A batch is a function of its step alone (decision D7), so a checkpoint need not hold what was
    prepared.
    """

    def __init__(self, prepare: Callable[[int], Prepared], last: int, ahead: int = 2):
        self.prepare, self.last, self.ahead = prepare, last, ahead
        self.pool = ThreadPoolExecutor(1)
        self.waiting: dict[int, Future[Prepared]] = {}

    def __enter__(self) -> "Prefetch[Prepared]":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def __call__(self, step: int) -> Prepared:
        """Return the batch of a step, and start preparing the next ones."""
        for coming in range(step, min(step + self.ahead, self.last - 1) + 1):
            if coming not in self.waiting:
                self.waiting[coming] = self.pool.submit(self.prepare, coming)
        return self.waiting.pop(step).result()


class Batch(NamedTuple):
    """One worker's share of a global batch."""

    chunks: list[Packed]
    "its sequences, packed in one chunk or several"
    work: Work
    "of the whole batch"
    duplicate_ids: NDArray[np.int64] | None
    masked_pairs: int
    is_one_service: bool
    "these three as in `GlobalBatch`"


Pack = Callable[[int], Batch]
"""Returns the share of a step; steps are asked for in order."""


def pack_share(sampler: BatchSampler, run: RunSpec, rank: int, world_size: int, step: int) -> Batch:
    """Draw global batch `step` and pack one worker's share of it."""
    batch = sampler.batch(step)
    rows = batch.rows_of(rank, world_size)
    users = run.resources.users_per_chunk or len(rows)
    chunks = [batch.pack(chunk) for chunk in split_rows(rows, users)]
    return Batch(chunks, batch.work, batch.duplicate_ids, batch.masked_pairs, batch.is_one_service)


class Trainer:
    """One run on one worker: model, optimizer, batches and counters."""

    def __init__(self, run: RunSpec, corpus: Corpus, evaluation: EvaluationSpec, context: Context):
        if run.train.global_batch_size % context.world_size:
            raise ValueError(
                f"a global batch of {run.train.global_batch_size} users does not divide over "
                f"{context.world_size} workers"
            )
        self.run, self.corpus, self.evaluation, self.context = run, corpus, evaluation, context
        self.pools = make_pools(corpus, evaluation.candidates)
        self.sampler = BatchSampler(run, corpus)
        self.steps = resolve_steps(run, self.sampler)
        pack = partial(pack_share, self.sampler, run, context.rank, context.world_size)
        self.prepare = context.source(pack)
        self.device = choose_device(run.resources.gpus_per_worker)
        vocabulary, train = corpus.vocabulary(run.sequence_length), run.train
        self.model = Encoder(
            run.encoder, vocabulary, train.temperature, train.seed, train.precision
        ).to(self.device)
        self.optimizer = make_optimizer(self.model, train)
        self.state = Counters()
        self.curve: list[dict[str, float]] = []
        self.gradient_norm = math.nan
        self.run_id = run.run_id(corpus.digest, evaluation.candidates)
        self._restore()

    @cached_property
    def forward(self) -> torch.nn.Module:
        """The model, wrapped to average gradients if there are several workers."""
        return DistributedDataParallel(self.model) if self.context.world_size > 1 else self.model

    @property
    def evaluation_steps(self) -> int:
        """Steps between two points of the learning curve."""
        return max(1, math.ceil(self.steps * self.evaluation.every))

    def train(self) -> bool:
        """Train to the horizon; return False if the loss stopped being finite."""
        with Prefetch(self.prepare, self.steps) as batches:
            return self._train(batches)

    def _train(self, batches: Prefetch[Batch]) -> bool:
        while self.state.step < self.steps:
            started = time.perf_counter()
            if not self.step(batches(self.state.step)):
                return False
            self.state.wall_seconds += time.perf_counter() - started
            if self.state.step == self.steps or self.state.step % self.evaluation_steps == 0:
                self._evaluate()
                self.context.save(self._snapshot(), self._metrics())
            elif self.state.step % max(1, self.steps // PROGRESS_REPORTS) == 0:
                self.context.progress(self._metrics())
        return True

    def step(self, batch: Batch) -> bool:
        """Train one step; if loss or gradient is not finite, keep the weights and return False."""
        train = self.run.train
        set_learning_rate(self.optimizer, learning_rate_share(self.state.step, self.steps, train))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._mean_over_workers(self._backward(batch))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), train.clip_norm)
        # Both numbers cross to the host together: the step's only wait for the device.
        mean_loss, self.gradient_norm = torch.stack([loss, norm]).tolist()
        if not (math.isfinite(mean_loss) and math.isfinite(self.gradient_norm)):
            return False
        self.optimizer.step()
        self.model.clamp_temperature()
        self.state.add(batch.work, self._count_executed(batch), mean_loss, batch.masked_pairs)
        return True

    def _backward(self, batch: Batch) -> torch.Tensor:
        """Accumulate the gradient of a worker's share of a batch; return its loss, detached."""
        chunks = [chunk.to(self.device) for chunk in batch.chunks]
        objective = self._objective(batch)
        if len(chunks) > 1:
            return cached_backward(self.forward, chunks, objective)
        users, logit = self.forward(chunks[0])
        first, second = users.chunk(2)
        loss = objective(first, second, logit)
        loss.backward()
        return loss.detach()

    def _objective(self, batch: Batch) -> Loss:
        numbers = batch.duplicate_ids
        ids = None if numbers is None else torch.from_numpy(numbers).to(self.device)
        objective: Loss = partial(OBJECTIVES[self.run.train.objective], duplicate_ids=ids)
        # Two halves of one history are easier to match than two services. The learned temperature
        # belongs to the harder task, on which the encoder is scored.
        if batch.is_one_service:
            return at_temperature(objective, self.run.train.temperature)
        return objective

    def _mean_over_workers(self, loss: torch.Tensor) -> torch.Tensor:
        if self.context.world_size > 1:
            dist.all_reduce(loss)
            loss /= self.context.world_size
        return loss

    def _count_executed(self, batch: Batch) -> Work:
        train, workers = self.run.train, self.context.world_size
        similarities = count_similarities(train.objective, train.global_batch_size, workers)
        return sum(map(count_executed, batch.chunks), Work(similarities=similarities))

    def _evaluate(self) -> None:
        """Add a point to the learning curve; the time it takes counts as the run's."""
        if self.context.rank:
            return
        started = time.perf_counter()
        at_once = min(USERS_AT_ONCE, self.run.resources.users_per_chunk or USERS_AT_ONCE)
        scores = evaluate(self.model, self.corpus, self.pools, self.run.sequence_length, at_once)
        self.state.wall_seconds += time.perf_counter() - started
        if self.state.step == self.steps and is_at_bound(scores.calibrated_temperature):
            logger.warning(
                "The calibrated temperature of run %s ended at its bound, %.3g: %s.",
                self.run_id,
                scores.calibrated_temperature,
                "the vectors of validation users hardly differ, or do not match",
            )
        group, train = self.optimizer.param_groups[0], self.run.train
        self.curve.append(
            {
                "step": self.state.step,
                "users_seen": self.state.step * train.global_batch_size,
                "train_flops": float(train_flops(self.run.encoder, self.state.work)),
                **scores._asdict(),
                "train_loss": self.state.train_loss,
                "learning_rate": train.learning_rate * group["lr"] / group["peak_lr"],
                "gradient_norm": self.gradient_norm,
                "temperature": (1 / self.model.scale).item(),
                "tokens_per_second": self.state.tokens_per_second,
                "memory_bytes": peak_memory(self.device),
                "masked_pairs": self.state.masked_pairs,
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
            "run_id": self.run_id,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": self.state.to_dict(),
            "curve": self.curve,
        }

    def _restore(self) -> None:
        saved = self.context.restore()
        workers = f"{self.context.world_size} worker{'s' * (self.context.world_size > 1)}"
        where = f"on {workers}, the first in process {os.getpid()} of {platform.node()}"
        if saved is None:
            logger.info("Run %s starts, %d steps %s.", self.run_id, self.steps, where)
            return
        check_run_id(saved, self.run_id, self.context.directory)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state = Counters.from_dict(saved["progress"])
        self.curve = list(saved["curve"])
        done = self.state.step
        logger.info("Run %s resumes after step %d of %d %s.", self.run_id, done, self.steps, where)

    def results(self) -> dict[str, Any]:
        """Return the columns of the runs table that only training can fill."""
        last = {
            key: value for key, value in (self.curve or [{}])[-1].items() if math.isfinite(value)
        }
        names = ("loss", "loss_at_training_temperature", "recall_at_10", "mrr")
        scores = {key: last.get(key) for key in names}
        return {
            **self.state.results(self.run, self.context.world_size),
            **scores,
            "device": self.device.type,
        }


def choose_device(gpus: float) -> torch.device:
    """Return a GPU if some are requested and torch sees one, otherwise the CPU.

    A requested GPU that torch does not see is a warning.
    """
    found = torch.cuda.is_available()
    if gpus and not found:
        logger.warning(
            "%g GPUs were requested and torch sees none: this run trains on the CPU.", gpus
        )
    return torch.device("cuda" if gpus and found else "cpu")


def train_with(
    run: RunSpec, corpus: Corpus, evaluation: EvaluationSpec, context: Context
) -> tuple[RunRecord, list[dict[str, float]]]:
    """Train one run under a launcher's context; return its record and learning curve."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with _explaining_memory(run, context.world_size):
        trainer = Trainer(run, corpus, evaluation, context)
        finite = trainer.train()
    results = trainer.results()
    outcome: dict[str, Any] = {"status": "done"}
    if not finite:
        outcome = {
            "status": "diverged",
            "error": f"loss or gradient was not finite at step {trainer.state.step + 1}",
        }
    elif context.rank == 0 and results["loss"] is None:
        outcome = {"status": "diverged", "error": "held-out loss was not finite at the end"}
    description = describe_run(run, corpus, evaluation)
    return description.to_record(**outcome, **results, started_at=started), trainer.curve


def train_run(run: RunSpec, corpus: Corpus, evaluation: EvaluationSpec | None = None) -> RunRecord:
    """Train one run in this process, without Ray, and return its record."""
    return train_with(run, corpus, evaluation or EvaluationSpec(), LocalContext())[0]


@contextmanager
def _explaining_memory(run: RunSpec, workers: int) -> Iterator[None]:
    """Turn an out-of-memory error of a GPU, of torch on the CPU or of numpy into one sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On a GPU torch raises its OutOfMemoryError, on the CPU a plain RuntimeError.
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and "DefaultCPUAllocator" not in str(error):
            raise
        batch = run.train.global_batch_size
        chunk = min(run.resources.users_per_chunk or batch, batch // workers)
        smaller = (
            f"set resources.users_per_chunk to {chunk // 2} or less (same gradient), or "
            if chunk > 1
            else ""
        )
        raise MemoryError(
            f"Out of memory: global_batch_size {batch} on {workers} workers, {chunk} users encoded "
            f"at a time; {smaller}lower global_batch_size, sequence_length or the encoder's size."
        ) from error
