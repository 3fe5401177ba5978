"""Build a corpus from event logs with Ray Data, once, before any run.

Two passes read the log. The first one (`survey`) counts rows, writes those that cannot be used to
`rejected/`, and samples texts for the tokenizer. The second one (`shards`) gathers each bucket of
users and writes its shard. Then the training layout is built from the shards (`layout`).

The corpus is byte-identical on every cluster. Its digest is part of the identity of every run, so a
corpus that is prepared again elsewhere must not invalidate the runs of a study. Therefore users are
assigned to buckets by our own hash, the rows of a shard have a total order, and no result depends
on the order in which tasks end.

A corpus appears complete or not at all. A local folder is built under a temporary name and renamed;
at a URI, where nothing can be renamed, `corpus.json` is written last.
"""

import hashlib
import os
import re
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.exceptions import OutOfMemoryError, RayError
from tokenizers import Tokenizer

from clue_ray.corpus.cache import list_sums
from clue_ray.corpus.checks import check_conservation, check_cut, check_pairs, check_shards
from clue_ray.corpus.checksums import remember_sums
from clue_ray.corpus.hashes import sha256
from clue_ray.corpus.layout.arrays import assemble, write_recipe
from clue_ray.corpus.layout.building import build_parts
from clue_ray.corpus.layout.on_nodes import run_on_nodes
from clue_ray.corpus.layout.opening import LAYOUT, plan_layout
from clue_ray.corpus.logs.reading import Reading, plan_reading
from clue_ray.corpus.output import (
    check_disk,
    check_layout_disk,
    check_work_disk,
    is_empty,
    publish,
    remove_debris,
)
from clue_ray.corpus.planted import METADATA_KEY
from clue_ray.corpus.profile import ShardTotals, count_items
from clue_ray.corpus.shards import ShardPlan, bucket_part, number_of_shards, write_shards
from clue_ray.corpus.sharing import share_reading
from clue_ray.corpus.store import Corpus, holds_corpus, open_corpus, read_manifest
from clue_ray.corpus.survey import TALLY, Survey, survey_part
from clue_ray.corpus.tokenizer import TextFilter, read_tokenizer, train_tokenizer
from clue_ray.corpus.types import add_types, describe_types, without_types
from clue_ray.errors import ClusterError, CorpusError, EventLogError, find_worker_error
from clue_ray.spec.specs import CorpusSpec
from clue_ray.spec.yaml import fingerprint
from clue_ray.spec.younger import without_new_fields
from clue_ray.storage.files import fetch_files, list_files, remove_folder, write_json
from clue_ray.storage.place import is_uri
from clue_ray.storage.sync import working_folder

PREPARATION, CATEGORIES = 2, 2
"""Increase when the code builds a different corpus from the same log and spec; the second where
only logs with category columns differ."""
REJECTED = re.compile(r"rejected/[\d-]+\.parquet")
MAX_TASKS = 2000
"""Tasks per pass: a log of more parts than this has several parts per task."""
SHUFFLE_BYTES = 64_000_000


def build_corpus(spec: CorpusSpec, output: str | Path | None = None) -> Corpus:
    """Build the corpus of `spec`, or open it if it exists already; needs a Ray session.

    Args:
        output: folder or URI of the corpus. The default is `corpora/<key>`. The key depends on the
            files of the log and on the spec, so a changed log or spec gives another folder.

    Raises:
        EventLogError: the log cannot be read, or too many of its rows cannot be used.
        CorpusError: `output` contains something else, the given tokenizer cannot be used, or the
            disk is too full.
    """
    reading = plan_reading(spec)
    key = source_key(reading)
    if output and is_uri(output):
        return _build_on_storage(reading, key, str(output))
    target = Path(output or Path("corpora") / key).absolute()
    remove_debris(target)
    if target.exists() and not is_empty(target):
        return _reopen(target, key)
    check_disk(target.parent, sum(file.size for file in reading.files))
    # Host and process id are in the name, so that concurrent preparations do not share a folder.
    partial = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process; containers repeat process ids
    partial.mkdir(parents=True)
    try:
        _write_corpus(reading, partial, key)
        publish(partial, target)
        remember_sums(target, list_sums(target, read_manifest(target)))
    except (OSError, RayError, pa.ArrowException) as error:
        raise _explain_failure(error, target.parent) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _reopen(target, key, verify=False)


