"""Read the rows of users, gather a bucket of users, encode it, and write its part.

Every user in the log is either in the vectors or in the list of users left out, with a reason.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clue_ray.corpus.hashes import stable_hash
from clue_ray.corpus.logs.items import hash_ids
from clue_ray.corpus.logs.reading import Part, Reading, read_part
from clue_ray.corpus.logs.schema import normalise
from clue_ray.transfer.embed.packed import PACKED, pack, unpack
from clue_ray.transfer.embed.parts import Parts
from clue_ray.transfer.encode import (
    LEFT_OUT,
    FindItems,
    Histories,
    UserEncoder,
    Vectors,
)
from clue_ray.transfer.encoder_file import ExportedEncoder
from clue_ray.transfer.events import EVENTS

OTHER_SERVICES = "no events in the requested services"
NOTHING_NEW = "no new events"
USER_ROWS = pa.schema([*EVENTS, ("reason", pa.string()), ("bucket", pa.int32())])
"""Rows of a log: the event or the reason why it cannot be used, and the user's bucket."""
Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class EmbedPlan:
    """What the tasks of an embedding need to turn a bucket of rows into a part."""

    parts: Parts
    buckets: int
    services: tuple[str, ...] | None
    per_service: bool
    precision: Precision
    since: Parts | None
    "the earlier embedding; users with equal histories are not encoded again"
    done: frozenset[int] = frozenset()
    "buckets with a complete part"
    listed: NDArray[np.uint64] | None = None
    "hashes of the users to embed, sorted; all users if None"
    at: float | None = None
    "when users are looked at, in seconds since 1970; the end of the encoder's corpus if None"
    encoded: frozenset[int] = frozenset()
    "ranges of items whose vectors are written"
    attempt: str = ""
    "name of this run of the pipeline"


def read_user_rows(part: Part, reading: Reading, plan: EmbedPlan) -> Iterator[pa.Table]:
    """Read the rows of a part of the log, except those of buckets that are done.

    Rows that cannot be used are included, because their users may have to be listed as left out.
    """
    log = reading.logs[part.log]
    for batch in read_part(part, log):
        rows = normalise(
            batch.table, log, reading.spec, file=part.number, first_row=batch.first_row
        )
        reason = rows["reason"]
        if plan.services is not None:
            requested = pc.is_in(rows["service"], value_set=pa.array(plan.services, pa.string()))
            reason = pc.if_else(
                pc.or_(requested, pc.is_valid(reason)), reason, pa.scalar(OTHER_SERVICES)
            )
        users = pc.fill_null(rows["user_id"], "")
        bucket = (stable_hash(users.to_pandas(), "bucket") % np.uint64(plan.buckets)).astype(
            np.int32
        )
        columns = [users, *(rows[name] for name in EVENTS.names[1:]), reason, pa.array(bucket)]
        found = pa.table(columns, schema=USER_ROWS)
        if plan.listed is not None:  # a stranger with the hash of a listed user does no harm
            found = found.filter(pa.array(_is_in(hash_ids(found["user_id"]), plan.listed)))
        yield found.filter(
            pc.invert(pc.is_in(found["bucket"], value_set=pa.array(list(plan.done), pa.int32())))
        )


