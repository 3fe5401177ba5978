"""Global batches as a pure function of (corpus, run, step).

A batch holds users that all have events in one pair of services (decision D1): every negative is
then a user of the same two services, and telling services apart does not help. Users are drawn
without replacement, each with a random window of history in either service.

A share of the batches may pair what a user did before and after a cut in time instead: in one
service (`same_service`, recent half of a window against the half before it), or in all services at
once (`past_future`, where a view is the mean of its services' vectors, as in `clue-ray embed`).

Every draw is seeded by (seed, step) alone. Any number of workers therefore draws the same batch
(decision D7), and a resumed run needs no loader state.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clue_ray.batches.clock import Clock, times_after
from clue_ray.batches.cut import cut_histories
from clue_ray.batches.deal import deal
from clue_ray.batches.dropout import HIDDEN_SHARE, Dropout, keyed_hash
from clue_ray.batches.lists import Lists
from clue_ray.batches.packing import (
    Packed,
    Windows,
    count_work,
    drop_events,
    gather_events,
    gather_times,
    pack_histories,
    recent_windows,
)
from clue_ray.corpus.layout.arrays import PAST_FUTURE
from clue_ray.corpus.ranges import ranges
from clue_ray.corpus.store import Corpus
from clue_ray.errors import CorpusError
from clue_ray.spec.compute import Work
from clue_ray.spec.specs import RunSpec

Pair = tuple[int, int]
Pools = dict[Pair, NDArray[np.int64]]
"""Positions in the training users of those whom a batch of each pair can hold."""


@dataclass(frozen=True)
class GlobalBatch:
    """The users of one step, over all workers; what follows from the draws is computed once."""

    corpus: Corpus = field(repr=False)
    pair: Pair
    """services of the first and the second view; the same one twice for a one-service batch, and
    PAST_FUTURE for one of all services"""
    windows: Windows
    """histories: all users' first views, then their second ones; one per view, but for a batch of
    all services one per service of the view, [windows]"""
    dropout: Dropout
    mask_false_negatives: bool
    "whether users with the same items in both views are not negatives of each other"
    views: NDArray[np.int64] | None = None
    "view of each window, ascending, where views have several; None if window i is view i"
    cuts: NDArray[np.float64] | None = None
    "time of the cut of each window; None where the encoder does not read times, [windows]"

    @property
    def is_cut_in_time(self) -> bool:
        """Whether the views are of the same services, one before the other."""
        return self.pair[0] == self.pair[1]

    @cached_property
    def view_of(self) -> NDArray[np.int64]:
        """The view of each window; the views of user u are u and users + u, [windows]."""
        return np.arange(len(self.windows.lengths)) if self.views is None else self.views

    @property
    def users(self) -> int:
        """Number of users."""
        return (int(self.view_of[-1]) + 1) // 2

    @cached_property
    def events(self) -> Lists:
        """Items of the windows, before dropout."""
        return gather_events(self.corpus, self.windows)

    @cached_property
    def histories(self) -> Lists:
        """Items of the windows, after dropout of events."""
        return drop_events(self.events, self.windows, self.dropout)

    @cached_property
    def times(self) -> Lists:
        """Times of the events of `histories`."""
        return drop_events(gather_times(self.corpus, self.windows), self.windows, self.dropout)

    @cached_property
    def work(self) -> Work:
        """What the mathematics of the batch requires, every event's item counted as encoded."""
        return count_work(self.corpus, self.histories, self.users**2, self.dropout)

    @cached_property
    def duplicate_ids(self) -> NDArray[np.int64] | None:
        """A number per user, equal for users with the same items in both views, [users].

        None if all users differ, as then there is nothing to mask, or if nothing is to be masked.
        """
        if not self.mask_false_negatives:
            return None
        ids = number_histories(self.events, self.view_of, self.corpus.num_items)
        return ids if ids.max() + 1 < len(ids) else None

    @property
    def masked_pairs(self) -> int:
        """Number of ordered pairs of users that are not negatives of each other."""
        if self.duplicate_ids is None:
            return 0
        counts = np.bincount(self.duplicate_ids)
        return int((counts * (counts - 1)).sum())

    def deal(self, world_size: int) -> NDArray[np.int64]:
        """Return the users of each worker, [workers, users per worker]."""
        events = np.zeros(self.users, np.int64)
        np.add.at(events, self.view_of % self.users, self.windows.lengths)
        return deal(events, world_size)

    def rows_of(self, rank: int, world_size: int) -> NDArray[np.int64]:
        """Return the rows of one worker: the windows of the same users in both views."""
        mine = self.deal(world_size)[rank]
        views = np.concatenate([mine, mine + self.users])
        parts = np.bincount(self.view_of)
        return ranges((np.cumsum(parts) - parts)[views], parts[views])

    def pack(self, rows: NDArray[np.int64]) -> Packed:
        """Pack the histories of some rows for the encoder; the rows of a view are together."""
        histories, starts = self.histories.take(rows), self.windows.starts[rows]
        clock = None
        if self.cuts is not None:
            clock = Clock(self.times.take(rows), self.cuts[rows])
        packed = pack_histories(self.corpus, histories, starts, self.dropout, clock)
        return packed if self.views is None else packed.of_views(self.views[rows])


