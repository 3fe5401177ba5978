"""Second pass over a log: rows to buckets of users, and a bucket to a shard whose bytes depend on
its rows alone.

A shard is two files of one name: `shards/` holds a row a user and service with its events, most
recent first, as indices into `items/`, which holds its distinct items with their tokens. Events
after a cut in time go to `later/`.
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
from tokenizers import Tokenizer

from clue_ray.corpus.logs.reading import Part, Reading, read_part
from clue_ray.corpus.logs.schema import good_rows, normalise
from clue_ray.corpus.profile import count_shard
from clue_ray.corpus.rows import SHARD_COUNTS, SortedRows
from clue_ray.corpus.store import sha256, stable_hash
from clue_ray.corpus.tokenizer import ItemTokenizer
from clue_ray.spec.specs import CorpusSpec
from clue_ray.storage.files import atomic_write

EVENTS_PER_SHARD, MIN_SHARDS, MAX_SHARDS = 250_000, 16, 4096
SEQUENCES = pa.schema(
    [
        ("user_id", pa.string()),
        ("service", pa.string()),
        ("num_services", pa.int32()),
        ("items", pa.list_(pa.int32())),
        ("timestamps", pa.list_(pa.float64())),
    ]
)
BUCKETED = pa.schema(
    [
        ("user_id", pa.string()),
        ("service", pa.int16()),
        ("timestamp", pa.float64()),
        ("text", pa.string()),
        ("bucket", pa.int32()),
    ]
)


def number_of_shards(events: int) -> int:
    """Choose how many shards a log gets, by its events alone, so that memory does not grow with the
    log.
    """
    return min(MAX_SHARDS, max(MIN_SHARDS, -(-events // EVENTS_PER_SHARD)))


@dataclass(frozen=True)
class ShardPlan:
    """What turns a bucket of rows into a shard."""

    spec: CorpusSpec
    folder: Path
    services: tuple[str, ...]
    tokenizer: str
    "the tokenizer as JSON"
    buckets: int


def bucket_part(part: Part, reading: Reading, plan: ShardPlan) -> Iterator[pa.Table]:
    """Read a part's good rows and add each user's bucket."""
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
    """Write one shard for each bucket in a table of BUCKETED rows; may be retried. Returns the
    shards' counts.
    """
    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # tasks share the machine's cores already
    buckets = sorted(pc.unique(events["bucket"]).to_pylist()) if events.num_rows else []
    rows = [
        _write_shard(bucket, SortedRows(events.filter(pc.equal(events["bucket"], bucket))), plan)
        for bucket in buckets
    ]
    return pa.Table.from_pylist(rows, schema=SHARD_COUNTS)


@lru_cache(maxsize=1)
def item_tokenizer(tokenizer: str, max_item_tokens: int) -> ItemTokenizer:
    """Return this process's own, which remembers the items of the shards before."""
    return ItemTokenizer(Tokenizer.from_str(tokenizer), max_item_tokens)


def _write_shard(bucket: int, rows: SortedRows, plan: ShardPlan) -> dict[str, object]:
    """Write one shard's files and count what it holds."""
    repeats = rows.duplicates()
    kept = ~repeats if plan.spec.duplicates == "drop" else np.ones(len(repeats), dtype=bool)
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
        "rows": len(repeats),
        "later": int(later.sum()),
        "duplicates": int(repeats.sum()),
        **count_shard(rows, before, tokenized, plan.spec, len(plan.services)),
    }


def _to_sequences(rows: SortedRows, kept: NDArray[np.bool_], plan: ShardPlan) -> pa.Table:
    """Fold sorted rows into one a (user, service), with lists of items and times."""
    user, service = rows.user[kept], rows.service[kept]
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
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=4096)
        return sha256(temporary)
