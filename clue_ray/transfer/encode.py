"""Encode users by the text of their events, in this process and without ray.

Events become `Histories`, which have the layout of a corpus, so all code that reads a corpus also
reads them. Each distinct item of a block of users is encoded once, whatever the number of users and
services with that item, and there is no padding. Shape suffixes are those of `encoder/model.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from clue_ray.batches.bag import NO_BAG
from clue_ray.batches.clock import Clock
from clue_ray.batches.dropout import NO_DROPOUT, keyed_hash
from clue_ray.batches.layout import group_lengths, lay_out
from clue_ray.batches.packing import (
    Sequences,
    Windows,
    bag_histories,
    gather_events,
    gather_times,
    gather_tokens,
    pack,
    recent_windows,
    sort_lists,
)
from clue_ray.batches.transfer import copy_to
from clue_ray.corpus.ranges import ranges
from clue_ray.corpus.rows import SortedRows
from clue_ray.corpus.shards import item_tokenizer
from clue_ray.corpus.store import Corpus
from clue_ray.encoder.model import Encoder
from clue_ray.encoder.transformer import Transformer
from clue_ray.transfer.encoder_file import EncoderCard, ExportedEncoder, read_encoder
from clue_ray.transfer.events import as_events

LEFT_OUT = pa.schema([("user_id", pa.string()), ("reason", pa.string())])
EVENTS_PER_PASS = 32_768
"""Events in one pass of the service transformer."""
ITEMS_PER_PASS = 4_096
"""Items in one pass of the item transformer."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio: multiples of it differ in all bits."""
FindItems = Callable[[NDArray[np.uint64]], tuple[NDArray[np.bool_], NDArray[np.float32]]]
"""Looks items up by their keys: whether each is known, and the vectors of those that are."""


class Vectors(NamedTuple):
    """Unit vectors with their users and services, sorted by user, then service."""

    user_ids: NDArray[np.object_]
    services: NDArray[np.object_] | None
    "one per row; None if a row is a user"
    values: NDArray[np.float32]
    "[rows, output_width]"


class UserEncoder:
    """A trained encoder that turns events of users into vectors.

    Attributes:
        exported: the contents of the exported encoder.
        card: its description.
        device: where it encodes.
    """

    def __init__(self, exported: ExportedEncoder, device: str | torch.device = "cpu"):
        self.exported, self.device = exported, torch.device(device)
        self.card: EncoderCard = exported.card
        self.model = exported.model().to(device)

    def encode(
        self,
        events: pa.Table | pd.DataFrame,
        *,
        per_service: bool = False,
        at: float | None = None,
    ) -> Vectors:
        """Encode users by their events.

        A user's vector is the mean of the unit vectors of their services, normalised to unit
        length: services have equal weights, however many events they have. A service that the
        encoder was not trained on is encoded with the shared guide token.

        Args:
            events: columns user_id, service, text and optionally timestamp; without timestamps,
                the rows must be in order of time.
            per_service: return one vector per user and service instead.
            at: when users are looked at, in seconds since 1970, for an encoder that reads times;
                the end of its corpus if None.

        Raises:
            EventLogError: a column is missing, cannot be read, or holds nulls.
        """
        histories = Histories(as_events(events), self.exported, at)
        return self.encode_histories(histories, per_service=per_service)

    def encode_histories(
        self, histories: "Histories", *, per_service: bool = False, find: FindItems | None = None
    ) -> Vectors:
        """Encode users by their histories, as `encode` does.

        Args:
            find: looks up vectors of items; those that it does not know are encoded.
        """
        users, services, windows = histories.present(self.card.run.sequence_length)
        cuts = histories.cuts[users] if self.model.reads_time else None
        vectors = _encode_windows(self.model, histories, windows, find, cuts)
        if per_service:
            names = np.array(histories.services, dtype=object)[services]
            return Vectors(histories.user_ids[users], names, vectors.cpu().numpy())
        sums = torch.zeros(len(histories.user_ids), vectors.shape[1], device=vectors.device)
        sums.index_add_(0, torch.from_numpy(users).to(vectors.device), vectors)
        return Vectors(histories.user_ids, None, F.normalize(sums, dim=-1).cpu().numpy())

    @torch.no_grad()
    def encode_items(self, histories: "Histories") -> NDArray[np.float32]:
        """Encode all items of some histories, [items, width].

        An item's vector depends on its text and its service alone, so it serves every user.
        """
        assert self.model.transformer is not None, "only a transformer has vectors of items"
        with _precision(self.model):
            items = np.arange(histories.num_items, dtype=np.int32)
            return encode_items(self.model.transformer, histories, items).float().cpu().numpy()


