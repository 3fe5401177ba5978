"""Batches packed on the device that trains, from a corpus that lies on it.

The host draws the users and windows of a batch, two numbers per sequence. Everything else is done
by torch on the device: gathering events and tokens, dropout, the distinct items, the bag, and the
false negatives. The results equal those of `packing.py` bit for bit, which stays the reference; the
weights of the bag do so up to the order of a sum on a GPU. Hashes are computed in int64, whose
products wrap as those of uint64 do.

Some shapes depend on the values, so each batch waits for the device a few times. A thread packs
ahead on a stream of its own, so training does not wait.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clue_ray.batches.bag import Bag
from clue_ray.batches.clock import clock_rows
from clue_ray.batches.dropout import MASKS, Dropout
from clue_ray.batches.layout import Groups, Layout
from clue_ray.batches.packing import Items, Packed, Sequences, Windows
from clue_ray.corpus.store import Corpus
from clue_ray.spec.compute import Work

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Constants of splitmix64, as in `dropout.keyed_hash`."""
SIGN = -(2**63)
BLOCK = 4_000_000
"""Numbers that are copied to the device at a time."""


class ResidentCorpus:
    """The arrays of a corpus that batches read, on a device.

    Attributes:
        events: item of each event, [events].
        item_tokens: tokens of all items, end to end.
        item_offsets: bounds of each item in `item_tokens`, [items + 1].
        shared_guide: guide token of any service.
        times: time of each event, [events]; None where the encoder does not read times.
    """

    def __init__(self, corpus: Corpus, device: torch.device, *, times: bool = False):
        self.device = device
        self.times = _resident(corpus.times, device) if times else None
        self.events = _resident(corpus.events, device)
        self.item_tokens = _resident(corpus.item_tokens, device)
        self.item_offsets = _resident(corpus.item_offsets, device)
        self.shared_guide = corpus.shared_guide

    @staticmethod
    def size(corpus: Corpus, *, times: bool = False) -> int:
        """Return the bytes that a corpus takes on a device."""
        items = corpus.events.nbytes + corpus.item_tokens.nbytes + corpus.item_offsets.nbytes
        return items + (corpus.times.nbytes if times else 0)


@dataclass(frozen=True)
class Histories:
    """Lists of different lengths on a device, end to end."""

    values: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class DeviceBatch:
    """What `sampler.GlobalBatch` is, computed on a device."""

    corpus: ResidentCorpus
    windows: Windows
    dropout: Dropout
    mask_false_negatives: bool
    views: NDArray[np.int64] | None = None
    cuts: NDArray[np.float64] | None = None

    @cached_property
    def view_of(self) -> NDArray[np.int64]:
        """The view of each window, on the host, [windows]."""
        return np.arange(len(self.windows.lengths)) if self.views is None else self.views

    @cached_property
    def starts(self) -> Tensor:
        """First event of each window, [sequences]."""
        return torch.from_numpy(self.windows.starts).to(self.corpus.device)

    @cached_property
    def events(self) -> Histories:
        """Items of the windows, before dropout."""
        return Histories(self.corpus.events[self.addresses].long(), self.lengths)

    @cached_property
    def lengths(self) -> Tensor:
        """Events of each window, [sequences]."""
        return torch.from_numpy(self.windows.lengths).to(self.corpus.device)

    @cached_property
    def addresses(self) -> Tensor:
        """Index in the corpus of each event of the windows, before dropout, [events]."""
        return _ranges(self.starts, self.lengths, int(self.windows.lengths.sum()))

    @cached_property
    def histories(self) -> Histories:
        """Items of the windows, after dropout of events."""
        return self._drop(self.events)

    def _drop(self, events: Histories) -> Histories:
        """Drop some of what was gathered of the windows' events."""
        dropout = self.dropout
        if not dropout.event_dropout:
            return events
        hashes = keyed_hash(self.addresses, dropout.key)
        owners = _owners(events.lengths, len(events.values))
        # Signed comparison with the sign bit flipped is unsigned comparison.
        highest = torch.full((len(events.lengths),), SIGN, device=hashes.device)
        highest.scatter_reduce_(0, owners, hashes ^ SIGN, "amax")
        keep = _kept(hashes, dropout.event_dropout) | ((hashes ^ SIGN) == highest[owners])
        return Histories(events.values[keep], _count(keep, events.lengths))

    @cached_property
    def work(self) -> Work:
        """What the mathematics of the batch requires, every event's item counted as encoded."""
        histories = self.histories
        items, places = histories.values.unique(return_inverse=True)
        tokens = _gather_tokens(self.corpus, items, self.dropout).lengths[places]
        lengths, users = histories.lengths, (int(self.view_of[-1]) + 1) // 2
        counts = torch.stack(
            [lengths.sum(), (lengths**2).sum(), tokens.sum(), (tokens**2).sum(), tokens.sum()]
        )
        events, events_squared, all_tokens, tokens_squared, bag_tokens = counts.tolist()
        return Work(
            users=len(lengths),
            events=events,
            events_squared=events_squared,
            tokens=all_tokens,
            tokens_squared=tokens_squared,
            similarities=users**2,
            bag_tokens=bag_tokens,
        )

    @cached_property
    def duplicate_ids(self) -> Tensor | None:
        """A number per user as in `GlobalBatch`, [users]; None where there is nothing to mask."""
        if not self.mask_false_negatives:
            return None
        views = torch.from_numpy(self.view_of).to(self.corpus.device)
        ids = _number_histories(self.events, views, len(self.corpus.item_offsets) - 1)
        return ids if int(ids.max()) + 1 < len(ids) else None

    @property
    def masked_pairs(self) -> int:
        """Number of ordered pairs of users that are not negatives of each other."""
        if self.duplicate_ids is None:
            return 0
        counts = self.duplicate_ids.bincount()
        return int((counts * (counts - 1)).sum())

    def pack(self, rows: NDArray[np.int64]) -> Packed:
        """Pack the histories of some rows for the encoder."""
        chosen = torch.from_numpy(rows).to(self.corpus.device)
        histories = _take(self.histories, chosen)
        packed = _pack(self.corpus, histories, self.starts[chosen], self.dropout, self._clock(rows))
        if self.views is None:
            return packed
        return packed.of_views(self.views[rows]).to(self.corpus.device)

    def _clock(self, rows: NDArray[np.int64]) -> "_Clock | None":
        """Return the times of the events of some rows, and their cuts."""
        if self.cuts is None or self.corpus.times is None:
            return None
        times = self._drop(Histories(self.corpus.times[self.addresses], self.lengths))
        chosen, cuts = (
            torch.from_numpy(each).to(times.values.device) for each in (rows, self.cuts)
        )
        return _take(times, chosen), cuts[chosen]


