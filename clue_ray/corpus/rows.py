"""What shards and their profile share: the sorted rows of one bucket, and the columns in which a
shard describes itself.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

HISTOGRAM = pa.list_(pa.int64())
SHARD_COUNTS = pa.schema(
    [
        ("files", pa.list_(pa.list_(pa.string()))),
        ("rows", pa.int64()),
        ("later", pa.int64()),
        ("duplicates", pa.int64()),
        ("split", HISTOGRAM),
        ("overlap", HISTOGRAM),
        ("users_by_services", HISTOGRAM),
        ("history_lengths", HISTOGRAM),
        ("history_counts", HISTOGRAM),
        ("first_time", pa.float64()),
        ("last_time", pa.float64()),
        ("item_hashes", pa.list_(pa.uint64())),
        ("item_tokens", pa.list_(pa.int32())),
        ("item_events", HISTOGRAM),
    ]
)
"""What a shard tells of itself; histograms are lists of counts, `history_lengths` the values of
`history_counts`."""


class SortedRows:
    """Rows of one bucket in total order: user, service, most recent first, then text; all as
    integers.

    Attributes:
        user_ids, item_texts: distinct values, sorted; `items` are the distinct (service, text),
            sorted.
        user, service, item: index of each row's.
    """

    def __init__(self, events: pa.Table):
        self.user_ids, user = _codes(events["user_id"])
        texts, text = _codes(events["text"])
        service = events["service"].to_numpy().astype(np.int64)
        keys, item = np.unique(service * len(texts) + text, return_inverse=True)
        time = events["timestamp"].to_numpy()
        order = np.lexsort((item, -time, service, user))
        self.item_services = (keys // len(texts)).astype(np.int32)
        self.item_texts = texts.take(pa.array(keys % len(texts)))
        self.user, self.service, self.item, self.time = (
            user[order],
            service[order],
            item[order],
            time[order],
        )

    def duplicates(self) -> NDArray[np.bool_]:
        """Mark every row that agrees with the one before in user, service, time and item."""
        same = np.zeros(len(self.user), dtype=bool)
        columns = (self.user, self.service, self.time, self.item)
        same[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
        return same


def _codes(column: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return a text column's distinct values, sorted, and the index of each row's."""
    encoded = column.combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order.to_numpy()] = np.arange(len(order))
    return encoded.dictionary.take(order), rank[encoded.indices.to_numpy()]