def _build_on_storage(reading: Reading, key: str, place: str) -> Corpus:
    """Build or open a corpus at a URI: each worker uploads its files, the driver the manifest."""
    if not holds_corpus(place):
        try:
            with working_folder(place, last="corpus.json") as folder:
                _write_corpus(reading, folder, key, place)
        except (OSError, RayError, pa.ArrowException) as error:
            raise _explain_failure(error, place) from error
    corpus = open_corpus(place)
    _check_key(corpus.manifest, key, place)
    return corpus


def _reopen(target: Path, key: str, *, verify: bool = True) -> Corpus:
    """Open a corpus that exists in a local folder."""
    _check_key(read_manifest(target), key, target)
    return open_corpus(target, verify=verify)


def _check_key(manifest: dict[str, Any], key: str, place: str | Path) -> None:
    if manifest["key"] != key:
        raise CorpusError(
            f"{place} is a corpus of another log or spec; choose another output, or delete it "
            "first."
        )


def source_key(reading: Reading) -> str:
    """Return a fingerprint of everything that a corpus is built from.

    It covers the spec, the tokenizer, and the name, size and modification time of each file. Where
    the files lie does not matter, so that a log may be moved; nor is their content read, because
    reading a large log takes as long as the first pass.
    """
    files = [
        (Path(file.path).name, file.partition, file.size, file.changed) for file in reading.files
    ]
    tables = [[plan.name, f.size, f.changed] for plan in reading.catalogues for f in plan.files]
    spec = without_new_fields(reading.spec.model_dump(mode="json"))
    for items in (spec.get("items") or {}).values():
        del items["table"]
    # Paths are left out: of several logs, it matters only which part belongs to which.
    if isinstance(reading.spec.events, dict):
        logs = {
            name: {k: v for k, v in without_new_fields(log).items() if k != "events"}
            for name, log in spec["events"].items()
        }
        spec["events"] = [logs, [part.log for part in reading.parts]]
    else:
        spec["events"] = None
    if reading.spec.tokenizer:
        spec["tokenizer"] = hashlib.sha256(
            read_tokenizer(reading.spec.tokenizer).to_str().encode()
        ).hexdigest()
    made_of: dict[str, Any] = {"preparation": PREPARATION, "spec": spec, "files": files}
    if ":category}" in reading.spec.model_dump_json():
        made_of["categories"] = CATEGORIES
    return fingerprint(made_of | ({"catalogues": tables} if tables else {}))


def _explain_failure(error: Exception, folder: str | Path) -> Exception:
    """Return a one-sentence error for what stopped a worker or the driver.

    A programming error is returned unchanged, with its traceback.
    """
    message = str(error)
    if "No space left on device" in message:
        return CorpusError(f"No free disk at {folder}; free some space or choose another output.")
    if isinstance(error, OutOfMemoryError) or "OutOfMemoryError" in message:
        return ClusterError(
            "The corpus cannot be prepared (Ray ended a task again and again, because its node ran "
            "out of memory); use a machine with more memory, end other programs, or start Ray with "
            "fewer CPUs, so that fewer tasks run at once."
        )
    if not isinstance(error, RayError):
        return EventLogError(
            f"The corpus cannot be prepared ({message.splitlines()[-1].rstrip('.')})."
        )
    found = find_worker_error(
        error, r"OSError|\w*ArrowInvalid|EventLogError|StudyError|CorpusError"
    )
    if found is None:
        return error
    return EventLogError(f"The corpus cannot be prepared ({found[1].rstrip('.')}).")