def load_encoder(path: str | Path, device: str | torch.device = "cpu") -> UserEncoder:
    """Load the encoder of a run, given by the run's folder or the `encoder` folder in it.

    Raises:
        StudyError: there is no encoder, or it is damaged.
    """
    return UserEncoder(read_encoder(path), device)


class Histories(Corpus):
    """Events of a block of users, in memory, with the layout of a corpus.

    The services are those of the encoder, then the unknown ones, sorted by name.

    Args:
        events: as EVENTS.
        exported: the encoder, whose services come first and whose tokenizer is used.
        at: when users are looked at, in seconds since 1970: one time, or one per user in the order
            of their ids; the end of the encoder's corpus if None.

    Attributes:
        item_services, item_texts, item_hashes: of each distinct item, [items].
        item_keys: hash of each item's text and guide token, which determine its vector, [items].
        cuts: when each user is looked at, [users].
    """

    item_keys: NDArray[np.uint64]
    cuts: NDArray[np.float64]

    def __init__(
        self,
        events: pa.Table,
        exported: ExportedEncoder,
        at: float | NDArray[np.float64] | None = None,
    ):
        card = exported.card
        found = pc.unique(events["service"]).to_pylist()
        services = [*card.services, *sorted(set(found) - set(card.services))]
        super().__init__(
            Path(), {"digest": "", "services": services, "vocab_size": card.vocab_size}
        )
        index = pc.index_in(events["service"], value_set=pa.array(services, pa.string()))
        columns = events.select(["user_id", "timestamp", "text"])
        rows = SortedRows(columns.append_column("service", index.cast(pa.int16())))
        self.user_ids = rows.user_ids.to_numpy(zero_copy_only=False)
        kept = np.ones(len(rows.item), dtype=bool)
        if card.duplicates == "drop":
            kept = ~rows.duplicates()
        self.events = rows.item[kept].astype(np.int32)
        self.times = rows.time[kept].astype(np.float64)
        default = card.last_time or 0.0
        self.cuts = np.zeros(len(self.user_ids)) + (default if at is None else at)
        self.reads_time = card.run.encoder.time
        owners = (rows.user * len(services) + rows.service)[kept]
        counts = np.bincount(owners, minlength=len(self.user_ids) * len(services))
        self.offsets = np.append(0, np.cumsum(counts))
        self.item_services, self.item_texts = rows.item_services, rows.item_texts
        self._tokenize(exported)

    def _tokenize(self, exported: ExportedEncoder) -> None:
        card = exported.card
        tokenize = item_tokenizer(exported.tokenizer, card.max_item_tokens)
        # The index after the known services is the shared guide token.
        guides = np.minimum(self.item_services, len(card.services))
        items = tokenize(self.item_texts.to_pylist(), guides)
        self.item_hashes = items.hashes
        self.item_keys = keyed_hash(
            (items.hashes + guides.astype(np.uint64) * GOLDEN).view(np.int64), 2
        )
        self.item_offsets = items.tokens.offsets.to_numpy().astype(np.int64)
        self.item_tokens = items.tokens.values.to_numpy()

    @classmethod
    def of_arrays(
        cls, services: Sequence[str], user_ids: NDArray[np.object_], **arrays: NDArray[Any]
    ) -> "Histories":
        """Return histories with given arrays, for encoding; texts are not needed for that."""
        found = cls.__new__(cls)
        Corpus.__init__(found, Path(), {"digest": "", "services": services})
        found.user_ids = user_ids
        vars(found).update(arrays)
        return found

    def recent(self, sequence_length: int) -> "Histories":
        """Return the histories that the encoder reads, with their items alone."""
        users, services, windows = self.present(sequence_length)
        items, events = np.unique(self.events[ranges(*windows)], return_inverse=True)
        lengths = np.zeros(len(self.user_ids) * len(self.services), np.int64)
        lengths[users * len(self.services) + services] = windows.lengths
        tokens = gather_tokens(self, items.astype(np.int64), NO_DROPOUT)
        return Histories.of_arrays(
            self.services,
            self.user_ids,
            events=events.astype(np.int32),
            times=self.times[ranges(*windows)] if self.reads_time else np.zeros(0),
            cuts=self.cuts,
            offsets=np.append(0, np.cumsum(lengths)),
            item_tokens=tokens.values.astype(np.int32),
            item_offsets=np.append(0, np.cumsum(tokens.lengths)),
            item_keys=self.item_keys[items],
        )

    def present(self, sequence_length: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Windows]:
        """List every user and service with events, and the window of the most recent ones."""
        users, services = np.nonzero(self.counts)
        return users, services, recent_windows(self, users, services, sequence_length)

    def fingerprints(self, sequence_length: int) -> NDArray[np.uint64]:
        """Hash what the encoder reads of each user: services, items, order and times, [users]."""
        users, services, windows = self.present(sequence_length)
        names = np.array(
            [pd.util.hash_array(np.array([name], dtype=object))[0] for name in self.services],
            np.uint64,
        )
        recency = ranges(np.zeros_like(windows.lengths), windows.lengths).astype(np.uint64)
        texts = self.item_hashes[self.events[ranges(*windows)]] ^ np.repeat(
            names[services], windows.lengths
        )
        # Hashes of events are summed per user, which loses their order, so each hash includes the
        # event's position.
        if self.reads_time:
            gaps = np.repeat(self.cuts[users], windows.lengths) - self.times[ranges(*windows)]
            texts ^= keyed_hash(gaps.view(np.int64), 2)
        hashes = keyed_hash((texts + recency * GOLDEN).view(np.int64), 1)
        sums = np.zeros(len(self.user_ids), np.uint64)
        np.add.at(sums, np.repeat(users, windows.lengths), hashes)
        return sums


