"""What runs ask of a corpus, before they start: the work of a step, steps to the horizon, the work of an evaluation.

Drawing batches takes longer than counting them, so runs that draw the same batches are counted once.
"""

from typing import NamedTuple

import numpy as np

from clue_ray.batches.packing import count_executed, pack, recent_windows
from clue_ray.batches.sampler import BatchSampler
from clue_ray.corpus.store import Corpus
from clue_ray.spec.compute import Work
from clue_ray.spec.specs import HORIZONS, RunSpec
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
            self._steps[batches] = Step(mean_work(sampler), mean_of(executed(sampler, k) for k in range(PACKED_STEPS)))
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
            windows = recent_windows(self.corpus, present, np.full(len(present), service), sequence_length)
            total += count_executed(pack(self.corpus, windows))
        return total


def executed(sampler: BatchSampler, step: int) -> Work:
    """Count what computing global batch `step` takes."""
    packed = pack(sampler.corpus, sampler.windows(step), sampler.augmentation(step))
    return count_executed(packed, sampler.batch_size**2)
