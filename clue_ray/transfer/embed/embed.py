"""Embed all users of a log of any size with Ray Data: one vector per user, or per user and service.

The log is read by the same reader as for a corpus. Users are shuffled into buckets by a hash of
their id, and each bucket becomes one part, see `pipeline` and `parts`. Parts that exist are not
written again, so the same call resumes an interrupted one.
"""

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clue_ray.corpus.build import source_key
from clue_ray.corpus.logs.items import hash_ids
from clue_ray.corpus.logs.reading import Reading, plan_reading
from clue_ray.errors import EventLogError, StudyError
from clue_ray.spec.specs import CorpusSpec
from clue_ray.spec.yaml import fingerprint
from clue_ray.transfer.embed.client_list import read_clients
from clue_ray.transfer.embed.matrix import (
    Format,
    MatrixRequest,
    find_view,
    read_finished,
    view_of,
)
from clue_ray.transfer.embed.parts import Parts
from clue_ray.transfer.embed.pipeline import make_parts
from clue_ray.transfer.embed.writing import EmbedPlan, Precision
from clue_ray.transfer.encoder_file import EncoderCard, read_encoder

BYTES_PER_PART, MIN_PARTS, MAX_PARTS = 1_000_000, 16, 4096
"""Size of the log per part, and limits of the number of parts."""
READ_AS_GIVEN = ("services", "max_text_length", "timestamp_format", "separator")
"""Fields of a corpus section that decide how a log is read, besides its columns and text."""
Settings = dict[str, Any]
"""What the caller requests: services, per_service, precision."""


def embed_users(
    run: str | Path,
    events: CorpusSpec | str | Sequence[str],
    output: str,
    *,
    per_service: bool = False,
    precision: Precision = "float32",
    since: str | None = None,
    gpus_per_worker: float = 0,
    users: str | None = None,
    form: Format = "parquet",
    join: Sequence[str] = (),
) -> dict[str, Any]:
    """Embed every user of a log and return the manifest. Needs a Ray session.

    Args:
        run: folder of the run, or of its exported encoder.
        events: files, folders, globs or URIs; or a corpus section, of which events, columns, text
            and services are used. Columns and text default to those of the encoder's corpus.
        output: folder or URI to fill, see `parts`.
        per_service: write one vector per user and service, not their mean per user
            (`UserEncoder.encode`).
        since: manifest or output of an embedding of an earlier state of the log by the same
            encoder. Only users with other encoded events than then are embedded.
        gpus_per_worker: GPUs per encoding actor, possibly a fraction; 0 encodes in tasks on CPUs.
            An actor that finds no GPU encodes on its CPU; `devices` in the manifest counts both.
        users: .npy file or table of the users to embed; `matrix` then has their vectors in its
            order, zeros for users without events.
        form: `npy` writes the matrix as arrays, its numbers as float16.
        join: outputs of finished embeddings, whose vectors are further columns of the matrix.

    Raises:
        StudyError: the encoder, the earlier embedding or the output cannot be used.
        EventLogError: the log cannot be read, or names no user.
        ClusterError: the cluster has too few GPUs for one actor.
    """
    exported = read_encoder(run)
    spec = _reading_spec(events, exported.card)
    reading = _plan_log(spec)
    settings: Settings = {
        "services": spec.services,
        "per_service": per_service,
        "precision": precision,
    }
    listed = read_clients(users) if users else None
    asked = MatrixRequest(listed, form, tuple(map(find_view, join)))
    if since and asked.wanted:
        raise StudyError(
            "--since leaves the vectors of unchanged users in the earlier output, so it has no "
            "matrix; leave out --since, or --users, --format npy and --join."
        )
    if asked.wanted:
        width = exported.card.run.encoder.output_width
        asked.check_width(width * (len(exported.card.services) if per_service else 1))
    earlier = _read_manifest(since, exported.card, settings) if since else None
    request = _identify(exported.card, reading, settings, earlier, asked)
    parts = Parts(output)
    if manifest := parts.begin(request["key"]):
        return manifest
    plan = _plan_parts(parts, reading, settings, earlier)
    if listed:
        plan = replace(plan, listed=np.sort(hash_ids(listed.users)))
    make_parts(reading, exported, plan, gpus_per_worker)
    parts.remove_items()
    return _write_manifest(request, exported.card, plan, asked)


def _plan_log(spec: CorpusSpec) -> Reading:
    """Plan to read the rows of all services, because users that are left out are listed.

    Raises:
        EventLogError: the log is empty or cannot be read.
    """
    reading = plan_reading(spec.model_copy(update={"services": None}))
    if not reading.parts:
        raise EventLogError(
            f"Event log {reading.logs[0].places[0]} holds no rows; give the log of the users to "
            "embed."
        )
    return reading


