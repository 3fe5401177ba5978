"""Global batches as a pure function of (corpus, run, step), and the packed form the encoder reads.

A batch holds users that all have events in one pair of services (decision D1), drawn without replacement, each with a
random window of history in either service. Every draw is seeded by (seed, step) alone, so that any number of workers
sees the same batch (decision D7) and a resumed run needs no loader state. Each distinct item is encoded once
(decision D5). Nothing is padded: sequences are sorted by length and stored end to end, a `Groups` entry a length.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clue_ray.compute import Work
from clue_ray.corpus.store import Corpus, ranges
from clue_ray.errors import CorpusError
from clue_ray.spec import RunSpec

Groups = list[tuple[int, int]]
"""Runs of equally long sequences: (number of sequences, their length), in storage order."""


class Packed(NamedTuple):
    """Sequences of items ready to encode, all on one device; nothing in it is padding."""

    tokens: torch.Tensor
    "token ids of the distinct items, end to end, [tokens]"
    token_positions: torch.Tensor
    "position of each token in its item, [tokens]"
    item_groups: Groups
    event_items: torch.Tensor
    "index among the distinct items of each event, [events]"
    event_positions: torch.Tensor
    "recency of each event in its history, 0 the most recent, [events]"
    user_groups: Groups
    order: torch.Tensor
    "where each sequence asked for lies among the encoded ones, [sequences]"

    def to(self, device: torch.device) -> "Packed":
        """Copy the tensors to a device."""
        return self._replace(
            tokens=self.tokens.to(device),
            token_positions=self.token_positions.to(device),
            event_items=self.event_items.to(device),
            event_positions=self.event_positions.to(device),
            order=self.order.to(device),
        )


class Windows(NamedTuple):
    """Stretches of the corpus' event array, one a sequence."""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


class BatchSampler:
    """Draws the global batches of one run.

    Raises:
        CorpusError: a batch needs more users than the best-filled pair of services has.
    """

    def __init__(self, run: RunSpec, corpus: Corpus):
        self.corpus = corpus
        self.seed = run.train.seed
        self.batch_size = run.train.global_batch_size
        self.sequence_length = run.sequence_length
        users = corpus.train_users[: run.corpus_users]
        pools = {pair: corpus.users_of_pair(users, pair) for pair in corpus.pairs()}
        self.pools = {pair: pool for pair, pool in pools.items() if len(pool) >= self.batch_size}
        if not self.pools:
            most = max(map(len, pools.values()))
            raise CorpusError(
                f"global_batch_size {self.batch_size} is larger than the {most} training users of the best-filled pair "
                f"of services ({len(users)} training users in all); use at most {most}."
            )
        sizes = np.array([len(pool) for pool in self.pools.values()], dtype=np.float64)
        self.shares = sizes / sizes.sum()

    def windows(self, step: int) -> Windows:
        """Draw the histories of global batch `step`: users in the first service, then the same users in the second."""
        rng = np.random.default_rng([self.seed, step])
        pairs = list(self.pools)
        pair = pairs[rng.choice(len(pairs), p=self.shares)]
        users = rng.choice(self.pools[pair], self.batch_size, replace=False)
        services = np.repeat(pair, self.batch_size)
        return random_windows(self.corpus, np.tile(users, 2), services, self.sequence_length, rng)

    def worker_windows(self, step: int, rank: int, world_size: int) -> Windows:
        """Return one worker's share of global batch `step`: the same users in both services."""
        per_worker = self.batch_size // world_size
        users = np.arange(rank * per_worker, (rank + 1) * per_worker)
        mine = np.concatenate([users, users + self.batch_size])
        starts, lengths = self.windows(step)
        return Windows(starts[mine], lengths[mine])

    def work(self, step: int) -> Work:
        """Count what the mathematics of global batch `step` asks for, every event's item encoded anew."""
        return count_work(self.corpus, self.windows(step), similarities=self.batch_size**2)


def recent_windows(
    corpus: Corpus, users: NDArray[np.int64], services: NDArray[np.int64], sequence_length: int
) -> Windows:
    """Take the most recent events of each (user, service)."""
    starts = corpus.offsets[users * len(corpus.services) + services]
    return Windows(starts, np.minimum(corpus.counts[users, services], sequence_length))


def random_windows(
    corpus: Corpus,
    users: NDArray[np.int64],
    services: NDArray[np.int64],
    sequence_length: int,
    rng: np.random.Generator,
) -> Windows:
    """Take a random stretch of consecutive events of each (user, service); a short history is taken whole."""
    starts, lengths = recent_windows(corpus, users, services, sequence_length)
    slack = corpus.counts[users, services] - lengths
    return Windows(starts + rng.integers(0, slack + 1), lengths)


def count_work(corpus: Corpus, windows: Windows, similarities: int = 0) -> Work:
    """Count users, events, tokens and their squares of windows, duplicates included."""
    tokens = corpus.item_lengths[corpus.events[ranges(*windows)]]
    return Work(
        users=len(windows.lengths),
        events=int(windows.lengths.sum()),
        events_squared=int((windows.lengths**2).sum()),
        tokens=int(tokens.sum()),
        tokens_squared=int((tokens**2).sum()),
        similarities=similarities,
    )


def count_executed(packed: Packed, similarities: int = 0) -> Work:
    """Count what encoding `packed` computes: distinct items once."""
    return Work(
        users=sum(count for count, _ in packed.user_groups),
        events=sum(count * length for count, length in packed.user_groups),
        events_squared=sum(count * length**2 for count, length in packed.user_groups),
        tokens=sum(count * length for count, length in packed.item_groups),
        tokens_squared=sum(count * length**2 for count, length in packed.item_groups),
        similarities=similarities,
    )


def pack(corpus: Corpus, windows: Windows) -> Packed:
    """Lay windows out for the encoder: sequences by length, distinct items by length, end to end."""
    by_length = np.argsort(windows.lengths, kind="stable")
    starts, lengths = windows.starts[by_length], windows.lengths[by_length]
    items, event_items = np.unique(corpus.events[ranges(starts, lengths)], return_inverse=True)
    item_lengths = corpus.item_lengths[items]
    items_by_length = np.argsort(item_lengths, kind="stable")
    items, item_lengths = items[items_by_length], item_lengths[items_by_length]
    tokens = corpus.item_tokens[ranges(corpus.item_offsets[items], item_lengths)]
    return Packed(
        tokens=torch.from_numpy(tokens.astype(np.int64)),
        token_positions=torch.from_numpy(ranges(np.zeros_like(item_lengths), item_lengths)),
        item_groups=group_lengths(item_lengths),
        event_items=torch.from_numpy(invert(items_by_length)[event_items]),
        event_positions=torch.from_numpy(ranges(np.zeros_like(lengths), lengths)),
        user_groups=group_lengths(lengths),
        order=torch.from_numpy(invert(by_length)),
    )


def group_lengths(lengths: NDArray[np.int64]) -> Groups:
    """Run-length encode sorted lengths."""
    distinct, counts = np.unique(lengths, return_counts=True)
    return list(zip(counts.tolist(), distinct.tolist(), strict=True))


def invert(permutation: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the inverse of a permutation."""
    inverse = np.empty_like(permutation)
    inverse[permutation] = np.arange(len(permutation))
    return inverse
