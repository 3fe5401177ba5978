import numpy as np
from numpy.typing import NDArray

from clue_ray.batches.dropout import HIDDEN_SHARE, Augmentation
from clue_ray.batches.packing import Windows, count_work, proportions, random_windows
from clue_ray.corpus.store import Corpus
from clue_ray.errors import CorpusError
from clue_ray.spec.compute import Work
from clue_ray.spec.specs import RunSpec


class BatchSampler:
    """Draws the global batches of one run.

    Raises:
        CorpusError: a batch needs more users than the best-filled pair of services has.
    """

    def __init__(self, run: RunSpec, corpus: Corpus):
        self.corpus = corpus
        self.train = run.train
        self.seed = run.train.seed
        self.batch_size = run.train.global_batch_size
        self.sequence_length = run.sequence_length
        users = corpus.train_users[: run.corpus_users]
        pools = {pair: corpus.users_of_pair(users, pair) for pair in corpus.pairs()}
        self.pools = {pair: pool for pair, pool in pools.items() if len(pool) >= self.batch_size}
        if not self.pools:
            most = max(map(len, pools.values()))
            raise CorpusError(
                f"global_batch_size {self.batch_size} is larger than the {most} training users of "
                f"the best-filled pair "
                f"of services ({len(users)} training users in all); use at most {most}."
            )
        self.shares = proportions(self.pools)
        if self.train.same_service:
            self._add_services_alone(users)

    def _add_services_alone(self, users: NDArray[np.int64]) -> None:
        """Let a share of the batches be of one service, with any user of two events or more."""
        counts = self.corpus.counts[users]
        alone = {(s, s): users[counts[:, s] >= 2] for s in range(len(self.corpus.services))}
        alone = {pair: pool for pair, pool in alone.items() if len(pool) >= self.batch_size}
        if alone:
            share = self.train.same_service
            self.shares = np.concatenate([(1 - share) * self.shares, share * proportions(alone)])
            self.pools |= alone

    def windows(self, step: int) -> Windows:
        """Draw the histories of global batch `step`: users in the first service, then the same
        users in the second.

        Of one service alone, the second is what came before the first.
        """
        rng = np.random.default_rng([self.seed, step])
        pair = self._draw_pair(rng)
        users = rng.choice(self.pools[pair], self.batch_size, replace=False)
        services = np.repeat(pair, self.batch_size)
        if pair[0] == pair[1]:
            whole = random_windows(
                self.corpus, users, services[: len(users)], 2 * self.sequence_length, rng
            )
            recent = (whole.lengths + 1) // 2
            starts = np.concatenate([whole.starts, whole.starts + recent])
            return Windows(starts, np.concatenate([recent, whole.lengths - recent]))
        return random_windows(self.corpus, np.tile(users, 2), services, self.sequence_length, rng)

    def _draw_pair(self, rng: np.random.Generator) -> tuple[int, int]:
        return list(self.pools)[rng.choice(len(self.pools), p=self.shares)]

    def is_one_service(self, step: int) -> bool:
        """Tell whether global batch `step` is of one service alone."""
        first, second = self._draw_pair(np.random.default_rng([self.seed, step]))
        return first == second

    def augmentation(self, step: int) -> Augmentation:
        """Draw what global batch `step` leaves out."""
        rng = np.random.default_rng([self.seed, step, 1])
        key, hide = int(rng.integers(2**62)), bool(rng.random() < HIDDEN_SHARE)
        return Augmentation(key, self.train.event_dropout, self.train.token_dropout, hide)

    def share(self, windows: Windows, rank: int, world_size: int) -> Windows:
        """Return one worker's share of a global batch: the same users in both services."""
        per_worker = self.batch_size // world_size
        users = np.arange(rank * per_worker, (rank + 1) * per_worker)
        mine = np.concatenate([users, users + self.batch_size])
        return Windows(windows.starts[mine], windows.lengths[mine])

    def work(self, step: int) -> Work:
        """Count what the mathematics of global batch `step` asks for, every event's item encoded
        anew.
        """
        return count_work(
            self.corpus, self.windows(step), self.batch_size**2, self.augmentation(step)
        )
