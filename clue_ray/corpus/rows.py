"""The rows of one bucket of users in a total order, and the counts that describe its shard.

Shards and their profile are both computed from these rows.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

COUNTS = pa.list_(pa.int64())
SHARD_COUNTS = pa.schema(
    [
        ("files", pa.list_(pa.list_(pa.string()))),
        ("rows", pa.int64()),
        ("later", pa.int64()),
        ("duplicates", pa.int64()),
        ("split", COUNTS),
        ("overlap", COUNTS),
        ("users_by_services", COUNTS),
        ("history_lengths", COUNTS),
        ("history_counts", COUNTS),
        ("first_time", pa.float64()),
        ("last_time", pa.float64()),
        ("forms", pa.list_(pa.uint64())),
        ("form_ids", pa.list_(pa.string())),
        ("form_limit", pa.uint64()),
        ("doubtful", pa.list_(pa.list_(pa.string()))),
        ("token_lengths", COUNTS),
        ("token_events", COUNTS),
    ]
)
"""What a worker returns for each shard: its files as (name, sha256), and its counts.

`overlap` is a matrix [services, services], flattened. `history_lengths` are the distinct lengths of
histories, and `history_counts` how often each occurs. `forms` are hashes of user ids without their
form, for a sample of users (see `Forms`); `doubtful` are ids that look like placeholders.
`token_lengths` are the distinct numbers of tokens of a text, and `token_events` the events of each.
"""


class SortedRows:
    """Rows of one bucket, sorted by user, service, time (most recent first) and text.

    The order is total: rows that are equal in it are equal in all columns. Therefore a shard does
    not depend on the order in which the shuffle delivers its rows.

    Args:
        events: columns user_id, service (an index), timestamp and text.

    Attributes:
        user_ids: distinct user ids, sorted, [users].
        item_services, item_texts: distinct items, sorted by service and text, [items].
        user, service, item: indices of each row's user, service and item, [rows].
        time: timestamp of each row in seconds, [rows].
    """

    def __init__(self, events: pa.Table):
        self.user_ids, user = _codes(events["user_id"])
        texts, text = _codes(events["text"])
        service = events["service"].to_numpy().astype(np.int64)
        # One integer per (service, text): its order is that of the pair.
        keys, item = np.unique(service * len(texts) + text, return_inverse=True)
        time = events["timestamp"].to_numpy()
        order = np.lexsort((item, -time, service, user))
        self.item_services = (keys // len(texts)).astype(np.int32)
        self.item_texts = texts.take(pa.array(keys % len(texts)))
        self.user, self.service, self.item, self.time = (
            column[order] for column in (user, service, item, time)
        )

    def duplicates(self) -> NDArray[np.bool_]:
        """Mark every row that equals the previous one in user, service, time and item, [rows]."""
        same = np.zeros(len(self.user), dtype=bool)
        columns = (self.user, self.service, self.time, self.item)
        same[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
        return same


def _codes(column: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the distinct values of a text column, sorted, and the index of each row's value.

    All texts of a bucket may be more than the 2 GB of one string array; its distinct ones may not.
    """
    encoded = column.cast(pa.large_string()).combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order.to_numpy()] = np.arange(len(order))
    distinct = encoded.dictionary.take(order).cast(pa.string())
    return distinct, rank[encoded.indices.to_numpy()]
