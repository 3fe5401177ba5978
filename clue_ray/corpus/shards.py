"""The second pass over a log: assign rows to buckets of users, and write one shard per bucket.

A shard is two files of the same name. The one in `shards/` has a row per user and service with its
events, most recent first, as indices into the one in `items/`, which has the distinct items of the
shard with their tokens. Events from the cut in time on go to a third file, in `later/`.

The bytes of a shard depend on the rows of its bucket alone. So two corpora can be compared by their
digests, and a task that Ray retries after a lost node writes the same files again.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clue_ray.corpus.forms import USERS
from clue_ray.corpus.hashes import sha256, stable_hash
from clue_ray.corpus.logs.reading import Part, Reading, read_part
from clue_ray.corpus.logs.schema import good_rows, normalise
from clue_ray.corpus.profile import count_shard
from clue_ray.corpus.rows import SHARD_COUNTS, SortedRows
from clue_ray.corpus.tokenizer import ItemTokenizer, parse_tokenizer
from clue_ray.spec.specs import CorpusSpec
from clue_ray.storage.files import atomic_write

EVENTS_PER_SHARD, MIN_SHARDS, MAX_SHARDS = 250_000, 16, 4096
"""The first bounds the memory of a worker, the last the number of files."""
SEQUENCES = pa.schema(
    [
        ("user_id", pa.string()),
        ("service", pa.string()),
        ("num_services", pa.int32()),
        ("items", pa.list_(pa.int32())),
        ("timestamps", pa.list_(pa.float64())),
    ]
)
"""Rows of `shards/` and `later/`; `num_services` counts the services of the user in this file."""
BUCKETED = pa.schema(
    [
        ("user_id", pa.string()),
        ("service", pa.int16()),
        ("timestamp", pa.float64()),
        ("text", pa.string()),
        ("bucket", pa.int32()),
    ]
)
"""Rows of the shuffle; `service` is an index, which takes less of the object store than a name."""


def number_of_shards(events: int) -> int:
    """Return the number of shards for a number of events.

    It depends on nothing else, in particular not on the cluster: it decides which users share a
    shard, and thereby the bytes of the corpus.
    """
    return min(MAX_SHARDS, max(MIN_SHARDS, -(-events // EVENTS_PER_SHARD)))


@dataclass(frozen=True)
class ShardPlan:
    """What a worker needs to write the rows of a bucket as a shard.

    Attributes:
        folder: root of the corpus.
        services: names, in the order of their indices.
        tokenizer: the tokenizer as JSON, which can be a cache key.
        buckets: number of shards.
    """

    spec: CorpusSpec
    folder: Path
    services: tuple[str, ...]
    tokenizer: str
    buckets: int


def bucket_part(part: Part, reading: Reading, plan: ShardPlan) -> Iterator[pa.Table]:
    """Yield the usable rows of a part, each with the bucket of its user.

    The bucket comes from our own hash of the user id. Ray's hash partitioning only gathers the rows
    of a bucket: its hash may change between versions.
    """
    log = reading.logs[part.log]
    names = pa.array(plan.services)
    for batch in read_part(part, log):
        events = normalise(
            batch.table, log, reading.spec, file=part.number, first_row=batch.first_row
        )
        good = good_rows(events)
        bucket = (
            stable_hash(good["user_id"].to_pandas(), "bucket") % np.uint64(plan.buckets)
        ).astype(np.int32)
        service = pc.index_in(good["service"], value_set=names).cast(pa.int16())
        columns = [good["user_id"], service, good["timestamp"], good["text"], pa.array(bucket)]
        yield pa.table(columns, schema=BUCKETED)


def write_shards(events: pa.Table, plan: ShardPlan) -> pa.Table:
    """Write one shard for each bucket in a table of BUCKETED rows, and return their SHARD_COUNTS.

    A retry replaces the files by the same bytes.
    """
    # Ray runs a task per core already; threads of the tokenizer would compete with them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    buckets = sorted(pc.unique(events["bucket"]).to_pylist()) if events.num_rows else []
    rows = [
        _write_shard(bucket, SortedRows(events.filter(pc.equal(events["bucket"], bucket))), plan)
        for bucket in buckets
    ]
    return pa.Table.from_pylist(rows, schema=SHARD_COUNTS)


@lru_cache(maxsize=1)
def item_tokenizer(tokenizer: str, max_item_tokens: int) -> ItemTokenizer:
    """Return this process's tokenizer, which remembers the items of earlier shards."""
    return ItemTokenizer(parse_tokenizer(tokenizer), max_item_tokens)


def _write_shard(bucket: int, rows: SortedRows, plan: ShardPlan) -> dict[str, object]:
    """Write the files of one shard and return its counts."""
    duplicates = rows.duplicates()
    kept = ~duplicates if plan.spec.duplicates == "drop" else np.ones(len(duplicates), dtype=bool)
    cut = plan.spec.split.time.timestamp() if plan.spec.split.time else np.inf
    tokenize = item_tokenizer(plan.tokenizer, plan.spec.max_item_tokens)
    tokenized = tokenize(rows.item_texts.to_pylist(), rows.item_services)
    services = pa.array(plan.services).take(pa.array(rows.item_services))
    columns = {"service": services, "text": rows.item_texts}
    items = pa.table(columns | {"tokens": tokenized.tokens, "text_tokens": tokenized.text_tokens})
    before, later = kept & (rows.time < cut), kept & (rows.time >= cut)
    name = f"shard-{bucket:05d}.parquet"
    tables = {"items": items, "shards": _to_sequences(rows, before, plan)}
    if plan.spec.split.time:
        tables["later"] = _to_sequences(rows, later, plan)
    files = {
        f"{folder}/{name}": _write(plan.folder / folder / name, table)
        for folder, table in tables.items()
    }
    return {
        "files": list(files.items()),
        "rows": len(duplicates),
        "later": int(later.sum()),
        "duplicates": int(duplicates.sum()),
        **count_shard(
            rows, before, tokenized, plan.spec, len(plan.services), max(1, USERS // plan.buckets)
        ),
    }


def _to_sequences(rows: SortedRows, kept: NDArray[np.bool_], plan: ShardPlan) -> pa.Table:
    """Group sorted rows by user and service, with lists of items and times, as in SEQUENCES."""
    user, service = rows.user[kept], rows.service[kept]
    # A group starts where the user or the service changes; the slice is for a table without rows.
    starts = np.flatnonzero(
        np.r_[True, (user[1:] != user[:-1]) | (service[1:] != service[:-1])][: len(user)]
    )
    offsets = pa.array(np.r_[starts, len(user)].astype(np.int32))
    owners = user[starts]
    columns = {
        "user_id": rows.user_ids.take(pa.array(owners)),
        "service": pa.array(plan.services).take(pa.array(service[starts])),
        "num_services": np.bincount(owners, minlength=1)[owners].astype(np.int32),
        "items": pa.ListArray.from_arrays(offsets, pa.array(rows.item[kept], pa.int32())),
        "timestamps": pa.ListArray.from_arrays(offsets, pa.array(rows.time[kept])),
    }
    return pa.table(columns, schema=SEQUENCES)


def _write(path: Path, table: pa.Table) -> str:
    """Write a table and return the sha256 of its file."""
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=4096)
        return sha256(temporary)