def encode_items(
    transformer: Transformer, corpus: Corpus, items: NDArray[np.int32]
) -> torch.Tensor:
    """Encode distinct items, [items, width], in the order given."""
    device = transformer.token_embedding.weight.device
    # Each item is packed as a history of one event, any one that holds it. Packing sorts items by
    # length, and `event_items` maps each event, here each item, to its place.
    event_of = np.empty(corpus.num_items, dtype=np.int64)
    event_of[corpus.events] = np.arange(len(corpus.events))
    vectors = []
    for chunk in np.array_split(items, -(-len(items) // ITEMS_PER_PASS) or 1):
        windows = Windows(event_of[chunk], np.ones(len(chunk), np.int64))
        packed = pack(corpus, windows).to(device)
        vectors.append(transformer.encode_items(packed.items)[packed.sequences.event_items])
    return torch.cat(vectors)


def _precision(model: Encoder) -> AbstractContextManager[Any]:
    """Return the context in which a model's matrix products have its precision."""
    if model.precision == "bf16":
        return torch.autocast(model.log_scale.device.type, torch.bfloat16)
    return nullcontext()


def _find_or_encode(
    transformer: Transformer, histories: Histories, items: NDArray[np.int32], find: FindItems
) -> torch.Tensor:
    """Look distinct items up and encode those that are not known, [items, width]."""
    known, stored = find(histories.item_keys[items])
    if not known.any():
        return encode_items(transformer, histories, items)
    weight = transformer.token_embedding.weight
    vectors = torch.empty(len(items), weight.shape[1], device=weight.device)
    vectors[torch.from_numpy(known)] = torch.from_numpy(stored).to(weight.device)
    if not known.all():
        others = encode_items(transformer, histories, items[~known])
        vectors[torch.from_numpy(~known)] = others.to(vectors.dtype)
    return vectors


@torch.no_grad()
def _encode_windows(
    model: Encoder,
    histories: Histories,
    windows: Windows,
    find: FindItems | None,
    cuts: NDArray[np.float64] | None,
) -> torch.Tensor:
    """Encode windows of events to unit vectors, [windows, output_width].

    Args:
        find: looks up vectors of items; those that it does not know are encoded.
        cuts: time of the cut of each window, for an encoder that reads times, [windows].
    """
    device = model.log_scale.device
    if not len(windows.lengths):
        return torch.zeros(0, model.output_width, device=device)
    items = np.unique(histories.events[ranges(*windows)])
    vectors = torch.zeros(len(windows.lengths), model.output_width, device=device)
    with _precision(model):
        items_ID = None
        if model.transformer and find:
            items_ID = _find_or_encode(model.transformer, histories, items, find)
        elif model.transformer:
            items_ID = encode_items(model.transformer, histories, items)
        for rows in _split_by_events(windows.lengths):
            chunk = Windows(windows.starts[rows], windows.lengths[rows])
            mine = None if cuts is None else cuts[rows]
            chunk_vectors = _encode_sequences(model, histories, chunk, mine, items, items_ID)
            vectors[torch.from_numpy(rows)] = chunk_vectors.float()
    return F.normalize(vectors, dim=-1)


def _split_by_events(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Split windows, shortest first, into chunks of about EVENTS_PER_PASS events."""
    order = np.argsort(lengths, kind="stable")
    chunk = np.cumsum(lengths[order]) // EVENTS_PER_PASS
    yield from np.split(order, np.flatnonzero(np.diff(chunk)) + 1)


def _encode_sequences(
    model: Encoder,
    corpus: Corpus,
    windows: Windows,
    cuts: NDArray[np.float64] | None,
    items: NDArray[np.int32],
    items_ID: torch.Tensor | None,
) -> torch.Tensor:
    """Encode windows of events, given their encoded items, [windows, output_width].

    Args:
        cuts: time of the cut of each window, for an encoder that reads times, [windows].
        items: distinct items, sorted.
        items_ID: their vectors; None without a transformer, which alone reads them.
    """
    device = model.log_scale.device
    # The model takes sequences grouped by length; `by_length` restores the order of the windows.
    histories, by_length = sort_lists(gather_events(corpus, windows))
    summary_UD, bag_UO = None, None
    if model.transformer is not None and items_ID is not None:
        recency = ranges(np.zeros_like(histories.lengths), histories.lengths)
        places = torch.from_numpy(np.searchsorted(items, histories.values))
        layout = lay_out(group_lengths(histories.lengths))
        times = None
        if cuts is not None:
            times = Clock(gather_times(corpus, windows), cuts).take(by_length).rows()
        sequences = Sequences(places, torch.from_numpy(recency), layout, NO_BAG, times)
        summary_UD = model.transformer.summarise(items_ID, copy_to(sequences, device))
    if model.bag is not None:
        bag_UO = model.bag(copy_to(bag_histories(corpus, histories), device))
    stored_UO = model.combine(summary_UD, bag_UO)
    vectors_UO = torch.empty_like(stored_UO)
    vectors_UO[torch.from_numpy(by_length).to(device)] = stored_UO
    return vectors_UO
