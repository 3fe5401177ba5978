"""What the tasks that build a layout share: the ranges of items and users, and files to exchange.

Items are sorted by service and text, users by id, training users by a hash. Each order is cut into
ranges that fit a task's memory. A task splits one shard by ranges, or merges one range of all
shards; where the cuts lie changes neither ids nor files. Files are exchanged in a folder or at a
URI, so tasks may run on any node.
"""

import bisect
import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clue_ray.spec.specs import SplitSpec
from clue_ray.storage.files import PARALLEL_COPIES, with_retries, write_file
from clue_ray.storage.place import is_uri, open_place

SAMPLED_SHARDS = 4
"""Shards whose items and users set the cuts: users are spread over shards by a hash."""
ITEMS_PER_RANGE = 1_500_000
"""Items of shards in one range, repeats counted; about 150 bytes each."""
EVENTS_PER_RANGE = 20_000_000
"""Events of the users in one range; about 30 bytes each."""
USERS_PER_RANGE = 2_000_000
"""Users in one range; about 150 bytes each."""


@dataclass(frozen=True)
class LayoutPlan:
    """The work of building a layout.

    Attributes:
        corpus: folder or URI of the shards.
        work: folder or URI for files that tasks exchange.
        parts: folder or URI for the parts of the arrays.
        shards: file names, sorted.
        services: names, in the order of their indices.
        split: shares of held-out users.
        tokens: rows of the vocabulary, above which a token is an error.
        item_ranges: service and first text of each range of items, ascending.
        user_ranges: first id of each range of users, ascending; the first is "".
        order_ranges: number of ranges of the order of training users.
    """

    corpus: str
    work: str
    parts: str
    shards: tuple[str, ...]
    services: tuple[str, ...]
    split: SplitSpec
    tokens: int
    item_ranges: tuple[tuple[int, str], ...]
    user_ranges: tuple[str, ...]
    order_ranges: int


def choose_ranges(
    corpus: str, shards: Sequence[str], services: Sequence[str]
) -> tuple[tuple[tuple[int, str], ...], tuple[str, ...], int]:
    """Choose the ranges of items, of users and of their order by a sample of the shards."""
    sample = shards[:: max(1, len(shards) // SAMPLED_SHARDS)][:SAMPLED_SHARDS]
    scale = len(shards) / max(1, len(sample))
    items = pa.concat_tables(
        read_table(corpus, f"items/{name}", ["service", "text"]) for name in sample
    )
    users = pa.concat_tables(
        read_table(corpus, f"shards/{name}", ["user_id", "items"]) for name in sample
    )
    item_ranges = [
        (number, text)
        for number, service in enumerate(services)
        for text in _cuts(items.filter(pc.equal(items["service"], service))["text"], scale)
    ]
    ids = pc.unique(users["user_id"])
    events = scale * (pc.sum(pc.list_value_length(users["items"])).as_py() or 0)
    number = 1 + int(max(events / EVENTS_PER_RANGE, scale * len(ids) / USERS_PER_RANGE))
    orders = 1 + int(scale * len(ids) / USERS_PER_RANGE)
    return tuple(item_ranges), _quantiles(ids, number), orders


def _cuts(texts: pa.ChunkedArray, scale: float) -> tuple[str, ...]:
    return _quantiles(pc.unique(texts), 1 + int(scale * len(texts) / ITEMS_PER_RANGE))


def _quantiles(values: pa.Array, number: int) -> tuple[str, ...]:
    """Return the first value of each of `number` ranges, the first of them ""."""
    order = pc.sort_indices(values)
    places = np.arange(1, number) * len(values) // number
    found = values.take(order.take(pa.array(places))).to_pylist() if len(values) else []
    return ("", *sorted(set(found) - {""}))


def find_cuts(values: pa.Array, bounds: Sequence[str]) -> list[int]:
    """Return where each range starts in sorted texts, and their end, [bounds + 1]."""
    rows = range(len(values))
    starts = [bisect.bisect_left(rows, bound, key=lambda i: values[i].as_py()) for bound in bounds]
    return [*starts, len(values)]


def read_table(place: str, name: str, columns: list[str]) -> pa.Table:
    """Read columns of a Parquet file below a place.

    Raises:
        ArrowInvalid: the file is damaged.
        StudyError: storage failed for two minutes.
    """
    store, base = open_place(place)
    read = partial(pq.read_table, f"{base}/{name}", columns=columns, filesystem=store)
    if is_uri(place):
        return with_retries(read, f"{name} cannot be read from {place}")
    try:
        return read()
    except OSError as error:  # also for damaged pages, which a retry does not mend
        raise pa.ArrowInvalid(f"{name}: {error}") from None


def write_batches(place: str, name: str, batches: Iterable[pa.RecordBatch]) -> str:
    """Write record batches of one schema, each to be read alone; return the file's sha256."""
    whole = list(batches)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(sink, whole[0].schema, options=options) as writer:
        for batch in whole:
            writer.write_batch(batch)
    return _write(place, name, memoryview(sink.getvalue()))


def read_batches(place: str, names: Sequence[str], number: int) -> list[pa.RecordBatch]:
    """Read the record batch of one number from each of some files of `write_batches`."""
    store, base = open_place(place)

    def read(name: str) -> pa.RecordBatch:
        def attempt() -> pa.RecordBatch:
            with store.open_input_file(f"{base}/{name}") as file:
                return pa.ipc.open_file(file).get_batch(number)

        return with_retries(attempt, f"{name} cannot be read from {place}")

    # Requests to storage wait for each other's answers; a disk answers at once.
    with ThreadPoolExecutor(PARALLEL_COPIES if is_uri(place) else 1) as pool:
        return list(pool.map(read, names))


def write_numbers(place: str, name: str, values: NDArray[Any]) -> str:
    """Write numbers as a raw file, and return its sha256."""
    return _write(place, name, np.ascontiguousarray(values).data.cast("B"))


def _write(place: str, name: str, content: memoryview) -> str:
    def write() -> None:
        write_file(place, name, content)

    if is_uri(place):
        with_retries(write, f"{name} cannot be written to {place}")
    else:
        write()  # a full disk stays full
    return hashlib.sha256(content).hexdigest()


def as_batch(table: pa.Table) -> pa.RecordBatch:
    """Return a table as one record batch, also if it has no rows."""
    columns = [column.combine_chunks() for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)
