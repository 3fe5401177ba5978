"""Users of a log to vectors with Ray Data: one a user, or one a user and service.

Takes an exported encoder and a log of any size, gives `Parts` and a manifest. The log is read by
the corpus's own reader, users are gathered into buckets by a hash of their id, and each bucket is
one task that encodes its distinct items once and writes one part. A part that is there is not made
again.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch
from ray.exceptions import RayError

from clue_ray.corpus.build import MAX_TASKS, small_shuffle_tasks, source_key
from clue_ray.corpus.logs.reading import Reading, plan_reading
from clue_ray.errors import ClusterError, EventLogError, StudyError, find_worker_error
from clue_ray.spec.specs import CorpusSpec
from clue_ray.spec.yaml import fingerprint
from clue_ray.transfer.embed.parts import Parts
from clue_ray.transfer.embed.writing import (
    USER_ROWS,
    EmbedPlan,
    Precision,
    rows_of_part,
    write_parts,
)
from clue_ray.transfer.encode import UserEncoder
from clue_ray.transfer.encoder_file import EncoderCard, ExportedEncoder, read_encoder

BYTES_A_PART, MIN_PARTS, MAX_PARTS = 1_000_000, 16, 4096
READ_AS_GIVEN = ("services", "max_text_length", "timestamp_format", "separator")
"""Fields of a corpus section that decide how a log is read, besides its columns and text."""
Settings = dict[str, Any]
"""What is asked for: services, per_service, precision."""


def embed_users(
    run: str | Path,
    events: CorpusSpec | str | Sequence[str],
    output: str,
    *,
    per_service: bool = False,
    precision: Precision = "float32",
    since: str | None = None,
    gpus_per_worker: float = 0,
) -> dict[str, Any]:
    """Embed every user of a log and return the manifest; needs a Ray session. The same call again
    resumes.

    Args:
        run: folder of the run, or of the encoder it left.
        events: files, folders, globs or URIs; or a corpus section, whose events, columns, text and
            services count. Columns and text are the encoder's own where none are given.
        output: folder or URI to fill, see `parts`.
        per_service: one vector a user and service, not their mean a user (`UserEncoder.encode`).
        since: manifest or output of an embedding of the same log in an earlier state, by the same
            encoder: only users whose encoded events differ from then are embedded.
        gpus_per_worker: share of a GPU an encoding actor holds; none encodes in tasks on CPUs.
            Where torch sees no GPU an actor encodes on its CPU, and the manifest's `devices` tells.

    Raises:
        StudyError: the encoder, the earlier embedding or the output cannot serve.
        EventLogError: the log cannot be read.
    """
    exported = read_encoder(run)
    spec = _reading_spec(events, exported.card)
    reading = _plan_log(spec)
    settings: Settings = {
        "services": spec.services,
        "per_service": per_service,
        "precision": precision,
    }
    earlier = _read_manifest(since, exported.card, settings) if since else None
    request = _identify(exported.card, reading, settings, earlier)
    parts = Parts(output)
    if manifest := parts.claim(request["key"]):
        return manifest
    plan = _plan_parts(parts, reading, settings, earlier)
    make_parts(reading, exported, plan, gpus_per_worker)
    return _write_manifest(request, exported.card, plan)


def _plan_log(spec: CorpusSpec) -> Reading:
    """Plan to read a whole log, of all services: users left out must be told of. Raise
    EventLogError if it is empty.
    """
    reading = plan_reading(spec.model_copy(update={"services": None}))
    if not reading.parts:
        raise EventLogError(
            f"Event log {reading.logs[0].places[0]} holds no rows; give the log of the users to "
            f"embed."
        )
    return reading


def _identify(
    card: EncoderCard, reading: Reading, settings: Settings, earlier: dict[str, Any] | None
) -> dict[str, Any]:
    """Say what an embedding is made from, and its key: the fingerprint of all of that."""
    made_of = {"encoder_digest": card.digest, "log_digest": source_key(reading), **settings}
    since = earlier and earlier["key"]
    return {"key": fingerprint({**made_of, "since": since}), **made_of, "since": since}


def _plan_parts(
    parts: Parts, reading: Reading, settings: Settings, earlier: dict[str, Any] | None
) -> EmbedPlan:
    """Say into how many parts users go, as many as in the earlier embedding, and which of them are
    there already.
    """
    return EmbedPlan(
        parts,
        buckets=earlier["parts"] if earlier else _number_of_parts(reading),
        since=Parts(earlier["place"]) if earlier else None,
        done=frozenset(parts.numbers()),
        **settings,
    )


def _reading_spec(events: CorpusSpec | str | Sequence[str], card: EncoderCard) -> CorpusSpec:
    """Say how a log is read: as the encoder's own was, where nothing else is given."""
    spec = (
        events if isinstance(events, CorpusSpec) else CorpusSpec.parse({"events": events}, "events")
    )
    own = {"text": card.text, "columns": card.columns}
    update = {name: value for name, value in own.items() if name not in spec.model_fields_set}
    reading = CorpusSpec(**{name: getattr(spec, name) for name in READ_AS_GIVEN}, events="unused")
    return reading.model_copy(
        update={"events": spec.events, "text": spec.text, "columns": spec.columns, **update}
    )


