"""The packed form of histories that the encoder reads: distinct items only, and no padding.

Most users of a batch share items, so each distinct item is encoded once (decision D5). Sequences
are sorted by length and stored end to end (`layout.py`).
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clue_ray.batches.bag import Bag, count_tokens
from clue_ray.batches.clock import Clock
from clue_ray.batches.dropout import (
    MASKS,
    NO_DROPOUT,
    Dropout,
    keep_events,
    keep_tokens,
    keyed_hash,
)
from clue_ray.batches.layout import Layout, group_lengths, lay_out, split_by_positions
from clue_ray.batches.lists import Lists
from clue_ray.batches.transfer import copy_to
from clue_ray.corpus.ranges import ranges
from clue_ray.corpus.store import Corpus
from clue_ray.errors import CorpusError
from clue_ray.spec.compute import Work


class Windows(NamedTuple):
    """Stretches of the corpus' event array, one per sequence."""

    starts: NDArray[np.int64]
    "index of each first (most recent) event, [sequences]"
    lengths: NDArray[np.int64]
    "number of events, [sequences]"


class Items(NamedTuple):
    """Distinct items ready to encode."""

    tokens: torch.Tensor
    "token ids, items end to end, [tokens]"
    positions: torch.Tensor
    "position of each token in its item, [tokens]"
    layout: Layout

    def split(self, tokens: int) -> list["Items"]:
        """Split into parts of at most `tokens` tokens."""
        parts, first, start = [], 0, 0
        for piece in split_by_positions(self.layout.groups, tokens):
            layout = self.layout.part(piece, first, start)
            stop = start + layout.positions
            parts.append(Items(self.tokens[start:stop], self.positions[start:stop], layout))
            first, start = first + layout.sequences, stop
        return parts


class Sequences(NamedTuple):
    """Histories ready to encode, given the encoded items."""

    event_items: torch.Tensor
    "index among the distinct items of each event, [events]"
    event_positions: torch.Tensor
    "recency of each event in its history, 0 the most recent, [events]"
    layout: Layout
    bag: Bag
    "distinct tokens of each sequence"
    event_times: torch.Tensor | None = None
    "rows of the table of times that each event reads, [events, 4]; None where the encoder has none"

    def split(self, events: int) -> list["Sequences"]:
        """Split into parts of at most `events` events."""
        pieces = split_by_positions(self.layout.groups, events)
        counts = [sum(count for count, _ in piece) for piece in pieces]
        parts, first, start = [], 0, 0
        for piece, bag in zip(pieces, self.bag.split(counts), strict=True):
            layout = self.layout.part(piece, first, start)
            stop = start + layout.positions
            places, recency = self.event_items[start:stop], self.event_positions[start:stop]
            times = None if self.event_times is None else self.event_times[start:stop]
            parts.append(Sequences(places, recency, layout, bag, times))
            first, start = first + layout.sequences, stop
        return parts


class Packed(NamedTuple):
    """Sequences of items ready to encode, all on one device, without padding."""

    items: Items
    sequences: Sequences
    order: torch.Tensor
    "storage index of each requested sequence, [sequences]"
    mask_key: int
    "seed of the dropout masks"
    views: torch.Tensor | None = None
    """first requested sequence of each view, [views]; None where each sequence is a view. A view's
    vector is the normalised mean of those of its sequences"""

    def of_views(self, views: NDArray[np.int64]) -> "Packed":
        """Say which view each requested sequence is a part of; those of a view are together."""
        firsts = np.flatnonzero(np.append(True, views[1:] != views[:-1]))
        return self._replace(views=torch.from_numpy(firsts))

    def to(self, device: torch.device) -> "Packed":
        """Copy the tensors to a device."""
        return copy_to(self, device)


def recent_windows(
    corpus: Corpus, users: NDArray[np.int64], services: NDArray[np.int64], sequence_length: int
) -> Windows:
    """Select the most recent events of each (user, service); users and services are [sequences]."""
    starts = corpus.offsets[users * len(corpus.services) + services]
    return Windows(starts, np.minimum(corpus.count_events(users, services), sequence_length))


def gather_events(corpus: Corpus, windows: Windows) -> Lists:
    """Read the items of windows."""
    return Lists(corpus.events[ranges(*windows)].astype(np.int64), windows.lengths)


def gather_times(corpus: Corpus, windows: Windows) -> Lists:
    """Read the times of the events of windows."""
    return Lists(corpus.times[ranges(*windows)], windows.lengths)


def drop_events(events: Lists, windows: Windows, dropout: Dropout) -> Lists:
    """Drop some of what was gathered of the events of windows; at least one per window stays."""
    if not dropout.event_dropout:
        return events
    keep = keep_events(ranges(*windows), windows.lengths, dropout)
    return Lists(events.values[keep], _count_kept(keep, windows.lengths))


def gather_tokens(corpus: Corpus, items: NDArray[np.int64], dropout: Dropout) -> Lists:
    """Read the tokens of items, guide token first, and drop some of the others."""
    lengths = corpus.count_item_tokens(items)
    addresses = ranges(corpus.item_offsets[items], lengths)
    tokens = corpus.item_tokens[addresses].astype(np.int64)
    guides = np.cumsum(lengths) - lengths
    if dropout.hide_services:
        tokens[guides] = corpus.shared_guide
    if not dropout.token_dropout:
        return Lists(tokens, lengths)
    keep = keep_tokens(addresses, guides, dropout)
    return Lists(tokens[keep], _count_kept(keep, lengths))


