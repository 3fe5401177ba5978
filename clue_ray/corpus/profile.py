"""Profile a corpus: what one wants to know about a log before training on it.

All events of a user are in one shard, so the counts and histograms of shards add up to those of the
corpus. Only items occur in several shards; the training layout counts them, because it numbers
them. Memory holds histograms and one overlap matrix, but never events, items or texts.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clue_ray.corpus.forms import Forms, sample_forms
from clue_ray.corpus.hashes import split_of
from clue_ray.corpus.logs.ids import DOUBTFUL
from clue_ray.corpus.logs.times import EARLIEST_DATE
from clue_ray.corpus.rows import SortedRows
from clue_ray.corpus.tokenizer import TokenizedItems
from clue_ray.spec.specs import CorpusSpec

SPLITS = ("train", "validation", "test")
SEQUENCE_LENGTHS = (4, 8, 16, 32, 64, 128, 256, 512)
PERCENTILES = (10, 50, 90, 99, 100)


def count_shard(
    rows: SortedRows,
    kept: NDArray[np.bool_],
    items: TokenizedItems,
    spec: CorpusSpec,
    services: int,
    limit: int = 1000,
) -> dict[str, Any]:
    """Count the users, histories and items in the kept rows of a shard, as in SHARD_COUNTS.

    Args:
        limit: number of users whose ids are compared with those of other shards.
    """
    user, service, time = rows.user[kept], rows.service[kept], rows.time[kept]
    counts = np.bincount(
        user * services + service, minlength=len(rows.user_ids) * services
    ).reshape(-1, services)
    present = counts > 0
    holding = present.any(axis=1)
    split = split_of(pd.Series(rows.user_ids.to_pandas()), spec.split)[holding]
    lengths, number = np.unique(counts[present], return_counts=True)
    return {
        "split": [int((split == name).sum()) for name in SPLITS],
        "overlap": (present.T.astype(np.int64) @ present.astype(np.int64)).ravel(),
        "users_by_services": np.bincount(present[holding].sum(axis=1), minlength=services + 1),
        "history_lengths": lengths,
        "history_counts": number,
        "first_time": float(time.min()) if len(time) else None,
        "last_time": float(time.max()) if len(time) else None,
        **sample_forms(rows.user_ids.filter(pa.array(holding)), limit),
        "doubtful": _find_doubtful(rows.user_ids, counts.sum(axis=1)),
        **_count_tokens(items.text_tokens[rows.item[kept]]),
    }


def _count_tokens(text_tokens: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    """Count events by the tokens of their text."""
    lengths, events = np.unique(text_tokens, return_counts=True)
    return {"token_lengths": lengths, "token_events": events}


def _find_doubtful(users: pa.Array, events: NDArray[np.int64]) -> list[list[str]]:
    """List the ids that look like placeholders, each with its number of events."""
    doubtful = pc.is_in(pc.utf8_lower(users), value_set=pa.array(DOUBTFUL)).to_numpy(
        zero_copy_only=False
    )
    return [[users[int(i)].as_py(), str(events[i])] for i in np.flatnonzero(doubtful)]


class ShardTotals:
    """The counts of all shards, added up one shard at a time.

    Attributes:
        files: name -> sha256 of every file.
        totals: number of `rows`, `later` events and `duplicates`.
        arrays: sums of the arrays that have the same shape in every shard.
        histories: length of a history -> number of histories.
        event_tokens: tokens of an event's text -> number of events.
        times: first and last time of every shard.
        forms: user ids that may differ by form alone.
        doubtful: id that looks like a placeholder -> number of events.
    """

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.totals: Counter[str] = Counter()
        self.arrays: dict[str, NDArray[np.int64]] = {}
        self.histories: Counter[int] = Counter()
        self.event_tokens: Counter[int] = Counter()
        self.times: list[float] = []
        self.forms = Forms()
        self.doubtful: dict[str, int] = {}

    def add(self, shards: Iterable[dict[str, Any]]) -> None:
        """Add shards, given as rows of SHARD_COUNTS."""
        for shard in shards:
            self.files |= dict(shard["files"])
            self.totals.update({name: shard[name] for name in ("rows", "later", "duplicates")})
            for name in ("split", "overlap", "users_by_services"):
                self.arrays[name] = self.arrays.get(name, 0) + np.asarray(shard[name])
            self.histories.update(
                dict(zip(shard["history_lengths"], shard["history_counts"], strict=True))
            )
            self.times += [
                time for time in (shard["first_time"], shard["last_time"]) if time is not None
            ]
            self.forms.add(shard)
            self.doubtful |= {name: int(events) for name, events in shard["doubtful"]}
            self.event_tokens.update(
                dict(zip(shard["token_lengths"], shard["token_events"], strict=True))
            )

    def is_order(self) -> bool:
        """Return whether timestamps end before 1980, so that they are hardly dates."""
        return bool(self.times) and max(self.times) < EARLIEST_DATE

    def profile(self, services: tuple[str, ...], spec: CorpusSpec, timed: bool) -> dict[str, Any]:
        """Return the part of the profile that comes from the shards, as JSON values.

        Args:
            timed: whether all logs have timestamps.
        """
        histories, tokens = _as_arrays(self.histories), _as_arrays(self.event_tokens)
        overlap = self.arrays["overlap"].reshape(len(services), -1)
        events, kept = int((histories[0] * histories[1]).sum()), int(tokens[1].sum())
        assert events == kept, "every event has one item"
        return {
            "users": int(self.arrays["split"].sum()),
            "users_by_split": dict(zip(SPLITS, self.arrays["split"].tolist(), strict=True)),
            "users_by_services": {
                str(n): int(users)
                for n, users in enumerate(self.arrays["users_by_services"])
                if n and users
            },
            "events": events,
            "events_after_cut": self.totals["later"],
            "duplicate_rows": self.totals["duplicates"],
            "tokens": int((np.minimum(tokens[0], spec.max_item_tokens) * tokens[1]).sum()) + events,
            "tokens_per_event": _percentiles(*tokens),
            "events_cut_at_max_item_tokens": _share(
                tokens[1][tokens[0] > spec.max_item_tokens].sum(), events
            ),
            "events_per_user_and_service": _percentiles(*histories),
            "fits_sequence_length": {str(n): _fit(histories, n) for n in SEQUENCE_LENGTHS},
            "users_in_service": dict(zip(services, np.diagonal(overlap).tolist(), strict=True)),
            "overlap": {
                name: dict(zip(services, row.tolist(), strict=True))
                for name, row in zip(services, overlap, strict=True)
            },
            "time": [min(self.times), max(self.times)] if timed and self.times else None,
            "time_reads_as_order": timed and self.is_order(),
            "ids_that_differ_by_form": self.forms.summary(),
            "doubtful_ids": dict(sorted(self.doubtful.items())),
        }


def count_items(text_tokens: Counter[int]) -> dict[str, Any]:
    """Return the part of the profile that describes distinct items.

    Args:
        text_tokens: tokens of an item's whole text -> number of items.
    """
    return {
        "distinct_items": text_tokens.total(),
        "tokens_per_item": _percentiles(*_as_arrays(text_tokens)),
    }


def _as_arrays(histogram: Counter[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the values of a histogram, sorted, and their counts."""
    values = np.array(sorted(histogram), dtype=np.int64)
    return values, np.array([histogram[value] for value in values.tolist()], dtype=np.int64)


def _percentiles(values: NDArray[np.int64], counts: NDArray[np.int64]) -> dict[str, int]:
    """Return percentiles of a histogram, without interpolation: each is a value that occurs."""
    cumulative = np.cumsum(counts)
    places = [np.searchsorted(cumulative, p / 100 * cumulative[-1]) for p in PERCENTILES]
    return {f"p{p}": int(values[place]) for p, place in zip(PERCENTILES, places, strict=True)}


def _fit(
    histories: tuple[NDArray[np.int64], NDArray[np.int64]], sequence_length: int
) -> dict[str, float]:
    """Return the share of events that a sequence length keeps, and of histories kept in full."""
    lengths, counts = histories
    kept = (np.minimum(lengths, sequence_length) * counts).sum()
    whole = counts[lengths <= sequence_length].sum()
    return {
        "events": _share(kept, (lengths * counts).sum()),
        "histories": _share(whole, counts.sum()),
    }


def _share(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else 0.0