def _read_manifest(since: str, card: EncoderCard, settings: Settings) -> dict[str, Any]:
    """Read the manifest of a finished embedding by the same encoder, given by its file or its
    place.

    Raises:
        StudyError: there is none, or its vectors are of another encoder or kind.
    """
    place = re.sub(r"/?manifest\.json(?=\?|$)", "", since)  # a URI may end with a query
    manifest = Parts(place).read_json("manifest.json")
    if manifest is None:
        raise StudyError(
            f"{since} is no finished embedding (no manifest.json); give the --output of one that "
            f"ended."
        )
    if not {"key", "encoder_digest", "parts"} <= manifest.keys():
        raise StudyError(
            f"{since} is no manifest of an embedding; give the --output of one that ended."
        )
    if manifest["encoder_digest"] != card.digest:
        raise StudyError(
            f"The embedding at {since} is by encoder {manifest['encoder_digest']}, this is "
            f"{card.digest}; leave "
            "--since out to embed all users anew."
        )
    if differing := [
        name for name in ("per_service", "precision") if manifest[name] != settings[name]
    ]:
        raise StudyError(
            f"The embedding at {since} has {differing[0]} {manifest[differing[0]]}, this is to "
            f"have "
            f"{settings[differing[0]]}; ask for the same, or leave --since out to embed all users "
            f"anew."
        )
    return manifest | {"place": place}


def _number_of_parts(reading: Reading) -> int:
    """Choose the parts by the log's size alone, so that a bucket fits a task whatever the log's."""
    return min(
        MAX_PARTS, max(MIN_PARTS, -(-sum(file.size for file in reading.files) // BYTES_A_PART))
    )


def make_parts(
    reading: Reading, exported: ExportedEncoder, plan: EmbedPlan, gpus_per_worker: float
) -> None:
    """Run the pipeline: read, gather users, encode and write; raise ClusterError where an actor's
    GPUs are nowhere.
    """
    gpus = ray.cluster_resources().get("GPU", 0)
    if gpus < gpus_per_worker:  # Ray would wait for them for ever
        raise ClusterError(
            f"An encoding actor is to hold {gpus_per_worker:g} GPU, but the Ray cluster has "
            f"{gpus:g}; leave "
            "--gpus-per-worker out to encode on CPUs, or start nodes with GPUs."
        )
    inputs = {"reading": ray.put(reading), "plan": ray.put(plan)}
    parts = len(reading.parts)
    rows = (
        ray.data.range(parts, override_num_blocks=min(parts, MAX_TASKS))
        .map_batches(_user_rows, batch_size=None, fn_kwargs=inputs)
        .repartition(plan.buckets, keys=["bucket"])
    )
    given = {"exported": ray.put(exported), "plan": inputs["plan"]}
    shape: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None}
    if gpus_per_worker:
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=int(gpus / gpus_per_worker))
        one = {
            "batch_format": "pyarrow",
            "batch_size": 1,
        }  # with GPUs Ray wants a size, which must cut no bucket
        made = rows.map_batches(pack_buckets, **shape).map_batches(
            PartEncoder, compute=pool, num_gpus=gpus_per_worker, fn_constructor_kwargs=given, **one
        )
    else:
        made = rows.map_batches(_encode_partition, fn_kwargs=given, **shape)
    try:
        with small_shuffle_tasks():
            for _ in made.iter_batches(batch_size=None, batch_format="pyarrow"):
                pass
    except RayError as error:
        raise _own_error(error) from error