def _count_kept(keep: NDArray[np.bool_], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.add.reduceat(keep, np.cumsum(lengths) - lengths, dtype=np.int64)


def count_work(
    corpus: Corpus, histories: Lists, similarities: int = 0, dropout: Dropout = NO_DROPOUT
) -> Work:
    """Count users, events, tokens and their squares, every event's item counted as encoded."""
    tokens = _count_item_tokens(corpus, histories.values, dropout)
    return Work(
        users=len(histories.lengths),
        events=int(histories.lengths.sum()),
        events_squared=int((histories.lengths**2).sum()),
        tokens=int(tokens.sum()),
        tokens_squared=int((tokens**2).sum()),
        similarities=similarities,
        bag_tokens=int(tokens.sum()),
    )


def _count_item_tokens(
    corpus: Corpus, items: NDArray[np.int64], dropout: Dropout
) -> NDArray[np.int64]:
    """Count the tokens of items that dropout keeps, [items]; only dropout needs to read them."""
    if not dropout.token_dropout:
        return corpus.count_item_tokens(items)
    distinct, places = np.unique(items, return_inverse=True)
    return gather_tokens(corpus, distinct, dropout).lengths[places]


def count_executed(packed: Packed, similarities: int = 0) -> Work:
    """Count what encoding `packed` computes: each distinct item once."""
    items, sequences = packed.items, packed.sequences
    return Work(
        users=sequences.layout.sequences,
        events=sequences.layout.positions,
        events_squared=sum(count * length**2 for count, length in sequences.layout.groups),
        tokens=items.layout.positions,
        tokens_squared=sum(count * length**2 for count, length in items.layout.groups),
        similarities=similarities,
        bag_tokens=len(sequences.bag.tokens),
    )


def pack(
    corpus: Corpus,
    windows: Windows,
    dropout: Dropout = NO_DROPOUT,
    cuts: NDArray[np.float64] | None = None,
) -> Packed:
    """Pack windows for the encoder.

    Args:
        corpus: holds their events.
        windows: none of them empty.
        dropout: what to leave out of them.
        cuts: time of the cut of each window, for an encoder that reads time, [windows].

    Raises:
        CorpusError: a window has no events.
    """
    if not windows.lengths.all():
        empty = int((windows.lengths == 0).sum())
        raise CorpusError(
            f"{empty} of {len(windows.lengths)} histories have no events; leave those users out."
        )
    histories = drop_events(gather_events(corpus, windows), windows, dropout)
    clock = None
    if cuts is not None:
        clock = Clock(drop_events(gather_times(corpus, windows), windows, dropout), cuts)
    return pack_histories(corpus, histories, windows.starts, dropout, clock)


def pack_histories(
    corpus: Corpus,
    histories: Lists,
    starts: NDArray[np.int64],
    dropout: Dropout,
    clock: Clock | None = None,
) -> Packed:
    """Pack histories: sequences by length, their distinct items by length, each end to end.

    Args:
        histories: items of each sequence, after event dropout; none is empty.
        starts: of the sequences' windows, which name the sequences to dropout, [sequences].
        dropout: what else to leave out of them.
        clock: times of the sequences' events, for an encoder that reads them.
    """
    histories, by_length = sort_lists(histories)
    distinct, event_items = np.unique(histories.values, return_inverse=True)
    items, items_by_length = sort_lists(gather_tokens(corpus, distinct, dropout))
    places = _invert(items_by_length)[event_items]
    item_masks = _choose_masks(distinct[items_by_length], dropout.key)
    sequence_masks = _choose_masks(starts[by_length], dropout.key)
    return Packed(
        Items(
            torch.from_numpy(items.values),
            torch.from_numpy(_positions(items)),
            lay_out(group_lengths(items.lengths), item_masks),
        ),
        Sequences(
            torch.from_numpy(places),
            torch.from_numpy(_positions(histories)),
            lay_out(group_lengths(histories.lengths), sequence_masks),
            count_tokens(histories, places, items),
            None if clock is None else clock.take(by_length).rows(),
        ),
        order=torch.from_numpy(_invert(by_length)),
        mask_key=dropout.key,
    )


def bag_histories(corpus: Corpus, histories: Lists) -> Bag:
    """Count the tokens of histories of items, in their order, without dropout."""
    distinct, event_items = np.unique(histories.values, return_inverse=True)
    return count_tokens(histories, event_items, gather_tokens(corpus, distinct, NO_DROPOUT))


def sort_lists(lists: Lists) -> tuple[Lists, NDArray[np.int64]]:
    """Sort lists by length, stably; return them and their order, [lists]."""
    order = np.argsort(lists.lengths, kind="stable")
    return lists.take(order), order


def _choose_masks(names: NDArray[np.int64], key: int) -> torch.Tensor:
    """Choose a dropout mask by the hash of each name, so that any chunk chooses the same."""
    return torch.from_numpy((keyed_hash(names, key) % np.uint64(MASKS)).astype(np.int64))


def _positions(lists: Lists) -> NDArray[np.int64]:
    """Return the position of each value in its list, [values]."""
    return ranges(np.zeros_like(lists.lengths), lists.lengths)


def _invert(permutation: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the inverse of a permutation."""
    inverse = np.empty_like(permutation)
    inverse[permutation] = np.arange(len(permutation))
    return inverse
