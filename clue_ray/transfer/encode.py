"""Rows of a log as the encoder reads them: the arrays of a corpus, in memory, of one block of
users.

Takes events of any services and an encoder's tokenizer, gives `Histories`. One idea: what reads a
corpus reads these, so there is one way to lay users out, prepared or not.


Texts of users to vectors, in this process, without ray.

Takes events of any users, gives unit vectors. One idea: each distinct item of a block is encoded
once, whatever the number of users and services that hold it, and nothing is padded. Shape suffixes
as in `encoder/model.py`.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from clue_ray.batches.dropout import keyed_hash
from clue_ray.batches.packing import (
    Windows,
    gather_events,
    group_lengths,
    pack,
    recent_windows,
    sort_lists,
)
from clue_ray.corpus.logs.times import as_seconds
from clue_ray.corpus.rows import SortedRows
from clue_ray.corpus.shards import item_tokenizer
from clue_ray.corpus.store import Corpus, ranges
from clue_ray.encoder.model import Encoder, lay_out
from clue_ray.errors import EventLogError
from clue_ray.transfer.encoder_file import EncoderCard, Exported, read_encoder

EVENTS = pa.schema(
    [
        ("user_id", pa.string()),
        ("service", pa.string()),
        ("timestamp", pa.float64()),
        ("text", pa.string()),
    ]
)
LEFT_OUT = pa.schema([("user_id", pa.string()), ("reason", pa.string())])


class Histories(Corpus):
    """A block of users over the services its rows name: those of the encoder first, then the
    unknown, by name.

    Attributes:
        item_services, item_texts, item_hashes: of each distinct item, [items].
    """

    def __init__(self, events: pa.Table, exported: Exported):
        card = exported.card
        found = pc.unique(events["service"]).to_pylist()
        services = [*card.services, *sorted(set(found) - set(card.services))]
        super().__init__(
            Path(), {"digest": "", "services": services, "vocab_size": card.vocab_size}
        )
        index = pc.index_in(events["service"], value_set=pa.array(services, pa.string())).cast(
            pa.int16()
        )
        rows = SortedRows(
            events.select(["user_id", "timestamp", "text"]).append_column("service", index)
        )
        self.user_ids = rows.user_ids.to_numpy(zero_copy_only=False)
        kept = (
            ~rows.duplicates() if card.duplicates == "drop" else np.ones(len(rows.item), dtype=bool)
        )
        self.events = rows.item[kept].astype(np.int32)
        owners = (rows.user * len(services) + rows.service)[kept]
        counts = np.bincount(owners, minlength=len(self.user_ids) * len(services))
        self.offsets = np.append(0, np.cumsum(counts))
        self.item_services, self.item_texts = rows.item_services, rows.item_texts
        self._tokenise(exported)

    def _tokenise(self, exported: Exported) -> None:
        card = exported.card
        tokenize = item_tokenizer(exported.tokenizer, card.max_item_tokens)
        guides = np.minimum(
            self.item_services, len(card.services)
        )  # past the known ones lies the shared guide
        items = tokenize(self.item_texts.to_pylist(), guides)
        self.item_hashes = items.hashes
        self.item_offsets = items.tokens.offsets.to_numpy().astype(np.int64)
        self.item_tokens = items.tokens.values.to_numpy()

    def present(self, sequence_length: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Windows]:
        """List every (user, service) that has events, with its most recent ones."""
        users, services = np.nonzero(self.counts)
        return users, services, recent_windows(self, users, services, sequence_length)

    def fingerprints(self, sequence_length: int) -> NDArray[np.uint64]:
        """Hash what the encoder reads of each user: services, items and their order, [users]; any
        change shows.
        """
        users, services, windows = self.present(sequence_length)
        names = np.array(
            [pd.util.hash_array(np.array([name], dtype=object))[0] for name in self.services],
            np.uint64,
        )
        recency = ranges(np.zeros_like(windows.lengths), windows.lengths).astype(np.uint64)
        texts = self.item_hashes[self.events[ranges(*windows)]] ^ np.repeat(
            names[services], windows.lengths
        )
        hashes = keyed_hash((texts + recency * np.uint64(0x9E3779B97F4A7C15)).view(np.int64), 1)
        sums = np.zeros(len(self.user_ids), np.uint64)
        np.add.at(sums, np.repeat(users, windows.lengths), hashes)
        return sums


def as_events(table: pa.Table | pd.DataFrame) -> pa.Table:
    """Bring a table of user_id, service, text and perhaps timestamp to EVENTS; without times its
    order counts.

    Raises:
        EventLogError: a column is missing, cannot be read, or holds nulls.
    """
    events = (
        pa.Table.from_pandas(table, preserve_index=False)
        if isinstance(table, pd.DataFrame)
        else table
    )
    if "timestamp" not in events.column_names:
        events = events.append_column(
            "timestamp", pa.array(np.arange(events.num_rows, dtype=np.float64))
        )
    absent = [name for name in EVENTS.names if name not in events.column_names]
    if absent:
        raise EventLogError(
            f"Events have no column {absent[0]!r}; give user_id, service, text and perhaps "
            f"timestamp."
        )
    events = events.select(EVENTS.names)
    try:
        seconds = as_seconds(events["timestamp"])
        events = events.set_column(EVENTS.get_field_index("timestamp"), "timestamp", seconds).cast(
            EVENTS
        )
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise EventLogError(
            f"Events cannot be read ({str(error).splitlines()[0]}); give user_id, service and text "
            f"as words, timestamp "
            "as numbers, dates or ISO 8601."
        ) from None
    holed = [name for name in EVENTS.names if events[name].null_count]
    if holed:
        raise EventLogError(
            f"Events hold {events[holed[0]].null_count} nulls in {holed[0]!r}; leave those rows "
            f"out."
        )
    return events


EVENTS_AT_ONCE = 32_768
"""Events in one pass of the service transformer."""
ITEMS_AT_ONCE = 4_096
"""Items in one pass of the item transformer."""


class Vectors(NamedTuple):
    """Unit vectors and whose they are, sorted by user, then service."""

    user_ids: NDArray[np.object_]
    services: NDArray[np.object_] | None
    "of each row; none where a row is a user"
    values: NDArray[np.float32]
    "[rows, output_width]"


class UserEncoder:
    """A trained encoder: turns events of users into vectors.

    Attributes:
        exported: its contents.
        card: what it is.
    """

    def __init__(self, exported: Exported, device: str = "cpu"):
        self.exported = exported
        self.card: EncoderCard = exported.card
        self.model = exported.model().to(device)

    def encode(self, events: pa.Table | pd.DataFrame, *, per_service: bool = False) -> Vectors:
        """Encode users by their events: columns user_id, service, text, and timestamp or the order
        of the rows.

        A user's vector is the mean of the unit vectors of their services, scaled to length one
        again: services count alike, however many events they hold. A service unknown to the encoder
        is read under the shared guide token.

        Args:
            per_service: one vector a user and service instead.

        Raises:
            EventLogError: a column is missing or holds nulls.
        """
        return self.encode_histories(
            Histories(as_events(events), self.exported), per_service=per_service
        )

    def encode_histories(self, histories: Histories, *, per_service: bool = False) -> Vectors:
        """Encode users laid out already."""
        users, services, windows = histories.present(self.card.run.sequence_length)
        vectors = _encode_windows(self.model, histories, windows)
        if per_service:
            names = np.array(histories.services, dtype=object)[services]
            return Vectors(histories.user_ids[users], names, vectors.cpu().numpy())
        sums = torch.zeros(len(histories.user_ids), vectors.shape[1], device=vectors.device)
        sums.index_add_(0, torch.from_numpy(users).to(vectors.device), vectors)
        return Vectors(histories.user_ids, None, F.normalize(sums, dim=-1).cpu().numpy())


def load_encoder(path: str | Path, device: str = "cpu") -> UserEncoder:
    """Load the encoder that a run left: the run's folder, or the `encoder` folder in it.

    Raises:
        StudyError: there is none, or it is damaged.
    """
    return UserEncoder(read_encoder(path), device)


@torch.no_grad()
def _encode_windows(model: Encoder, corpus: Corpus, windows: Windows) -> torch.Tensor:
    """Encode histories, [windows, output_width], of unit length; each distinct item of all of them
    once.
    """
    device = model.log_scale.device
    if not len(windows.lengths):
        return torch.zeros(0, model.output.out_features, device=device)
    distinct = np.unique(corpus.events[ranges(*windows)])
    vectors = torch.zeros(len(windows.lengths), model.output.out_features, device=device)
    with (
        torch.autocast(device.type, torch.bfloat16) if model.precision == "bf16" else nullcontext()
    ):
        items_ID = encode_items(model, corpus, distinct)
        for rows in _by_events(windows.lengths):
            chunk = Windows(windows.starts[rows], windows.lengths[rows])
            vectors[torch.from_numpy(rows)] = _encode_sequences(
                model, corpus, chunk, distinct, items_ID
            ).float()
    return F.normalize(vectors, dim=-1)


def encode_items(model: Encoder, corpus: Corpus, items: NDArray[np.int32]) -> torch.Tensor:
    """Encode distinct items, [items, width]: each is packed as a history of one event, so they keep
    their order.
    """
    device = model.log_scale.device
    first = np.empty(len(corpus.item_lengths), dtype=np.int64)
    first[corpus.events] = np.arange(len(corpus.events))
    parts = []
    for some in np.array_split(items, -(-len(items) // ITEMS_AT_ONCE) or 1):
        packed = pack(corpus, Windows(first[some], np.ones(len(some), np.int64))).to(device)
        parts.append(model.encode_items(packed)[packed.event_items])
    return torch.cat(parts)


def _by_events(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Split histories, shortest first, into parts of about EVENTS_AT_ONCE events."""
    order = np.argsort(lengths, kind="stable")
    part = np.cumsum(lengths[order]) // EVENTS_AT_ONCE
    yield from np.split(order, np.flatnonzero(np.diff(part)) + 1)


def _encode_sequences(
    model: Encoder,
    corpus: Corpus,
    windows: Windows,
    distinct: NDArray[np.int32],
    items_ID: torch.Tensor,
) -> torch.Tensor:
    """Run the service transformer over histories whose items are encoded, [windows,
    output_width].
    """
    device = items_ID.device
    histories, by_length = sort_lists(gather_events(corpus, windows))
    groups, recency = (
        group_lengths(histories.lengths),
        ranges(np.zeros_like(histories.lengths), histories.lengths),
    )
    places = torch.from_numpy(np.searchsorted(distinct, histories.values)).to(device)
    sequences = lay_out(groups, torch.zeros(0, dtype=torch.int64, device=device), None)
    stored_UO = model.encode_sequences(
        items_ID[places], torch.from_numpy(recency).to(device), sequences
    )
    vectors_UO = torch.empty_like(stored_UO)
    vectors_UO[torch.from_numpy(by_length).to(device)] = stored_UO
    return vectors_UO