class BatchSampler:
    """Draws the global batches of one run.

    Raises:
        CorpusError: a batch needs more users than the best-filled pair of services has.
    """

    def __init__(self, run: RunSpec, corpus: Corpus):
        self.corpus = corpus
        self.train, self.reads_time = run.train, run.encoder.time
        self.batch_size = run.train.global_batch_size
        self.sequence_length = run.sequence_length
        self.among = run.corpus_users
        pools = self._find_pools(corpus.pairs())
        self.pools = self._large_enough(pools)
        if not self.pools:
            most = max(map(len, pools.values()))
            total = len(corpus.train_users[: self.among])
            raise CorpusError(
                f"global_batch_size {self.batch_size} is larger than the {most} training users of "
                f"the best-filled pair of services ({total} training users in total); "
                f"use at most {most}."
            )
        self.shares = _proportions(self.pools)
        self._add_pools_of_cuts()

    def batch(self, step: int) -> GlobalBatch:
        """Draw global batch `step`."""
        # Pair, users and windows come from one stream; their order defines every published run.
        rng = np.random.default_rng([self.train.seed, step])
        pair = list(self.pools)[rng.choice(len(self.pools), p=self.shares)]
        places = rng.choice(self.pools[pair], self.batch_size, replace=False)
        users = self.corpus.train_users[places]
        views, cuts = None, None
        if pair == PAST_FUTURE:
            windows, views, cuts = cut_histories(self.corpus, users, self.sequence_length, rng)
        else:
            draw = self._draw_halves if pair[0] == pair[1] else self._draw_pair
            windows = draw(users, pair, rng)
        return GlobalBatch(
            self.corpus,
            pair,
            windows,
            self._draw_dropout(step),
            self.train.mask_false_negatives,
            views,
            self._find_cuts(windows, views, cuts) if self.reads_time else None,
        )

    def _find_cuts(
        self,
        windows: Windows,
        views: NDArray[np.int64] | None,
        cuts: NDArray[np.float64] | None,
    ) -> NDArray[np.float64]:
        """Return the cut of each window: the user's own for the past, else what follows it."""
        after = times_after(self.corpus, windows.starts)
        if views is None or cuts is None:
            return after
        return np.where(views < len(cuts), after, cuts[views % len(cuts)])

    def _draw_pair(self, users: NDArray[np.int64], pair: Pair, rng: np.random.Generator) -> Windows:
        """Draw a window per user in the first service, then one per user in the second."""
        services = np.repeat(pair, self.batch_size)
        return _random_windows(self.corpus, np.tile(users, 2), services, self.sequence_length, rng)

    def _draw_halves(
        self, users: NDArray[np.int64], pair: Pair, rng: np.random.Generator
    ) -> Windows:
        """Draw one window per user; its recent half is the first view, the rest the second."""
        services = np.repeat(pair[0], self.batch_size)
        whole = _random_windows(self.corpus, users, services, 2 * self.sequence_length, rng)
        recent = (whole.lengths + 1) // 2
        starts = np.concatenate([whole.starts, whole.starts + recent])
        return Windows(starts, np.concatenate([recent, whole.lengths - recent]))

    def _draw_dropout(self, step: int) -> Dropout:
        """Draw what global batch `step` leaves out, from a stream of its own."""
        rng = np.random.default_rng([self.train.seed, step, 1])
        key, hide = int(rng.integers(2**62)), bool(rng.random() < HIDDEN_SHARE)
        return Dropout(key, self.train.event_dropout, self.train.token_dropout, hide)

    def _add_pools_of_cuts(self) -> None:
        """Give shares of the batches to pools of users whose history is cut in time."""
        services = range(len(self.corpus.services))
        asked = [
            (self.train.same_service, [(service, service) for service in services]),
            (self.train.past_future, [PAST_FUTURE]),
        ]
        added = [
            (share, found)
            for share, pairs in asked
            if share and (found := self._large_enough(self._find_pools(pairs)))
        ]
        parts = [(1 - sum(share for share, _ in added)) * self.shares]
        parts += [share * _proportions(found) for share, found in added]
        self.shares = np.concatenate(parts)
        for _, found in added:
            self.pools |= found

    def _find_pools(self, pairs: Iterable[Pair]) -> Pools:
        return {pair: self.corpus.training_pool(pair, self.among) for pair in pairs}

    def _large_enough(self, pools: Pools) -> Pools:
        """Select the pools that can fill a batch without drawing a user twice."""
        return {pair: pool for pair, pool in pools.items() if len(pool) >= self.batch_size}


def number_histories(events: Lists, views: NDArray[np.int64], items: int) -> NDArray[np.int64]:
    """Number users so that two share a number if they have the same items in both views.

    Order and repetition do not count: the two would be false negatives of each other, as nothing in
    the data tells them apart. Sets are compared by the sums of their items' hashes, which takes no
    loop over users; two different sets have equal sums with a probability of about 2^-64.

    Args:
        events: items of the windows.
        views: view of each window, ascending: of U users, view u is user u's first and view U + u
            the second, [windows].
        items: number of items in the corpus.

    Returns:
        Numbers from 0 to the number of different users - 1, [users].
    """
    rows = np.repeat(views, events.lengths)
    rows, distinct = np.divmod(np.unique(rows * items + events.values), items)
    sums = np.zeros(views[-1] + 1, np.uint64)
    np.add.at(sums, rows, keyed_hash(distinct, 1))
    first, second = np.split(sums, 2)
    _, numbers = np.unique(np.stack([first, second], axis=1), axis=0, return_inverse=True)
    return numbers


def _random_windows(
    corpus: Corpus,
    users: NDArray[np.int64],
    services: NDArray[np.int64],
    sequence_length: int,
    rng: np.random.Generator,
) -> Windows:
    """Draw consecutive events of each (user, service); a short history is taken whole."""
    starts, lengths = recent_windows(corpus, users, services, sequence_length)
    slack = corpus.count_events(users, services) - lengths
    return Windows(starts + rng.integers(0, slack + 1), lengths)


def _proportions(pools: Pools) -> NDArray[np.float64]:
    """Return each pool's share of the users of all pools."""
    sizes = np.array([len(pool) for pool in pools.values()], dtype=np.float64)
    return sizes / sizes.sum()