def _own_error(error: RayError) -> Exception:
    """Return the error of ours that a worker raised, or Ray's unchanged."""
    kinds: dict[str, type[Exception]] = {"EventLogError": EventLogError, "StudyError": StudyError}
    found = find_worker_error(error, "|".join(kinds))
    return kinds[found[0]](found[1]) if found else error


def _user_rows(
    batch: dict[str, Any], reading: "ray.ObjectRef[Reading]", plan: "ray.ObjectRef[EmbedPlan]"
) -> Iterator[pa.Table]:
    """Read some parts of the log, by number, to USER_ROWS."""
    whole, asked = ray.get(reading), ray.get(plan)
    yield USER_ROWS.empty_table()  # a log without rows has columns all the same
    for index in batch["id"].tolist():
        yield from rows_of_part(whole.parts[index], whole, asked)


def _encode_partition(
    rows: pa.Table, exported: "ray.ObjectRef[ExportedEncoder]", plan: "ray.ObjectRef[EmbedPlan]"
) -> pa.Table:
    """Write the parts of one partition of the shuffle, in a task; the encoder stays in the process
    for the next.
    """
    return write_parts(rows, _loaded(exported), ray.get(plan))


@lru_cache(maxsize=1)
def _loaded(exported: "ray.ObjectRef[ExportedEncoder]") -> UserEncoder:
    return UserEncoder(ray.get(exported))


def pack_buckets(rows: pa.Table) -> pa.Table:
    """Lay each bucket of a table of USER_ROWS into one row, as an Arrow stream."""
    packed = []
    for bucket in pc.unique(rows["bucket"]).to_pylist() if rows.num_rows else []:
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, rows.schema) as writer:
            writer.write_table(rows.filter(pc.equal(rows["bucket"], bucket)))
        packed.append(stream.getvalue().to_pybytes())
    return pa.table({"rows": pa.array(packed, pa.large_binary())})


class PartEncoder:
    """Writes the parts of packed buckets, in an actor that holds a GPU."""

    def __init__(
        self, exported: "ray.ObjectRef[ExportedEncoder]", plan: "ray.ObjectRef[EmbedPlan]"
    ):
        self.plan: EmbedPlan = ray.get(plan)
        self.encoder = UserEncoder(
            ray.get(exported), "cuda" if torch.cuda.is_available() else "cpu"
        )

    def __call__(self, packed: pa.Table) -> pa.Table:
        """Write the parts of some buckets."""
        made = [
            write_parts(pa.ipc.open_stream(rows.as_buffer()).read_all(), self.encoder, self.plan)
            for rows in packed["rows"]
        ]
        return pa.concat_tables(made) if made else pa.table({"bucket": pa.array([], pa.int32())})


def _write_manifest(request: dict[str, Any], card: EncoderCard, plan: EmbedPlan) -> dict[str, Any]:
    """Sum up the parts and write it down, which says that all are there; raise EventLogError where
    nobody was named.
    """
    summaries = plan.parts.summaries()
    counted = ("left_out", "unknown_services", "devices")
    counts = {name: sum((Counter(part[name]) for part in summaries), Counter()) for name in counted}
    absent = set(plan.services or ()) - {name for part in summaries for name in part["services"]}
    totals = {
        name: sum(part[name] for part in summaries)
        for name in ("rows", "rows_without_user", "users", "vectors")
    }
    if not totals["users"] and not counts["left_out"]:
        raise EventLogError(
            f"The log names no user in its {totals['rows']:,} rows; give the log of the users to "
            f"embed, and as "
            "user_id the column that names them."
        )
    manifest = {
        **request,
        "run_id": card.run_id,
        "corpus_digest": card.corpus_digest,
        "width": card.run.encoder.output_width,
        "sequence_length": card.run.sequence_length,
        "parts": plan.buckets,
        "parts_written": len(summaries),
        **totals,
        **{name: dict(sorted(counter.items())) for name, counter in counts.items()},
        "absent_services": sorted(absent),
    }
    plan.parts.write_json("manifest.json", manifest)
    return manifest