_Clock = tuple[Histories, Tensor]


def _pack(
    corpus: ResidentCorpus,
    histories: Histories,
    starts: Tensor,
    dropout: Dropout,
    clock: _Clock | None,
) -> Packed:
    by_length = histories.lengths.argsort(stable=True)
    histories = _take(histories, by_length)
    distinct, event_items = histories.values.unique(return_inverse=True)
    items = _gather_tokens(corpus, distinct, dropout)
    items_by_length = items.lengths.argsort(stable=True)
    items = _take(items, items_by_length)
    places = _invert(items_by_length)[event_items]
    return Packed(
        Items(
            items.values,
            _positions(items),
            _lay_out(items.lengths, distinct[items_by_length], dropout.key),
        ),
        Sequences(
            places,
            _positions(histories),
            _lay_out(histories.lengths, starts[by_length], dropout.key),
            _count_tokens(histories, places, items),
            _sort_clock(clock, by_length),
        ),
        order=_invert(by_length),
        mask_key=dropout.key,
    )


def _sort_clock(clock: _Clock | None, by_length: Tensor) -> Tensor | None:
    """Return the rows of the table of times, in the order of the sequences."""
    if clock is None:
        return None
    times = _take(clock[0], by_length)
    return clock_rows(times.values, times.lengths, clock[1][by_length])


def keyed_hash(addresses: Tensor, key: int) -> Tensor:
    """Hash int64 addresses as `dropout.keyed_hash` does; the same 64 bits, as int64."""
    z = addresses + _signed(key * GOLDEN)
    for shift, factor in ((30, FIRST), (27, SECOND)):
        z = (z ^ _shift(z, shift)) * _signed(factor)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift to the right without the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """Return the int64 with the low 64 bits of a number."""
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number


def _kept(hashes: Tensor, rate: float) -> Tensor:
    """Return which hashes, read as uint64, are at least the share `rate` of their range."""
    return (hashes ^ SIGN) >= (_signed(int(np.uint64(rate * 2.0**64))) ^ SIGN)


def _gather_tokens(corpus: ResidentCorpus, items: Tensor, dropout: Dropout) -> Histories:
    """Read the tokens of items, guide token first, and drop some of the others."""
    first = corpus.item_offsets[items]
    lengths = corpus.item_offsets[items + 1] - first
    addresses = _ranges(first, lengths, int(lengths.sum()))
    tokens = corpus.item_tokens[addresses].long()
    guides = lengths.cumsum(0) - lengths
    if dropout.hide_services:
        tokens[guides] = corpus.shared_guide
    if not dropout.token_dropout:
        return Histories(tokens, lengths)
    keep = _kept(keyed_hash(addresses, dropout.key), dropout.token_dropout)
    keep[guides] = True
    return Histories(tokens[keep], _count(keep, lengths))


