"""The training loop: one for every launcher (decision D9). It imports no ray.

A launcher passes a `Context`: which worker this is, where state is kept, who hears of progress.
`train_run` uses the simplest one: this process, without Ray. Batches are drawn and packed ahead, by
a thread, while the model trains (`feed.py`); states are written by another one.
"""

import logging
import math
import os
import platform
import time
from collections import deque
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from clue_ray.batches.packing import Packed, count_executed
from clue_ray.batches.sampler import BatchSampler
from clue_ray.corpus.store import Corpus
from clue_ray.encoder.blocks import compile_blocks
from clue_ray.encoder.loss import OBJECTIVES, at_temperature, count_similarities
from clue_ray.encoder.model import Encoder
from clue_ray.runs import RunRecord, is_at_bound
from clue_ray.spec.compute import Work, train_flops
from clue_ray.spec.specs import EvaluationSpec, RunSpec
from clue_ray.training.checkpoints import check_run_id
from clue_ray.training.context import Context, LocalContext
from clue_ray.training.counters import Counters, describe_run, peak_memory
from clue_ray.training.device import choose_device, explaining_memory, free_device, log_peaks
from clue_ray.training.evaluate import USERS_AT_ONCE, Evaluation, evaluate
from clue_ray.training.feed import Batch, Feed, Prefetch, wait_for
from clue_ray.training.gradient_cache import Chunks, Loss, cached_backward, cut, reduces_in_bf16
from clue_ray.training.memory import MemoryShare, choose_memory
from clue_ray.training.pools import make_pools
from clue_ray.training.schedule import (
    learning_rate_share,
    make_optimizer,
    resolve_steps,
    set_learning_rate,
)

CHECKPOINT_SECONDS = 600.0
"""Longest time without a checkpoint, besides those at evaluations."""
PROGRESS_REPORTS = 20
"""Reports of progress per run, besides those of the evaluations."""

logger = logging.getLogger(__name__)