def _write_corpus(reading: Reading, folder: Path, key: str, place: str = "") -> None:
    """Write all files of a corpus.

    Args:
        folder: local folder for the files of the driver.
        place: where workers write theirs; the same folder when left out.
    """
    spec, place = reading.spec, place or str(folder)
    parts, catalogues = share_reading(reading)
    survey = _survey(reading, parts, folder, place, catalogues)
    services = tuple(sorted(survey.services))
    tokenizer, types = _make_tokenizer(spec, survey)
    tokenizer.save(str(folder / "tokenizer.json"))
    plan = ShardPlan(spec, folder, services, tokenizer.to_str(), number_of_shards(survey.good))
    if is_uri(place):
        check_work_disk(folder, sum(file.size for file in reading.files), plan.buckets)
    with small_shuffle_tasks():
        totals = _make_shards(reading, parts, plan, place)
    check_shards(totals, survey, place)
    check_cut(totals, spec)
    timed = all(log.has_time for log in reading.logs)
    profile = totals.profile(services, spec, timed) | survey.profile(reading)
    check_conservation(profile, spec)
    check_pairs(profile, services)
    manifest = {
        "key": key,
        "spec": spec.model_dump(mode="json"),
        "services": list(services),
        "vocab_size": tokenizer.get_vocab_size() + len(services),  # a guide token per service
        "max_item_tokens": spec.max_item_tokens + 1,  # with the guide token
        "events": profile["events"],
        "rejected": dict(survey.rejected),
        "planted": _planted(reading),
        "files": dict(sorted(totals.files.items())),
        "tokenizer_sha256": sha256(folder / "tokenizer.json"),
    }
    # The digest identifies what training sees: neither the log's path nor the time of preparation.
    manifest["digest"] = fingerprint(
        [manifest["files"], manifest["tokenizer_sha256"], manifest["spec"]["split"]]
    )
    profile["typed_columns"] = types
    profile |= count_items(_build_layout(manifest, folder, place))
    write_json(folder / "profile.json", profile)
    write_json(folder / "corpus.json", manifest)


def _make_tokenizer(
    spec: CorpusSpec, survey: Survey
) -> tuple[Tokenizer, dict[str, dict[str, Any]]]:
    """Read or train the tokenizer; return it with what each typed column became."""
    if spec.tokenizer:
        tokenizer = read_tokenizer(spec.tokenizer)
        return tokenizer, describe_types(tokenizer)
    texts = survey.texts.sample()
    tokenizer = train_tokenizer(filter(None, map(without_types, texts)), spec.vocab_size)
    return tokenizer, add_types(tokenizer, texts)


def _survey(
    reading: Reading,
    parts: "ray.ObjectRef[Reading]",
    folder: Path,
    place: str,
    catalogues: dict[str, dict[str, Any]],
) -> Survey:
    """Run the first pass, and check what it found."""
    survey = Survey(catalogues)
    tallies = _each_part(reading).map_batches(
        _survey_parts, batch_size=None, fn_kwargs={"reading": parts, "place": place}
    )
    for tally in tallies.iter_batches(batch_size=None, batch_format="pyarrow"):
        survey.add(tally)
    if is_uri(place) and survey.rejected:
        fetch_files(place, [name for name in list_files(place) if REJECTED.fullmatch(name)], folder)
    survey.check(reading.spec, folder / "rejected")
    return survey


def _each_part(reading: Reading) -> "ray.data.Dataset":
    """Return a dataset of the numbers of all parts, in as many blocks as tasks."""
    parts = len(reading.parts)
    return ray.data.range(parts, override_num_blocks=min(parts, MAX_TASKS))


