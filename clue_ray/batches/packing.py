"""The packed form of histories that the encoder reads: distinct items only, and no padding.

Most users of a batch share items, so each distinct item is encoded once (decision D5). Sequences
are sorted by length and stored end to end. The sort makes equally long sequences neighbours: a
`Groups` entry then describes all of them, and a plain view of their positions as
[sequences, length, ...] is what attention and means need. Without the sort each sequence would be
its own group, with its own kernel launch.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clue_ray.batches.bag import Bag, count_tokens
from clue_ray.batches.dropout import (
    MASKS,
    NO_DROPOUT,
    Dropout,
    keep_events,
    keep_tokens,
    keyed_hash,
)
from clue_ray.batches.lists import Lists
from clue_ray.corpus.ranges import ranges
from clue_ray.corpus.store import Corpus
from clue_ray.errors import CorpusError
from clue_ray.spec.compute import Work

Groups = list[tuple[int, int]]
"""Runs of equally long sequences: (number of sequences, their length), in storage order."""


class Windows(NamedTuple):
    """Stretches of the corpus' event array, one per sequence."""

    starts: NDArray[np.int64]
    "index of each first (most recent) event, [sequences]"
    lengths: NDArray[np.int64]
    "number of events, [sequences]"


class Packed(NamedTuple):
    """Sequences of items ready to encode, all on one device, without padding."""

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
    "storage index of each requested sequence, [sequences]"
    item_masks: torch.Tensor
    "index of the dropout mask of each distinct item, in storage order, [items]"
    user_masks: torch.Tensor
    "index of the dropout mask of each sequence, in storage order, [sequences]"
    mask_key: int
    "seed of the dropout masks"
    bag: Bag
    "distinct tokens of each sequence, in storage order"

    def to(self, device: torch.device) -> "Packed":
        """Copy the tensors to a device."""
        parts: list[Any] = [
            part.to(device) if isinstance(part, torch.Tensor | Bag) else part for part in self
        ]
        return Packed(*parts)


def recent_windows(
    corpus: Corpus, users: NDArray[np.int64], services: NDArray[np.int64], sequence_length: int
) -> Windows:
    """Select the most recent events of each (user, service); users and services are [sequences]."""
    starts = corpus.offsets[users * len(corpus.services) + services]
    return Windows(starts, np.minimum(corpus.count_events(users, services), sequence_length))


def gather_events(corpus: Corpus, windows: Windows) -> Lists:
    """Read the items of windows."""
    return Lists(corpus.events[ranges(*windows)].astype(np.int64), windows.lengths)


def drop_events(events: Lists, windows: Windows, dropout: Dropout) -> Lists:
    """Drop some of the gathered events of windows; at least one per window stays."""
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
    return Work(
        users=sum(count for count, _ in packed.user_groups),
        events=sum(count * length for count, length in packed.user_groups),
        events_squared=sum(count * length**2 for count, length in packed.user_groups),
        tokens=sum(count * length for count, length in packed.item_groups),
        tokens_squared=sum(count * length**2 for count, length in packed.item_groups),
        similarities=similarities,
        bag_tokens=len(packed.bag.tokens),
    )


def pack(corpus: Corpus, windows: Windows, dropout: Dropout = NO_DROPOUT) -> Packed:
    """Pack windows for the encoder.

    Raises:
        CorpusError: a window has no events.
    """
    if not windows.lengths.all():
        empty = int((windows.lengths == 0).sum())
        raise CorpusError(
            f"{empty} of {len(windows.lengths)} histories have no events; leave those users out."
        )
    histories = drop_events(gather_events(corpus, windows), windows, dropout)
    return pack_histories(corpus, histories, windows.starts, dropout)


def pack_histories(
    corpus: Corpus, histories: Lists, starts: NDArray[np.int64], dropout: Dropout
) -> Packed:
    """Pack histories: sequences by length, their distinct items by length, each end to end.

    Args:
        histories: items of each sequence, after event dropout; none is empty.
        starts: of the sequences' windows, which name the sequences to dropout, [sequences].
        dropout: what else to leave out of them.
    """
    histories, by_length = sort_lists(histories)
    distinct, event_items = np.unique(histories.values, return_inverse=True)
    items, items_by_length = sort_lists(gather_tokens(corpus, distinct, dropout))
    return Packed(
        tokens=torch.from_numpy(items.values),
        token_positions=torch.from_numpy(_positions(items)),
        item_groups=group_lengths(items.lengths),
        event_items=torch.from_numpy(_invert(items_by_length)[event_items]),
        event_positions=torch.from_numpy(_positions(histories)),
        user_groups=group_lengths(histories.lengths),
        order=torch.from_numpy(_invert(by_length)),
        item_masks=_choose_masks(distinct[items_by_length], dropout.key),
        user_masks=_choose_masks(starts[by_length], dropout.key),
        mask_key=dropout.key,
        bag=count_tokens(histories, _invert(items_by_length)[event_items], items),
    )


def bag_histories(corpus: Corpus, histories: Lists) -> Bag:
    """Count the tokens of histories of items, in their order, without dropout."""
    distinct, event_items = np.unique(histories.values, return_inverse=True)
    return count_tokens(histories, event_items, gather_tokens(corpus, distinct, NO_DROPOUT))


def sort_lists(lists: Lists) -> tuple[Lists, NDArray[np.int64]]:
    """Sort lists by length, stably; return them and their order, [lists]."""
    order = np.argsort(lists.lengths, kind="stable")
    return lists.take(order), order


def group_lengths(lengths: NDArray[np.int64]) -> Groups:
    """Run-length encode sorted lengths."""
    distinct, counts = np.unique(lengths, return_counts=True)
    return list(zip(counts.tolist(), distinct.tolist(), strict=True))


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
