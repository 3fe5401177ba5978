"""What runs ask of a corpus, before they start: the work of a step, steps to the horizon, the work
of an evaluation.

Drawing batches takes longer than counting them, so runs that draw the same batches are counted
once.


How fast each encoder trains here: a few real steps are timed before a study starts.

Gives, for each encoder (as JSON), seconds a step costs whatever its size, and seconds a FLOP.


Where a study's encoders are timed before it starts: here, or on a node of the cluster that could
train them.
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
from clue_ray.study.probes import node_trouble
from clue_ray.study.trial import cached_corpus
from clue_ray.training.loop import LocalContext, Trainer
from clue_ray.training.schedule import mean_of, mean_work, resolve_steps

PACKED_STEPS = 8


class Step(NamedTuple):
    """The work of one training step."""

    asked: Work
    "by the mathematics, mean over the first batches"
    executed: Work
    "distinct items once, mean over fewer batches, as packing takes longer"


class Workload:
    """Counts what runs ask of one corpus."""

    def __init__(self, corpus: Corpus):
        self.corpus = corpus
        self._steps: dict[str, Step] = {}
        self._evaluations: dict[int, Work] = {}

    def step(self, run: RunSpec) -> Step:
        """Count a run's step; raise CorpusError when no pair of services fills its batch."""
        train = {*HORIZONS, "learning_rate"}
        batches = run.model_dump_json(exclude={"encoder": True, "resources": True, "train": train})
        if batches not in self._steps:
            sampler = BatchSampler(run, self.corpus)
            self._steps[batches] = Step(
                mean_work(sampler), mean_of(_executed(sampler, k) for k in range(PACKED_STEPS))
            )
        return self._steps[batches]

    def steps(self, run: RunSpec) -> int:
        """Turn a run's horizon into steps."""
        return resolve_steps(run, BatchSampler(run, self.corpus))

    def evaluation(self, sequence_length: int) -> Work:
        """Count embedding every held-out user in every service once."""
        if sequence_length not in self._evaluations:
            self._evaluations[sequence_length] = self._count_evaluation(sequence_length)
        return self._evaluations[sequence_length]

    def _count_evaluation(self, sequence_length: int) -> Work:
        users, total = self.corpus.test_users, Work()
        for service in range(len(self.corpus.services)):
            present = users[self.corpus.counts[users, service] > 0]
            windows = recent_windows(
                self.corpus, present, np.full(len(present), service), sequence_length
            )
            total += count_executed(pack(self.corpus, windows))
        return total


def _executed(sampler: BatchSampler, step: int) -> Work:
    """Count what computing global batch `step` takes."""
    batch = sampler.batch(step)
    packed = batch.pack(batch.rows_of(rank=0, world_size=1))
    return count_executed(packed, sampler.batch_size**2)


TIMED_STEPS = 5
Rates = dict[str, tuple[float, float]]


def given_rate(runs: list[RunSpec], flops_per_second: float) -> Rates:
    """Take one speed for every encoder, without timing any."""
    return {run.encoder.model_dump_json(): (0.0, 1 / flops_per_second) for run in runs}


def _calibrate(runs: list[RunSpec], corpus: Corpus, evaluation: EvaluationSpec) -> Rates:
    """Time a few real steps of each encoder at its smallest and largest batches, counted in
    events.
    """
    rates = {}
    threads = torch.get_num_threads()
    for encoder in {run.encoder.model_dump_json(): run.encoder for run in runs}.values():
        same = sorted((r for r in runs if r.encoder == encoder), key=_events_a_step)
        torch.set_num_threads(same[0].resources.cpus_per_worker)
        cheap, short = _time_step(same[0], corpus, evaluation)
        dear, long = (cheap, short) if len(same) == 1 else _time_step(same[-1], corpus, evaluation)
        rates[encoder.model_dump_json()] = _speed(cheap, short, dear, long)
    torch.set_num_threads(threads)
    return rates


def _events_a_step(run: RunSpec) -> int:
    """Bound the events of a step, for ordering."""
    return run.sequence_length * run.train.global_batch_size


def _speed(cheap: float, short: float, dear: float, long: float) -> tuple[float, float]:
    """Draw the line through two timings (FLOPs, seconds): its (seconds at no FLOPs, seconds a
    FLOP).
    """
    if not dear:  # diverged at once; the run will say so itself
        return 0.0, 0.0
    per_flop = max(long - short, 0.2 * long) / max(dear - cheap, 0.2 * dear)
    return max(0.0, long - per_flop * dear), per_flop


def _time_step(run: RunSpec, corpus: Corpus, evaluation: EvaluationSpec) -> tuple[float, float]:
    """Return one training step's (executed FLOPs, seconds), after a first one to warm up."""
    train = run.train.model_copy(
        update={"steps": 1 + TIMED_STEPS, "users_seen": None, "train_flops": None}
    )
    trainer = Trainer(run.model_copy(update={"train": train}), corpus, evaluation, LocalContext())
    trainer.step(trainer.prepare(trainer.state.step))
    before, seconds = trainer.state.executed, []
    for _ in range(TIMED_STEPS):
        started = time.perf_counter()
        trainer.step(trainer.prepare(trainer.state.step))
        seconds.append(time.perf_counter() - started)
    executed = Work(*(a - b for a, b in zip(trainer.state.executed, before, strict=True)))
    return train_flops(run.encoder, executed) / TIMED_STEPS, float(np.median(seconds))


ROOM_SECONDS = 1800.0
"""Longest wait for a node's room, a corpus fetched there and the timing itself."""
Timed = Callable[[list[RunSpec]], Rates]


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
        address: of a cluster, whose nodes and GPUs may differ from this machine; None where all
            trains here.
        flops_per_second: speed of a worker, instead of timing any.
    """
    if flops_per_second:
        return partial(given_rate, flops_per_second=flops_per_second)
    if address and count_workers(
        resources, nodes
    ):  # a cluster without room is refused in a moment, and would wait here
        return partial(
            time_on_a_node, place=corpus.place, evaluation=evaluation, resources=resources
        )
    return partial(_calibrate, corpus=corpus, evaluation=evaluation)


def time_on_a_node(
    runs: list[RunSpec], place: str, evaluation: EvaluationSpec, resources: ResourcesSpec
) -> Rates:
    """Time runs in a task that holds what a worker would hold.

    Raises:
        ClusterError: others hold the cluster, or the task failed.
    """
    task = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)(
        _calibrate_there
    )
    asked = task.remote(runs, place, evaluation)
    try:
        rates: Rates = ray.get(asked, timeout=ROOM_SECONDS)
    except GetTimeoutError:
        ray.cancel(asked)
        raise ClusterError(
            f"No node had room to time the encoders within {ROOM_SECONDS:g} s; give the same "
            f"command again when the "
            "cluster has less to do."
        ) from None
    except RayError as error:
        raise node_trouble("A node of the cluster", error) from None
    return rates


def _calibrate_there(runs: list[RunSpec], place: str, evaluation: EvaluationSpec) -> Rates:
    """Time runs in this process, on a corpus that it opens itself."""
    return _calibrate(runs, cached_corpus(place), evaluation)