def _survey_parts(
    batch: dict[str, Any], reading: "ray.ObjectRef[Reading]", place: str
) -> Iterator[pa.Table]:
    """Yield the tallies of some parts, given by number.

    A part that cannot be read gives a tally too, because an error would lose its type on the way to
    the driver.
    """
    whole, texts = ray.get(reading), _text_filter(reading)
    with working_folder(place) as folder:
        for index in batch["id"].tolist():
            try:
                yield from survey_part(whole.parts[index], whole, folder / "rejected", texts)
            except EventLogError as error:
                yield pa.table([["unreadable"], [str(error)], [0]], schema=TALLY)


@lru_cache(maxsize=1)  # one process surveys many parts
def _text_filter(reading: "ray.ObjectRef[Reading]") -> TextFilter:
    return TextFilter()


def _bucket_parts(
    batch: dict[str, Any], reading: "ray.ObjectRef[Reading]", plan: "ray.ObjectRef[ShardPlan]"
) -> Iterator[pa.Table]:
    """Yield the rows of some parts, given by number, with their buckets."""
    whole, shard_plan = ray.get(reading), ray.get(plan)
    for index in batch["id"].tolist():
        yield from bucket_part(whole.parts[index], whole, shard_plan)


def write_partition(events: pa.Table, plan: "ray.ObjectRef[ShardPlan]", place: str) -> pa.Table:
    """Write the shards of one partition of the shuffle."""
    with working_folder(place) as folder:
        return write_shards(events, replace(ray.get(plan), folder=folder))


def _make_shards(
    reading: Reading, parts: "ray.ObjectRef[Reading]", plan: ShardPlan, place: str
) -> ShardTotals:
    """Run the second pass: gather the buckets of users and write a shard for each.

    The output of the pipeline is the counts of the shards, not their rows, so that the driver needs
    little memory. The shuffle is by bucket, not a sort by user: it needs no sample of the keys, and
    each shard is sorted by its own worker.
    """
    totals, reference = ShardTotals(), ray.put(plan)
    written = {"plan": reference, "place": place}
    shards = (
        _each_part(reading)
        .map_batches(
            _bucket_parts, batch_size=None, fn_kwargs={"reading": parts, "plan": reference}
        )
        .repartition(partitions_for(plan.buckets), keys=["bucket"])
        .map_batches(write_partition, batch_format="pyarrow", batch_size=None, fn_kwargs=written)
    )
    for batch in shards.iter_batches(batch_size=None, batch_format="pyarrow"):
        totals.add(batch.to_pylist())
    return totals


def _build_layout(manifest: dict[str, Any], folder: Path, place: str) -> Counter[int]:
    """Build the training layout of the shards; return distinct items by tokens of their text.

    On storage the parts stay parts, and each node assembles them in its cache.
    """
    if not is_uri(place):
        check_layout_disk(folder)
    plan = plan_layout(place, manifest)
    try:
        built = build_parts(plan, manifest["digest"], run_on_nodes)
        if is_uri(place):
            write_recipe(folder / LAYOUT, built.recipe)
        else:
            assemble(Path(plan.parts), built.recipe, folder / LAYOUT)
    finally:
        remove_folder(plan.work)
    return built.text_tokens


@contextmanager
def small_shuffle_tasks() -> Iterator[None]:
    """Shuffle with small tasks: Ray Data's default of 1 GB per task leaves cores idle.

    A dataset copies the context when it is created, so create it in the block.
    """
    context = ray.data.DataContext.get_current()
    before, context.shuffle_input_batch_bytes = context.shuffle_input_batch_bytes, SHUFFLE_BYTES
    try:
        yield
    finally:
        context.shuffle_input_batch_bytes = before


def partitions_for(buckets: int) -> int:
    """Return the number of partitions of the shuffle; the shards do not depend on it."""
    return buckets


def _planted(reading: Reading) -> str | None:
    """Return the spec of a planted log as JSON, from the metadata of its Parquet files."""
    file = reading.files[0]
    if file.format != "parquet":
        return None
    with file.open() as source:
        planted = (pq.read_schema(source).metadata or {}).get(METADATA_KEY)
    return planted.decode() if planted else None
