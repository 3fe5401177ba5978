"""Rows of a log as the encoder reads them: the arrays of a corpus, in memory, of one block of users.

Takes events of any services and an encoder's tokenizer, gives `Histories`. One idea: what reads a corpus reads these,
so there is one way to lay users out, prepared or not.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clue_ray.batches.dropout import keyed_hash
from clue_ray.batches.packing import Windows, recent_windows
from clue_ray.corpus.logs.times import as_seconds
from clue_ray.corpus.rows import Sorted
from clue_ray.corpus.shards import item_tokenizer
from clue_ray.corpus.store import Corpus, ranges
from clue_ray.errors import EventLogError
from clue_ray.transfer.exported import Exported

EVENTS = pa.schema(
    [("user_id", pa.string()), ("service", pa.string()), ("timestamp", pa.float64()), ("text", pa.string())]
)
LEFT_OUT = pa.schema([("user_id", pa.string()), ("reason", pa.string())])


class Histories(Corpus):
    """A block of users over the services its rows name: those of the encoder first, then the unknown, by name.

    Attributes:
        item_services, item_texts, item_hashes: of each distinct item, [items].
    """

    def __init__(self, events: pa.Table, exported: Exported):
        card = exported.card
        found = pc.unique(events["service"]).to_pylist()
        services = [*card.services, *sorted(set(found) - set(card.services))]
        super().__init__(Path(), {"digest": "", "services": services, "vocab_size": card.vocab_size})
        index = pc.index_in(events["service"], value_set=pa.array(services, pa.string())).cast(pa.int16())
        rows = Sorted(events.select(["user_id", "timestamp", "text"]).append_column("service", index))
        self.user_ids = rows.user_ids.to_numpy(zero_copy_only=False)
        kept = ~rows.repeats() if card.duplicates == "drop" else np.ones(len(rows.item), dtype=bool)
        self.events = rows.item[kept].astype(np.int32)
        owners = (rows.user * len(services) + rows.service)[kept]
        counts = np.bincount(owners, minlength=len(self.user_ids) * len(services))
        self.offsets = np.append(0, np.cumsum(counts))
        self.item_services, self.item_texts = rows.item_services, rows.item_texts
        self._tokenise(exported)

    def _tokenise(self, exported: Exported) -> None:
        card = exported.card
        tokenize = item_tokenizer(exported.tokenizer, card.max_item_tokens)
        guides = np.minimum(self.item_services, len(card.services))  # past the known ones lies the shared guide
        items = tokenize(self.item_texts.to_pylist(), guides)
        self.item_hashes = items.hashes
        self.item_offsets = items.tokens.offsets.to_numpy().astype(np.int64)
        self.item_tokens = items.tokens.values.to_numpy()

    def present(self, sequence_length: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Windows]:
        """List every (user, service) that has events, with its most recent ones."""
        users, services = np.nonzero(self.counts)
        return users, services, recent_windows(self, users, services, sequence_length)

    def fingerprints(self, sequence_length: int) -> NDArray[np.uint64]:
        """Hash what the encoder reads of each user: services, items and their order, [users]; any change shows."""
        users, services, windows = self.present(sequence_length)
        names = np.array([pd.util.hash_array(np.array([name], dtype=object))[0] for name in self.services], np.uint64)
        recency = ranges(np.zeros_like(windows.lengths), windows.lengths).astype(np.uint64)
        texts = self.item_hashes[self.events[ranges(*windows)]] ^ np.repeat(names[services], windows.lengths)
        hashes = keyed_hash((texts + recency * np.uint64(0x9E3779B97F4A7C15)).view(np.int64), 1)
        sums = np.zeros(len(self.user_ids), np.uint64)
        np.add.at(sums, np.repeat(users, windows.lengths), hashes)
        return sums


def as_events(table: pa.Table | pd.DataFrame) -> pa.Table:
    """Bring a table of user_id, service, text and perhaps timestamp to EVENTS; without times its order counts.

    Raises:
        EventLogError: a column is missing, cannot be read, or holds nulls.
    """
    events = pa.Table.from_pandas(table, preserve_index=False) if isinstance(table, pd.DataFrame) else table
    if "timestamp" not in events.column_names:
        events = events.append_column("timestamp", pa.array(np.arange(events.num_rows, dtype=np.float64)))
    absent = [name for name in EVENTS.names if name not in events.column_names]
    if absent:
        raise EventLogError(f"Events have no column {absent[0]!r}; give user_id, service, text and perhaps timestamp.")
    events = events.select(EVENTS.names)
    try:
        seconds = as_seconds(events["timestamp"])
        events = events.set_column(EVENTS.get_field_index("timestamp"), "timestamp", seconds).cast(EVENTS)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise EventLogError(
            f"Events cannot be read ({str(error).splitlines()[0]}); give user_id, service and text as words, timestamp "
            "as numbers, dates or ISO 8601."
        ) from None
    holed = [name for name in EVENTS.names if events[name].null_count]
    if holed:
        raise EventLogError(f"Events hold {events[holed[0]].null_count} nulls in {holed[0]!r}; leave those rows out.")
    return events