def _identify(
    card: EncoderCard,
    reading: Reading,
    settings: Settings,
    earlier: dict[str, Any] | None,
    asked: MatrixRequest,
) -> dict[str, Any]:
    """Return what an embedding is made from, and its key, the fingerprint of all of it."""
    made_of = {"encoder_digest": card.digest, "log_digest": source_key(reading), **settings}
    made_of |= asked.identity()
    since = earlier and earlier["key"]
    return {"key": fingerprint({**made_of, "since": since}), **made_of, "since": since}


def _plan_parts(
    parts: Parts, reading: Reading, settings: Settings, earlier: dict[str, Any] | None
) -> EmbedPlan:
    """Plan the number of parts and which of them exist already.

    The number is that of the earlier embedding, so that a bucket holds the same users.
    """
    return EmbedPlan(
        parts,
        buckets=earlier["parts"] if earlier else _count_parts(reading),
        since=Parts(earlier["place"]) if earlier else None,
        done=frozenset(parts.numbers()),
        encoded=frozenset(parts.item_ranges()),
        attempt=uuid.uuid4().hex,
        **settings,
    )


def _reading_spec(events: CorpusSpec | str | Sequence[str], card: EncoderCard) -> CorpusSpec:
    """Return how the log is read: as the encoder's own was, unless the caller says otherwise."""
    spec = events
    if not isinstance(spec, CorpusSpec):
        spec = CorpusSpec.parse({"events": spec}, "events")
    own: dict[str, Any] = {"text": card.text, "columns": card.columns}
    if "text" not in spec.model_fields_set:  # the caller's text may not name the card's items
        own["items"] = card.items
    update = {name: value for name, value in own.items() if name not in spec.model_fields_set}
    reading = CorpusSpec(**{name: getattr(spec, name) for name in READ_AS_GIVEN}, events="unused")
    return reading.model_copy(
        update={
            "events": spec.events,
            "text": spec.text,
            "columns": spec.columns,
            "items": spec.items,
            **update,
        }
    )


def _read_manifest(since: str, card: EncoderCard, settings: Settings) -> dict[str, Any]:
    """Read the manifest of an earlier embedding, given by its file or its folder.

    Raises:
        StudyError: there is no manifest, or it is of another encoder or with other settings.
    """
    manifest = read_finished(since)
    if manifest["encoder_digest"] != card.digest:
        raise StudyError(
            f"The embedding at {since} is by encoder {manifest['encoder_digest']}, not by "
            f"{card.digest}; leave --since out to embed all users."
        )
    for name in ("per_service", "precision"):
        if manifest[name] != settings[name]:
            raise StudyError(
                f"The embedding at {since} has {name} {manifest[name]}, not {settings[name]}; use "
                "the same setting, or leave --since out to embed all users."
            )
    return manifest


def _count_parts(reading: Reading) -> int:
    """Choose the number of parts by the size of the log, so that a bucket fits one task."""
    parts = -(-sum(file.size for file in reading.files) // BYTES_PER_PART)
    return min(MAX_PARTS, max(MIN_PARTS, parts))


def _write_manifest(
    request: dict[str, Any], card: EncoderCard, plan: EmbedPlan, asked: MatrixRequest
) -> dict[str, Any]:
    """Sum the parts' counts and write the manifest, which marks the embedding as finished.

    Raises:
        EventLogError: the log names no user, or none of the list.
        StudyError: the matrix would be too wide.
    """
    summaries = plan.parts.summaries()
    counted = ("left_out", "unknown_services", "devices")
    counts = {name: sum((Counter(part[name]) for part in summaries), Counter()) for name in counted}
    absent = set(plan.services or ()) - {name for part in summaries for name in part["services"]}
    totals = {
        name: sum(part[name] for part in summaries)
        for name in ("rows", "rows_without_user", "users", "vectors")
    }
    if asked.wanted and not totals["users"]:
        raise EventLogError(f"{asked.nobody()}; check that the log's user ids are read as meant.")
    if not totals["users"] and not counts["left_out"]:
        raise EventLogError(
            f"The log names no user in its {totals['rows']:,} rows; give the log of the users to "
            "embed, and as user_id the column with their ids."
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
    if asked.wanted:
        own = view_of(plan.parts, per_service=plan.per_service, width=manifest["width"])
        manifest["matrix"] = asked.write(own, plan.precision)
    plan.parts.write_json("manifest.json", manifest)
    return manifest