class Unread(NamedTuple):
    """A step whose numbers are still on their way to the host."""

    numbers: torch.Tensor
    "loss, norm of the gradient, and whether a checkpoint is due"
    arrived: torch.cuda.Event | None
    batch: Batch
    cached: bool
    "whether gradients were cached"


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
        self.device = choose_device(run.resources.gpus_per_worker, run.train.precision)
        vocabulary, train = corpus.vocabulary(run.sequence_length), run.train
        self.model = Encoder(
            run.encoder, vocabulary, train.temperature, train.seed, train.precision
        ).to(self.device)
        if run.resources.compile and self.device.type == "cuda":
            compile_blocks(self.model)
        self.optimizer = make_optimizer(self.model, train)
        self.state = Counters()
        self.curve: list[dict[str, float]] = []
        self.gradient_norm = math.nan
        share = context.rank, context.world_size
        self.prepare = Feed(self.sampler, share, context.source, self.model, self._cut)
        self.memory: MemoryShare | None = None
        self.unread: deque[Unread] = deque()
        self.lag = int(self.device.type == "cuda")
        self.broken: torch.Tensor | None = None
        self.due, self.saved = False, time.monotonic()
        self.run_id = run.run_id(corpus.digest, evaluation.candidates)
        self._restore()

    @cached_property
    def forward(self) -> torch.nn.Module:
        """The model, wrapped to average gradients if there are several workers."""
        if self.context.world_size == 1:
            return self.model
        wrapped = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        if reduces_in_bf16(self.model):
            wrapped.register_comm_hook(None, bf16_compress_hook)
        return wrapped

    @cached_property
    def evaluation_memory(self) -> MemoryShare:
        """How much is evaluated at a time; not shared with training, which workers do alike."""
        adapts = self.memory is not None and self.memory.adapts
        return MemoryShare(self.memory.share if self.memory and adapts else 1.0, adapts)

    @property
    def evaluation_steps(self) -> int:
        """Steps between two points of the learning curve."""
        return max(1, math.ceil(self.steps * self.evaluation.every))

    @property
    def next_step(self) -> int:
        """The step to train next; on a GPU the last one may not have been read yet."""
        return self.state.step + len(self.unread)

    def train(self) -> bool:
        """Train to the horizon; return False if the loss stopped being finite."""
        with Prefetch(self.prepare, self.steps) as batches:
            return self._train(batches)

    def _train(self, batches: Prefetch[Batch]) -> bool:
        while self.next_step < self.steps:
            started = time.perf_counter()
            finite = self.step(self._next_batch(batches))
            evaluates = self.next_step == self.steps or self.next_step % self.evaluation_steps == 0
            if evaluates or self.due:
                finite = finite and self._read(all_but=0)
            if not finite:
                return False
            self.state.wall_seconds += time.perf_counter() - started
            if evaluates:
                self._evaluate()
            if evaluates or self.due:
                self._save()
            elif self.next_step % max(1, self.steps // PROGRESS_REPORTS) == 0:
                self.context.progress(self._metrics())
        return True

    def _next_batch(self, batches: Prefetch[Batch]) -> Batch:
        """Return the next batch; if a GPU had no room for it, encode less at a time from then on.

        One of several workers cannot leave the way of averaging gradients that share 1 has.
        """
        memory = self.memory
        if memory is None or (memory.share == 1 and self.context.world_size > 1):
            return batches(self.next_step)
        return memory.within(lambda share: batches(self.next_step))

    def _save(self) -> None:
        self.due, self.saved = False, time.monotonic()
        self.context.save(self._snapshot(), self._metrics())

    def step(self, batch: Batch) -> bool:
        """Train one step; if loss or gradient is not finite, keep the weights and return False.

        On a GPU the numbers are read after the next step was launched, so that the host need not
        wait; the device itself skips the updates from a number that is not finite on.
        """
        train = self.run.train
        set_learning_rate(self.optimizer, learning_rate_share(self.next_step, self.steps, train))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(batch)
        loss_and_due = self._mean_over_workers(torch.stack([loss, self._is_due(loss)]))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), train.clip_norm)
        numbers = torch.cat([loss_and_due, norm[None]])
        self.unread.append(self._send(numbers, batch))
        if self.lag:
            self._skip_from_broken_on(numbers)
        elif not self._read(all_but=0):
            return False
        self.optimizer.step()
        self.model.clamp_temperature()
        return self._read(all_but=self.lag)

    def _is_due(self, like: torch.Tensor) -> torch.Tensor:
        """Return 1 on the first worker if no checkpoint was kept for long; all save at once."""
        late = time.monotonic() - self.saved > CHECKPOINT_SECONDS
        return torch.full_like(like, float(late and self.context.rank == 0))

    def _send(self, numbers: torch.Tensor, batch: Batch) -> Unread:
        """Start to copy a step's numbers to the host."""
        arrived = None
        if numbers.is_cuda:
            numbers = numbers.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return Unread(numbers, arrived, batch, self.memory is not None and self.memory.share < 1)

    def _skip_from_broken_on(self, numbers: torch.Tensor) -> None:
        """Tell the fused optimizer to leave the weights as they are if a number is not finite."""
        broken = 1 - numbers.isfinite().all().float()
        self.broken = broken if self.broken is None else torch.maximum(self.broken, broken)
        self.optimizer.found_inf = self.broken  # type: ignore[attr-defined]

    def _read(self, all_but: int) -> bool:
        """Read and count all steps but the last ones; return False for one that is not finite."""
        while len(self.unread) > all_but:
            unread = self.unread[0]
            if unread.arrived is not None:
                unread.arrived.synchronize()
            loss, due, self.gradient_norm = unread.numbers.tolist()
            if not (math.isfinite(loss) and math.isfinite(self.gradient_norm)):
                return False
            self.due = self.due or due > 0
            batch = unread.batch
            executed = self._count_executed(batch)
            masked, users = batch.masked_pairs, self.run.train.global_batch_size
            self.state.add(batch.work, executed, loss, masked, users=users, cached=unread.cached)
            self.unread.popleft()
        return True

    def _backward(self, batch: Batch) -> torch.Tensor:
        """Set the gradient of a worker's share of a batch; return its loss, detached."""
        wait_for(batch)
        objective, memory = self._objective(batch), self._choose_memory(batch.packed)
        if memory.share == 1:
            try:
                return self._backward_whole(batch, objective)
            except torch.OutOfMemoryError:
                # Workers that have begun to average gradients cannot start the step again.
                if not memory.adapts or self.context.world_size > 1:
                    raise
            memory.share = 0.5
            self.optimizer.zero_grad(set_to_none=True)
        return cached_backward(
            self.model, batch.packed, memory, objective, batch.masks, chunks=batch.chunks
        )

    def _backward_whole(self, batch: Batch, objective: Loss) -> torch.Tensor:
        users, logit = self.forward(batch.packed, batch.masks)
        first, second = users.chunk(2)
        loss = objective(first, second, logit)
        loss.backward()
        return loss.detach()

    def _choose_memory(self, packed: Packed) -> MemoryShare:
        """Choose once how much of a batch is encoded at a time."""
        if self.memory is None:
            self.memory = choose_memory(self.run, packed, self.device, self.context.world_size)
        return self.memory

    def _cut(self, packed: Packed) -> Chunks | None:
        """Cut a batch where it is packed, once it is known how much is encoded at a time."""
        if self.memory is None or self.memory.share == 1:
            return None
        return cut(packed, self.memory.share)

    def _objective(self, batch: Batch) -> Loss:
        objective: Loss = partial(
            OBJECTIVES[self.run.train.objective], duplicate_ids=batch.duplicate_ids
        )
        # Two parts of one history are easier to match than two services. The learned temperature
        # belongs to the harder task, on which the encoder is scored.
        if batch.is_cut_in_time:
            return at_temperature(objective, self.run.train.temperature)
        return objective

    def _mean_over_workers(self, numbers: torch.Tensor) -> torch.Tensor:
        if self.context.world_size > 1:
            dist.all_reduce(numbers)
            numbers /= self.context.world_size
        return numbers

    def _count_executed(self, batch: Batch) -> Work:
        train, workers = self.run.train, self.context.world_size
        similarities = count_similarities(train.objective, train.global_batch_size, workers)
        return count_executed(batch.packed, similarities)

    def _evaluate(self) -> None:
        """Add a point to the learning curve; the time it takes counts as the run's."""
        if self.context.rank:
            return
        started = time.perf_counter()
        users = self.run.resources.users_per_chunk
        most = USERS_AT_ONCE if users == "auto" else min(USERS_AT_ONCE, users)

        def score(share: float) -> Evaluation:
            at_once = max(1, int(share * most))
            return evaluate(self.model, self.corpus, self.pools, self.run.sequence_length, at_once)

        scores = self.evaluation_memory.within(score)
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
            "trained_seconds": self.state.wall_seconds,
            "tokens_per_second": self.state.tokens_per_second,
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


def train_with(
    run: RunSpec, corpus: Corpus, evaluation: EvaluationSpec, context: Context
) -> tuple[RunRecord, list[dict[str, float]]]:
    """Train one run under a launcher's context; return its record and learning curve."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    free_device()
    with explaining_memory(run, context.world_size):
        trainer = Trainer(run, corpus, evaluation, context)
        try:
            finite = trainer.train()
        finally:  # what was saved is kept, however the run ends
            context.flush()
    log_peaks(trainer.device)
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
