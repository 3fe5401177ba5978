"""Global batches as a pure function of (corpus, run, step), and the packed form the encoder reads.

A batch holds users that all have events in one pair of services (decision D1), drawn without
replacement, each with a random window of history in either service. Every draw is seeded by (seed,
step) alone, so that any number of workers sees the same batch (decision D7) and a resumed run needs
no loader state; what is left out at random is in `augment`. Each distinct item is encoded once
(decision D5). Nothing is padded: sequences are sorted by length and stored end to end, a `Groups`
entry a length.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clue_ray.batches.dropout import (
    MASKS,
    WHOLE,
    Augmentation,
    Lists,
    events_of,
    keyed_hash,
    tokens_of,
)
from clue_ray.corpus.store import Corpus, ranges
from clue_ray.errors import CorpusError
from clue_ray.spec.compute import Work

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
    item_masks: torch.Tensor
    "which dropout mask each distinct item takes, [items]"
    user_masks: torch.Tensor
    "which dropout mask each sequence takes, in storage order, [sequences]"
    mask_key: int
    "seed of the dropout masks"

    def to(self, device: torch.device) -> "Packed":
        """Copy the tensors to a device."""
        parts: list[Any] = [
            part.to(device) if isinstance(part, torch.Tensor) else part for part in self
        ]
        return Packed(*parts)


class Windows(NamedTuple):
    """Stretches of the corpus' event array, one a sequence."""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def proportions(pools: dict[tuple[int, int], NDArray[np.int64]]) -> NDArray[np.float64]:
    """Return each pool's share of all pools' users."""
    sizes = np.array([len(pool) for pool in pools.values()], dtype=np.float64)
    return sizes / sizes.sum()


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
    """Take a random stretch of consecutive events of each (user, service); a short history is taken
    whole.
    """
    starts, lengths = recent_windows(corpus, users, services, sequence_length)
    slack = corpus.counts[users, services] - lengths
    return Windows(starts + rng.integers(0, slack + 1), lengths)


def count_work(
    corpus: Corpus, windows: Windows, similarities: int = 0, augmentation: Augmentation = WHOLE
) -> Work:
    """Count users, events, tokens and their squares of windows, duplicates included."""
    histories = events_of(corpus, *windows, augmentation)
    items, places = np.unique(histories.values, return_inverse=True)
    tokens = tokens_of(corpus, items, augmentation).lengths[places]
    return Work(
        users=len(histories.lengths),
        events=int(histories.lengths.sum()),
        events_squared=int((histories.lengths**2).sum()),
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


def pack(corpus: Corpus, windows: Windows, augmentation: Augmentation = WHOLE) -> Packed:
    """Lay windows out for the encoder: sequences by length, distinct items by length, end to end.

    Raises:
        CorpusError: a window has no events.
    """
    if not windows.lengths.all():
        empty = int((windows.lengths == 0).sum())
        raise CorpusError(
            f"{empty} of {len(windows.lengths)} histories have no events; leave those users out."
        )
    histories, by_length = sort_lists(events_of(corpus, *windows, augmentation))
    distinct, event_items = np.unique(histories.values, return_inverse=True)
    items, items_by_length = sort_lists(tokens_of(corpus, distinct, augmentation))
    masks = [
        torch.from_numpy((keyed_hash(names, augmentation.key) % np.uint64(MASKS)).astype(np.int64))
        for names in (distinct[items_by_length], windows.starts[by_length])
    ]
    return Packed(
        tokens=torch.from_numpy(items.values),
        token_positions=torch.from_numpy(ranges(np.zeros_like(items.lengths), items.lengths)),
        item_groups=group_lengths(items.lengths),
        event_items=torch.from_numpy(_invert(items_by_length)[event_items]),
        event_positions=torch.from_numpy(
            ranges(np.zeros_like(histories.lengths), histories.lengths)
        ),
        user_groups=group_lengths(histories.lengths),
        order=torch.from_numpy(_invert(by_length)),
        item_masks=masks[0],
        user_masks=masks[1],
        mask_key=augmentation.key,
    )


def sort_lists(lists: Lists) -> tuple[Lists, NDArray[np.int64]]:
    """Sort lists by length, stably; return them and the order."""
    order = np.argsort(lists.lengths, kind="stable")
    lengths = lists.lengths[order]
    starts = (np.cumsum(lists.lengths) - lists.lengths)[order]
    return Lists(lists.values[ranges(starts, lengths)], lengths), order


def same_histories(corpus: Corpus, windows: Windows) -> NDArray[np.int64]:
    """Number the users of a global batch such that two have one number if they saw the same items
    in both services.

    Order and repetition do not count. Returns [users].
    """
    items, rows = (
        corpus.events[ranges(*windows)].astype(np.int64),
        np.repeat(np.arange(len(windows.lengths)), windows.lengths),
    )
    distinct = np.unique(rows * len(corpus.item_lengths) + items)
    rows, items = np.divmod(distinct, len(corpus.item_lengths))
    sums = np.zeros(len(windows.lengths), np.uint64)
    np.add.at(sums, rows, keyed_hash(items, 1))
    first, second = np.split(sums, 2)
    _, numbers = np.unique(np.stack([first, second], axis=1), axis=0, return_inverse=True)
    return numbers


def group_lengths(lengths: NDArray[np.int64]) -> Groups:
    """Run-length encode sorted lengths."""
    distinct, counts = np.unique(lengths, return_counts=True)
    return list(zip(counts.tolist(), distinct.tolist(), strict=True))


def _invert(permutation: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the inverse of a permutation."""
    inverse = np.empty_like(permutation)
    inverse[permutation] = np.arange(len(permutation))
    return inverse