def _is_in(values: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return whether each value is among sorted ones."""
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[places] == values)


def gather_buckets(rows: pa.Table, exported: ExportedEncoder, plan: EmbedPlan) -> pa.Table:
    """Pack each bucket in a table of USER_ROWS, and write the users that are not encoded.

    A task may be retried.
    """
    buckets = pc.unique(rows["bucket"]).to_pylist() if rows.num_rows else []
    packed = [
        _gather(bucket, rows.filter(pc.equal(rows["bucket"], bucket)), exported, plan)
        for bucket in buckets
    ]
    return pa.concat_tables([PACKED.empty_table(), *packed])


def _gather(bucket: int, rows: pa.Table, exported: ExportedEncoder, plan: EmbedPlan) -> pa.Table:
    """Pack what the encoder reads of one bucket's users, and list those left out."""
    length = exported.card.run.sequence_length
    usable = rows.filter(pc.is_null(rows["reason"])).select(EVENTS.names)
    histories = Histories(usable, exported, plan.at)
    current = pa.table(
        {
            "user_id": pa.array(histories.user_ids, pa.string()),
            "history": pa.array(histories.fingerprints(length), pa.uint64()),
        }
    )
    left_out = _list_unusable(rows, current["user_id"])
    if plan.since is not None and (earlier := plan.since.read("histories", bucket)) is not None:
        unchanged = _find_unchanged(current, earlier)
        left_out = pa.concat_tables(
            [left_out, _with_reason(current["user_id"].filter(unchanged), NOTHING_NEW)]
        )
        changed = current["user_id"].filter(pc.invert(unchanged))
        usable = usable.filter(pc.is_in(usable["user_id"], value_set=changed.combine_chunks()))
        histories = Histories(usable, exported, plan.at)
    unknown = set(histories.services) - set(exported.card.services)
    services = Counter(usable["service"].to_pylist())
    summary = {
        "rows": rows.num_rows,
        "rows_without_user": _count_without_user(rows),
        "users": len(histories.user_ids),
        "left_out": dict(Counter(left_out["reason"].to_pylist())),
        "unknown_services": {name: services[name] for name in sorted(unknown)},
        "services": sorted(services),
    }
    plan.parts.write_table("histories", bucket, current)
    plan.parts.write_table("left_out", bucket, left_out)
    return pack(bucket, histories.recent(length), json.dumps(summary))


def write_vectors(row: pa.Table, encoder: UserEncoder, plan: EmbedPlan, find: FindItems) -> None:
    """Encode the users of one packed bucket and complete its part. A task may be retried."""
    vectors = encoder.encode_histories(unpack(row), per_service=plan.per_service, find=find)
    summary = json.loads(row["summary"][0].as_py())
    summary["vectors"] = len(vectors.user_ids)
    summary["devices"] = {encoder.model.log_scale.device.type: 1}
    table = _vector_table(vectors, plan.precision)
    plan.parts.complete_part(row["number"][0].as_py(), table, summary)


def _count_without_user(rows: pa.Table) -> int:
    return int(pc.sum(pc.equal(rows["user_id"], "")).as_py() or 0)


def _list_unusable(rows: pa.Table, encoded: pa.ChunkedArray) -> pa.Table:
    """List the users without usable rows, by id, each with the reason of the first row."""
    out = pc.invert(pc.is_in(rows["user_id"], value_set=encoded.combine_chunks()))
    bad = rows.filter(pc.and_(out, pc.not_equal(rows["user_id"], ""))).select(LEFT_OUT.names)
    first = bad.to_pandas().drop_duplicates("user_id").sort_values("user_id")
    return pa.Table.from_pandas(first, LEFT_OUT, preserve_index=False)


def _with_reason(users: pa.ChunkedArray, reason: str) -> pa.Table:
    return pa.table([users, pa.repeat(reason, len(users))], schema=LEFT_OUT)


def _find_unchanged(current: pa.Table, earlier: pa.Table) -> pa.Array:
    """Return whether each user's history is the same as in an earlier embedding, [current rows]."""
    places = pc.index_in(current["user_id"], value_set=earlier["user_id"].combine_chunks())
    return pc.fill_null(pc.equal(earlier["history"].take(places), current["history"]), False)


def _vector_table(vectors: Vectors, precision: Precision) -> pa.Table:
    """Build the table of vectors: user_id, service (null if a row is a user), vector."""
    values = pa.array(vectors.values.astype(precision).ravel())
    rows = len(vectors.user_ids)
    services = (
        pa.nulls(rows, pa.string())
        if vectors.services is None
        else pa.array(vectors.services, pa.string())
    )
    lists = pa.FixedSizeListArray.from_arrays(values, vectors.values.shape[1])
    return pa.table(
        {"user_id": pa.array(vectors.user_ids, pa.string()), "service": services, "vector": lists}
    )