def _count_tokens(histories: Histories, places: Tensor, items: Histories) -> Bag:
    """Count the tokens of histories as `bag.count_tokens` does."""
    firsts = items.lengths.cumsum(0) - items.lengths
    texts = items.lengths[places] - 1
    total = int(texts.sum())
    tokens = items.values[_ranges(firsts[places] + 1, texts, total)]
    owners = _owners(histories.lengths, len(places)).repeat_interleave(texts, output_size=total)
    spread = int(items.values.max()) + 1
    keys, counts = (owners * spread + tokens).unique(return_counts=True)
    rows, columns = keys // spread, keys % spread
    weights = _saturation(counts)
    norms = torch.zeros(len(histories.lengths), dtype=torch.float64, device=keys.device)
    norms.index_add_(0, rows, weights**2)
    entries = rows.bincount(minlength=len(histories.lengths))
    starts = entries.cumsum(0) - entries + torch.arange(len(entries), device=keys.device)
    # Each row has one more entry, its guide token, before the others.
    after = torch.arange(len(keys), device=keys.device) + rows + 1
    first_events = histories.lengths.cumsum(0) - histories.lengths
    guides = items.values[firsts[places[first_events]]]
    size = len(keys) + len(entries)
    found = torch.empty(size, dtype=torch.long, device=keys.device)
    found[after], found[starts] = columns, guides
    scaled = torch.ones(size, dtype=torch.float64, device=keys.device)
    scaled[after] = weights / norms.sqrt()[rows]
    return Bag(found, scaled.float(), starts)


def _saturation(counts: Tensor) -> Tensor:
    """Return 1 + ln count in float64, from the host's logarithms: those of devices differ."""
    most = int(counts.max()) if len(counts) else 1
    table = 1 + np.log(np.arange(1, most + 1, dtype=np.float64))
    return torch.from_numpy(table).to(counts.device)[counts - 1]


def _number_histories(events: Histories, views: Tensor, items: int) -> Tensor:
    """Number users by the items of their two views, as `sampler.number_histories` does."""
    rows = views.repeat_interleave(events.lengths, output_size=len(events.values))
    keys = (rows * items + events.values).unique()
    sums = torch.zeros(int(views[-1]) + 1, dtype=torch.long, device=keys.device)
    sums.index_add_(0, keys // items, keyed_hash(keys % items, 1))
    # Numbers are in the order of the pairs of unsigned sums.
    first, second = (half.unique(return_inverse=True)[1] for half in (sums ^ SIGN).chunk(2))
    numbers: Tensor = (first * len(second) + second).unique(return_inverse=True)[1]
    return numbers


def _lay_out(lengths: Tensor, names: Tensor, key: int) -> Layout:
    """Lay out sequences of sorted lengths; their masks are chosen by the hashes of their names."""
    distinct, counts = lengths.unique(return_counts=True)
    groups: Groups = list(zip(counts.tolist(), distinct.tolist(), strict=True))
    bounds = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=lengths.device)
    bounds[1:] = lengths.cumsum(0)
    # MASKS is a power of two, so the remainder of the unsigned hash is its last bits.
    return Layout(groups, bounds, keyed_hash(names, key) & (MASKS - 1))


def _take(lists: Histories, rows: Tensor) -> Histories:
    """Return the lists of some rows, in their order."""
    lengths = lists.lengths[rows]
    starts = (lists.lengths.cumsum(0) - lists.lengths)[rows]
    return Histories(lists.values[_ranges(starts, lengths, int(lengths.sum()))], lengths)


def _ranges(starts: Tensor, lengths: Tensor, total: int) -> Tensor:
    """Concatenate the ranges [start, start + length), [total]."""
    offsets = starts - (lengths.cumsum(0) - lengths)
    repeated = offsets.repeat_interleave(lengths, output_size=total)
    return torch.arange(total, device=starts.device) + repeated


def _owners(lengths: Tensor, total: int) -> Tensor:
    """Return the list of each value, [total]."""
    lists = torch.arange(len(lengths), device=lengths.device)
    return lists.repeat_interleave(lengths, output_size=total)


def _positions(lists: Histories) -> Tensor:
    return _ranges(torch.zeros_like(lists.lengths), lists.lengths, len(lists.values))


def _count(keep: Tensor, lengths: Tensor) -> Tensor:
    """Count what is kept of each list."""
    counts = torch.zeros_like(lengths)
    return counts.index_add_(0, _owners(lengths, len(keep)), keep.long())


def _invert(permutation: Tensor) -> Tensor:
    inverse = torch.empty_like(permutation)
    inverse[permutation] = torch.arange(len(permutation), device=permutation.device)
    return inverse


def _resident(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy an array, which may be mapped from a file, to a device.

    It is copied in blocks: a copy of the whole would be private memory of each process of a node.
    """
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    copy = torch.empty(len(array), dtype=dtype, device=device)
    for start in range(0, len(array), BLOCK):
        block = torch.from_numpy(np.array(array[start : start + BLOCK]))
        copy[start : start + BLOCK] = block
    return copy
