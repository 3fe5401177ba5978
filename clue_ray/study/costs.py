"""What runs cost before they start: the work of their batches, and the speed of each encoder.

`Workload` counts what runs require of a corpus. `choose_timing` returns a function that times a few
real steps of each encoder, on this machine or on a node of the cluster that could train it.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, RayError

from clue_ray.batches.packing import count_executed, pack, recent_windows
from clue_ray.batches.sampler import BatchSampler
from clue_ray.cluster.placement import Node, count_workers
from clue_ray.corpus.store import Corpus
from clue_ray.errors import ClusterError
from clue_ray.spec.compute import Work, train_flops
from clue_ray.spec.specs import HORIZONS, EvaluationSpec, ResourcesSpec, RunSpec
from clue_ray.study.probes import node_failure
from clue_ray.study.trial import cached_corpus
from clue_ray.training.context import LocalContext
from clue_ray.training.device import free_device
from clue_ray.training.evaluate import USERS_AT_ONCE
from clue_ray.training.feed import pack_share
from clue_ray.training.loop import Trainer
from clue_ray.training.pools import make_pools, pool_members
from clue_ray.training.schedule import mean_of, mean_work, resolve_steps

PACKED_STEPS = 8
"""Batches that are packed to estimate the executed work of a step."""
TIMED_STEPS = 5
ROOM_SECONDS = 1800.0
"""Longest wait for a free node, for its copy of the corpus and for the timing itself."""


class Rate(NamedTuple):
    """How fast an encoder trains.

    Attributes:
        per_step: seconds per step whatever its size.
        per_flop: seconds per FLOP.
        packing: seconds to draw and pack a batch, relative to those of the step that it is for, on
            one worker.
        drawing: the part of them that each worker spends on the whole batch, whatever its share.
    """

    per_step: float
    per_flop: float
    packing: float = 0.0
    drawing: float = 0.0

    def packing_on(self, workers: int) -> float:
        """Return `packing` on several workers: they divide the step, but not the drawing."""
        return self.packing + (workers - 1) * self.drawing


Rates = dict[str, Rate]
"""By encoder (its JSON)."""
Timed = Callable[[list[RunSpec]], Rates]


class Step(NamedTuple):
    """The work of one training step.

    Attributes:
        required: What the mathematics requires, averaged over the first batches.
        executed: What is computed when each distinct item is encoded once, averaged over fewer
            batches because packing them takes longer.
    """

    required: Work
    executed: Work


class Workload:
    """Counts the work that runs require of one corpus.

    Drawing batches takes longer than counting them, so runs that draw the same batches are counted
    once.
    """

    def __init__(self, corpus: Corpus):
        self.corpus = corpus
        self._steps: dict[str, Step] = {}
        self._evaluations: dict[tuple[int, int], Work] = {}

    def step(self, run: RunSpec) -> Step:
        """Count the work of one step.

        Raises:
            CorpusError: No pair of services has enough users for a batch.
        """
        # Neither the encoder nor the horizon nor the rate changes which batches are drawn.
        train = {*HORIZONS, "learning_rate"}
        batches = run.model_dump_json(exclude={"encoder": True, "resources": True, "train": train})
        if batches not in self._steps:
            sampler = BatchSampler(run, self.corpus)
            self._steps[batches] = Step(
                mean_work(sampler), mean_of(_executed(sampler, k) for k in range(PACKED_STEPS))
            )
        return self._steps[batches]

    def steps(self, run: RunSpec) -> int:
        """Convert a run's horizon to steps."""
        return resolve_steps(run, BatchSampler(run, self.corpus))

    def evaluation(self, sequence_length: int, candidates: int) -> Work:
        """Count the work of embedding the users of the pools once in each of their services."""
        key = sequence_length, candidates
        if key not in self._evaluations:
            self._evaluations[key] = self._count_evaluation(sequence_length, candidates)
        return self._evaluations[key]

    def _count_evaluation(self, sequence_length: int, candidates: int) -> Work:
        pools, total = make_pools(self.corpus, candidates), Work()
        for pool in (pools.scored, pools.validation):
            for service, users in pool_members(pool).items():
                for some in np.array_split(users, -(-len(users) // USERS_AT_ONCE)):
                    windows = recent_windows(
                        self.corpus, some, np.full(len(some), service), sequence_length
                    )
                    total += count_executed(pack(self.corpus, windows))
        return total


def _executed(sampler: BatchSampler, step: int) -> Work:
    """Count the executed work of global batch `step`."""
    batch = sampler.batch(step)
    packed = batch.pack(batch.rows_of(rank=0, world_size=1))
    return count_executed(packed, sampler.batch_size**2)


def choose_timing(
    corpus: Corpus,
    evaluation: EvaluationSpec,
    resources: ResourcesSpec,
    nodes: list[Node],
    address: str | None,
    flops_per_second: float | None = None,
) -> Timed:
    """Choose how a study's runs are timed.

    Args:
        address: Address of a cluster, whose nodes may differ from this machine; None where all runs
            train here.
        flops_per_second: Speed of a worker; nothing is timed where it is given.
    """
    if flops_per_second:
        return partial(fixed_rate, flops_per_second=flops_per_second)
    # A cluster without room for one worker is refused after planning; a task would wait there.
    # With GPUs, this process must not time anything: it would keep memory of the first one.
    if (address or resources.gpus_per_worker) and count_workers(resources, nodes):
        return partial(
            time_on_a_node, place=corpus.place, evaluation=evaluation, resources=resources
        )
    return partial(_calibrate_on_cpu, corpus=corpus, evaluation=evaluation)


def fixed_rate(runs: list[RunSpec], flops_per_second: float) -> Rates:
    """Return the same speed for every encoder."""
    return {run.encoder.model_dump_json(): Rate(0.0, 1 / flops_per_second) for run in runs}


def time_on_a_node(
    runs: list[RunSpec], place: str, evaluation: EvaluationSpec, resources: ResourcesSpec
) -> Rates:
    """Time runs in a Ray task that holds the resources of one worker.

    Args:
        place: Folder or URI of the corpus.

    Raises:
        ClusterError: No node became free in time, or the task failed.
    """
    task = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)(
        _calibrate_there
    )
    pending = task.remote(runs, place, evaluation)
    try:
        rates: Rates = ray.get(pending, timeout=ROOM_SECONDS)
    except GetTimeoutError:
        ray.cancel(pending)
        raise ClusterError(
            f"No node had room to time the encoders within {ROOM_SECONDS:g} s; run the same "
            f"command again when the cluster is less busy."
        ) from None
    except RayError as error:
        raise node_failure("A node of the cluster", error) from None
    return rates


def _calibrate_on_cpu(runs: list[RunSpec], corpus: Corpus, evaluation: EvaluationSpec) -> Rates:
    """Time runs in this process, and never on a GPU."""
    without = [
        run.model_copy(
            update={"resources": run.resources.model_copy(update={"gpus_per_worker": 0})}
        )
        for run in runs
    ]
    return _calibrate(without, corpus, evaluation)


def _calibrate_there(runs: list[RunSpec], place: str, evaluation: EvaluationSpec) -> Rates:
    """Time runs in this process, on a corpus that it opens itself."""
    return _calibrate(runs, cached_corpus(place), evaluation)


def _calibrate(runs: list[RunSpec], corpus: Corpus, evaluation: EvaluationSpec) -> Rates:
    """Time a few real steps of each encoder, at its smallest and largest batches in events."""
    rates = {}
    threads = torch.get_num_threads()
    for encoder in {run.encoder.model_dump_json(): run.encoder for run in runs}.values():
        same = sorted((r for r in runs if r.encoder == encoder), key=_events_per_step)
        torch.set_num_threads(same[0].resources.cpus_per_worker)
        smallest = _time_step(same[0], corpus, evaluation)
        largest = smallest if len(same) == 1 else _time_step(same[-1], corpus, evaluation)
        packing = max(smallest[2:], largest[2:])
        rates[encoder.model_dump_json()] = Rate(*_fit_rate(*smallest[:2], *largest[:2]), *packing)
    torch.set_num_threads(threads)
    return rates


def _events_per_step(run: RunSpec) -> int:
    """Return an upper bound of the events per step, to order runs by."""
    return run.sequence_length * run.train.global_batch_size


def _time_step(
    run: RunSpec, corpus: Corpus, evaluation: EvaluationSpec
) -> tuple[float, float, float, float]:
    """Measure one training step after a warm-up step.

    Returns:
        Its executed FLOPs, the seconds to pack and train it, and as in `Rate` its packing and its
        drawing.
    """
    train = run.train.model_copy(
        update={"steps": 1 + TIMED_STEPS, "users_seen": None, "train_flops": None}
    )
    free_device()  # of the run timed before; its trainer holds itself in a circle
    trainer = Trainer(run.model_copy(update={"train": train}), corpus, evaluation, LocalContext())
    trainer.lag = 0  # each step is timed to its end
    trainer.step(trainer.prepare(trainer.next_step))
    before, times, there = trainer.state.executed, [], trainer.prepare.resident
    for _ in range(TIMED_STEPS):
        started = _now(trainer.device)
        batch = trainer.prepare(trainer.next_step)
        packed = _now(trainer.device)
        trainer.step(batch)
        trained = _now(trainer.device)
        # The share of one of as many workers as users: next to nothing but what none of them share.
        pack_share(trainer.sampler, 0, train.global_batch_size, trainer.next_step, resident=there)
        times.append((packed - started, trained - packed, _now(trainer.device) - trained))
    packing, stepping, drawing = np.median(times, axis=0).tolist()
    executed = Work(*(a - b for a, b in zip(trainer.state.executed, before, strict=True)))
    flops = train_flops(run.encoder, executed) / TIMED_STEPS
    if there is not None:  # Ray Data would pack on cores what is packed on the GPU while it trains
        return flops, packing + stepping, 0.0, 0.0
    return flops, packing + stepping, packing / stepping, min(drawing, packing) / stepping


def _now(device: torch.device) -> float:
    """Return the time once a GPU has done what it was given, in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _fit_rate(
    small_flops: float, small_seconds: float, large_flops: float, large_seconds: float
) -> tuple[float, float]:
    """Draw a line through two timed steps: (seconds at no FLOPs, seconds per FLOP).

    The slope has a floor of a fifth, because two timings that are close to each other say little.
    """
    if not large_flops:  # the run diverged in its first step, and its record will say so
        return 0.0, 0.0
    rise = max(large_seconds - small_seconds, 0.2 * large_seconds)
    per_flop = rise / max(large_flops - small_flops, 0.2 * large_flops)
    return max(0.0, large_seconds - per_flop * large_flops), per_flop
