"""Histories as one row of a table: a bucket of users, or of items, travels through Ray Data whole.

A batch of one row is then a whole bucket, also where Ray Data asks for a batch size, as it does for
actors with GPUs.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clue_ray.transfer.encode import Histories

TEXTS = ("services", "user_ids")
ARRAYS = {
    "events": pa.int32(),
    "offsets": pa.int64(),
    "item_tokens": pa.int32(),
    "item_offsets": pa.int64(),
    "item_keys": pa.uint64(),
}
PACKED = pa.schema(
    [
        ("number", pa.int32()),
        ("summary", pa.string()),
        *((name, pa.large_list(pa.string())) for name in TEXTS),
        *((name, pa.large_list(kind)) for name, kind in ARRAYS.items()),
    ]
)
"""One row per bucket: its number, the counts of its part as JSON, and its histories."""


def pack(number: int, histories: Histories, summary: str = "") -> pa.Table:
    """Pack a bucket into a table of one row."""
    texts = [pa.array(getattr(histories, name), pa.string()) for name in TEXTS]
    arrays = [pa.array(getattr(histories, name), kind) for name, kind in ARRAYS.items()]
    lists = [pa.LargeListArray.from_arrays([0, len(each)], each) for each in (*texts, *arrays)]
    return pa.table([[number], [summary], *lists], schema=PACKED)


def unpack(row: pa.Table) -> Histories:
    """Return the histories of a packed row."""

    def values(name: str) -> pa.Array:
        return row[name].combine_chunks().flatten()

    arrays: dict[str, NDArray[np.generic]] = {name: values(name).to_numpy() for name in ARRAYS}
    user_ids = values("user_ids").to_numpy(zero_copy_only=False)
    return Histories.of_arrays(values("services").to_pylist(), user_ids, **arrays)
