"""What runs ask of a corpus, before they start: the work of a step, steps to the horizon, the work of an evaluation.

Drawing batches takes longer than counting them, so runs that draw the same batches are counted once.
"""

from typing import NamedTuple

import numpy as np

from clue_ray.compute import Work
from clue_ray.corpus.store import Corpus
from clue_ray.encoder.batches import BatchSampler, count_executed, pack, recent_windows
from clue_ray.spec import HORIZONS, RunSpec
from clue_ray.training.schedule import mean_work, resolve_steps


class Step(NamedTuple):
    """The work of one training step."""

    asked: Work
    "by the mathematics, mean over the first batches"
    executed: Work
    "for the first batch: distinct items once"


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
            executed = count_executed(pack(self.corpus, sampler.windows(0)), run.train.global_batch_size**2)
            self._steps[batches] = Step(mean_work(sampler), executed)
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
