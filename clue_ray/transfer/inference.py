"""Texts of users to vectors, in this process, without ray.

Takes events of any users, gives unit vectors. One idea: each distinct item of a block is encoded once, whatever the
number of users and services that hold it, and nothing is padded. Shape suffixes as in `encoder/model.py`.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from clue_ray.batches.dropout import WHOLE, events_of
from clue_ray.batches.packing import Windows, group_lengths, pack, sort_lists
from clue_ray.corpus.store import Corpus, ranges
from clue_ray.encoder.model import Encoder, lay_out
from clue_ray.transfer.exported import EncoderCard, Exported, read_encoder
from clue_ray.transfer.histories import Histories, as_events

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
        """Encode users by their events: columns user_id, service, text, and timestamp or the order of the rows.

        A user's vector is the mean of the unit vectors of their services, scaled to length one again: services count
        alike, however many events they hold. A service unknown to the encoder is read under the shared guide token.

        Args:
            per_service: one vector a user and service instead.

        Raises:
            EventLogError: a column is missing or holds nulls.
        """
        return self.encode_histories(Histories(as_events(events), self.exported), per_service=per_service)

    def encode_histories(self, histories: Histories, *, per_service: bool = False) -> Vectors:
        """Encode users laid out already."""
        users, services, windows = histories.present(self.card.run.sequence_length)
        vectors = encode_windows(self.model, histories, windows)
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
def encode_windows(model: Encoder, corpus: Corpus, windows: Windows) -> torch.Tensor:
    """Encode histories, [windows, output_width], of unit length; each distinct item of all of them once."""
    device = model.log_scale.device
    if not len(windows.lengths):
        return torch.zeros(0, model.output.out_features, device=device)
    distinct = np.unique(corpus.events[ranges(*windows)])
    vectors = torch.zeros(len(windows.lengths), model.output.out_features, device=device)
    with torch.autocast(device.type, torch.bfloat16) if model.precision == "bf16" else nullcontext():
        items_ID = encode_items(model, corpus, distinct)
        for rows in by_events(windows.lengths):
            chunk = Windows(windows.starts[rows], windows.lengths[rows])
            vectors[torch.from_numpy(rows)] = _encode_sequences(model, corpus, chunk, distinct, items_ID).float()
    return F.normalize(vectors, dim=-1)


def encode_items(model: Encoder, corpus: Corpus, items: NDArray[np.int32]) -> torch.Tensor:
    """Encode distinct items, [items, width]: each is packed as a history of one event, so they keep their order."""
    device = model.log_scale.device
    first = np.empty(len(corpus.item_lengths), dtype=np.int64)
    first[corpus.events] = np.arange(len(corpus.events))
    parts = []
    for some in np.array_split(items, -(-len(items) // ITEMS_AT_ONCE) or 1):
        packed = pack(corpus, Windows(first[some], np.ones(len(some), np.int64))).to(device)
        parts.append(model.encode_items(packed)[packed.event_items])
    return torch.cat(parts)


def by_events(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Split histories, shortest first, into parts of about EVENTS_AT_ONCE events."""
    order = np.argsort(lengths, kind="stable")
    part = np.cumsum(lengths[order]) // EVENTS_AT_ONCE
    yield from np.split(order, np.flatnonzero(np.diff(part)) + 1)


def _encode_sequences(
    model: Encoder, corpus: Corpus, windows: Windows, distinct: NDArray[np.int32], items_ID: torch.Tensor
) -> torch.Tensor:
    """Run the service transformer over histories whose items are encoded, [windows, output_width]."""
    device = items_ID.device
    histories, by_length = sort_lists(events_of(corpus, *windows, WHOLE))
    groups, recency = group_lengths(histories.lengths), ranges(np.zeros_like(histories.lengths), histories.lengths)
    places = torch.from_numpy(np.searchsorted(distinct, histories.values)).to(device)
    sequences = lay_out(groups, torch.zeros(0, dtype=torch.int64, device=device), None)
    stored_UO = model.encode_sequences(items_ID[places], torch.from_numpy(recency).to(device), sequences)
    vectors_UO = torch.empty_like(stored_UO)
    vectors_UO[torch.from_numpy(by_length).to(device)] = stored_UO
    return vectors_UO
