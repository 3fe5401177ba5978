"""Event logs to a corpus of training shards with Ray Data, once, before any run.

Two passes over the log: the first (`survey`) counts, keeps bad rows aside and finds the tokenizer's
texts; the second (`shards`) gathers each bucket of users and writes its shard. Shards depend on the
log and the spec alone, never on the
cluster: users go to buckets by our own hash, rows of a shard have a total order, and the digest is
    taken over contents.
A folder appears whole or not at all: it is built under a temporary name and renamed, with
`corpus.json` written last.
"""

import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.exceptions import RayError

from clue_ray.corpus.logs.reading import Reading, plan_reading
from clue_ray.corpus.output import check_disk, is_empty, publish, remove_debris
from clue_ray.corpus.planted import METADATA_KEY
from clue_ray.corpus.profile import ShardTotals
from clue_ray.corpus.shards import ShardPlan, bucket_part, number_of_shards, write_shards
from clue_ray.corpus.store import Corpus, holds_corpus, open_corpus, read_manifest, sha256
from clue_ray.corpus.survey import TALLY, Survey, survey_part
from clue_ray.corpus.tokenizer import read_tokenizer, train_tokenizer
from clue_ray.errors import CorpusError, EventLogError
from clue_ray.spec.specs import CorpusSpec
from clue_ray.spec.yaml import fingerprint
from clue_ray.storage.files import fetch_files, list_files, write_json
from clue_ray.storage.place import is_uri
from clue_ray.storage.sync import working_folder

PREPARATION = 2
"""Bump when the same log and spec would make another corpus."""
REJECTED = re.compile(r"rejected/[\d-]+\.parquet")
MAX_TASKS = 2000
SHUFFLE_BYTES = 64_000_000


def build_corpus(spec: CorpusSpec, output: str | Path | None = None) -> Corpus:
    """Prepare the corpus of `spec` in folder `output`, or open the one already there; needs a Ray
    session.

    Args:
        output: folder or URI to make; when left out, `corpora/<key>`, where the key tells of the
            log's files and the spec, so that a changed log or spec makes another corpus beside the
            first.

    Raises:
        EventLogError: the log cannot be read or trusted.
        CorpusError: `output` holds something else, the tokenizer cannot serve, or the disk is too
            full.
    """
    reading = plan_reading(spec)
    key = source_key(reading)
    if output and is_uri(output):
        return _build_on_storage(reading, key, str(output))
    target = Path(output or Path("corpora") / key).absolute()
    remove_debris(target)
    if target.exists() and not is_empty(target):
        return _reopen(target, key)
    check_disk(target.parent, reading)
    partial = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        _write_corpus(reading, partial, key)
        publish(partial, target)
    except (OSError, RayError, pa.ArrowException) as error:
        raise _explain_failure(error, target.parent) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _reopen(target, key, verify=False)


def _build_on_storage(reading: Reading, key: str, place: str) -> Corpus:
    """Prepare a corpus at a URI: each worker hands over what it wrote; the manifest comes last."""
    if not holds_corpus(place):
        try:
            with working_folder(place, last="corpus.json") as folder:
                _write_corpus(reading, folder, key, place)
        except (OSError, RayError, pa.ArrowException) as error:
            raise _explain_failure(error, place) from error
    corpus = open_corpus(place)
    if corpus.manifest["key"] != key:
        raise CorpusError(
            f"{place} holds a corpus of another log or spec; choose another output, or delete it "
            f"first."
        )
    return corpus


def source_key(reading: Reading) -> str:
    """Fingerprint what a corpus is made from: spec, tokenizer, and each file's name, size and time
    of change.
    """
    files = [
        (Path(file.path).name, file.partition, file.size, file.changed) for file in reading.files
    ]
    spec = reading.spec.model_dump(mode="json")
    if isinstance(reading.spec.events, dict):
        logs = {
            name: {k: v for k, v in log.items() if k != "events"}
            for name, log in spec["events"].items()
        }
        spec["events"] = [logs, [part.log for part in reading.parts]]
    else:
        spec["events"] = None
    if reading.spec.tokenizer:
        spec["tokenizer"] = hashlib.sha256(
            read_tokenizer(reading.spec.tokenizer).to_str().encode()
        ).hexdigest()
    return fingerprint({"preparation": PREPARATION, "spec": spec, "files": files})


def _explain_failure(error: Exception, folder: str | Path) -> Exception:
    """Turn what stopped a worker or the driver into one sentence; a programming error stays as it
    is.
    """
    if "No space left on device" in str(error):  # of a worker's error Ray keeps the words alone
        return CorpusError(f"No free disk at {folder}; free some space or choose another output.")
    if isinstance(error, RayError):
        said = re.findall(
            r"^\s*(?:[\w.]+\.)?(?:OSError|\w*ArrowInvalid|EventLogError|StudyError): (.+)$",
            str(error),
            re.MULTILINE,
        )
        return (
            EventLogError(f"The corpus cannot be prepared ({said[-1].rstrip('.')}).")
            if said
            else error
        )
    return EventLogError(
        f"The corpus cannot be prepared ({str(error).splitlines()[-1].rstrip('.')})."
    )


def _reopen(target: Path, key: str, *, verify: bool = True) -> Corpus:
    if read_manifest(target)["key"] != key:
        raise CorpusError(
            f"{target} holds a corpus of another log or spec; choose another output, or delete it "
            f"first."
        )
    return open_corpus(target, verify=verify)


def _write_corpus(reading: Reading, folder: Path, key: str, place: str = "") -> None:
    """Write a corpus: the driver's files to its folder, the workers' to the place, where that is
    another.
    """
    spec, parts, place = reading.spec, ray.put(reading), place or str(folder)
    survey = _survey(reading, parts, folder, place)
    services = tuple(sorted(survey.services))
    tokenizer = (
        read_tokenizer(spec.tokenizer)
        if spec.tokenizer
        else train_tokenizer(survey.texts.sample(), spec.vocab_size)
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    plan = ShardPlan(spec, folder, services, tokenizer.to_str(), number_of_shards(survey.good))
    with small_shuffle_tasks():
        totals = _make_shards(reading, parts, plan, place)
    _check_shards(totals, survey, place)
    _check_cut(totals, spec)
    profile = totals.profile(services, spec, timed=all(log.has_time for log in reading.logs))
    profile |= survey.profile(reading)
    _check_pairs(profile, services)
    manifest = {
        "key": key,
        "spec": spec.model_dump(mode="json"),
        "services": list(services),
        "vocab_size": tokenizer.get_vocab_size() + len(services),
        "max_item_tokens": spec.max_item_tokens + 1,
        "events": profile["events"],
        "rejected": dict(survey.rejected),
        "planted": _planted(reading),
        "files": dict(sorted(totals.files.items())),
        "tokenizer_sha256": sha256(folder / "tokenizer.json"),
    }
    manifest["digest"] = fingerprint(
        [manifest["files"], manifest["tokenizer_sha256"], manifest["spec"]["split"]]
    )
    write_json(folder / "profile.json", profile)
    write_json(folder / "corpus.json", manifest)


def _survey(reading: Reading, parts: "ray.ObjectRef[Reading]", folder: Path, place: str) -> Survey:
    survey = Survey()
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
    parts = len(reading.parts)
    return ray.data.range(parts, override_num_blocks=min(parts, MAX_TASKS))


def _survey_parts(
    batch: dict[str, Any], reading: "ray.ObjectRef[Reading]", place: str
) -> Iterator[pa.Table]:
    """First pass over some parts, by number; a part that cannot be read is a tally too, as Ray
    loses errors' types.
    """
    whole = ray.get(reading)
    with working_folder(place) as folder:
        for index in batch["id"].tolist():
            try:
                yield from survey_part(whole.parts[index], whole, folder / "rejected")
            except EventLogError as error:
                yield pa.table([["unreadable"], [str(error)], [0]], schema=TALLY)


def _bucket_parts(
    batch: dict[str, Any], reading: "ray.ObjectRef[Reading]", plan: "ray.ObjectRef[ShardPlan]"
) -> Iterator[pa.Table]:
    """Second pass over some parts, by number."""
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
    """Second pass: gather buckets of users and write one shard each; the pipeline's output is what
    they hold.
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


@contextmanager
def small_shuffle_tasks() -> Iterator[None]:
    """Make Ray Data's shuffle take its input in small steps: its default, 1 GB a task, leaves cores
    idle.
    """
    context = ray.data.DataContext.get_current()
    before, context.shuffle_input_batch_bytes = context.shuffle_input_batch_bytes, SHUFFLE_BYTES
    try:
        yield
    finally:
        context.shuffle_input_batch_bytes = before


def partitions_for(buckets: int) -> int:
    """Choose how many parts the shuffle has; the shards do not depend on it."""
    return buckets


def _check_shards(totals: ShardTotals, survey: Survey, place: str) -> None:
    """Refuse a corpus that lost an event, or whose shards other machines wrote where this one
    cannot see them.
    """
    if totals.totals["rows"] != survey.good:
        raise EventLogError(
            f"The log changed while it was read: {survey.good:,} good rows at first, "
            f"{totals.totals['rows']:,} then; "
            "prepare it again when nothing writes to it."
        )
    there = list_files(place)
    missing = next((name for name in totals.files if name not in there), None)
    if missing:
        raise CorpusError(
            f"Workers wrote {missing} where this machine cannot see it; choose an output on "
            f"storage all nodes share."
        )


def _check_cut(totals: ShardTotals, spec: CorpusSpec) -> None:
    """Refuse a cut in time with nothing before it, or over numbers that are no dates."""
    cut = spec.split.time
    if cut is None:
        return
    if not totals.histories:
        raise EventLogError(f"No event lies before split.time {cut:%Y-%m-%d}; choose a later cut.")
    if not totals.totals["later"] and totals.is_order():
        raise EventLogError(
            f"Timestamps end at {max(totals.times):g} seconds, in "
            f"{1970 + int(max(totals.times) // 31_556_952)}: they "
            "look like an order or like dates without dashes, so split.time cannot cut them; leave "
            "it out."
        )


def _check_pairs(profile: dict[str, Any], services: tuple[str, ...]) -> None:
    """Refuse a log in which nobody can be a positive pair."""
    if not any(int(number) >= 2 for number in profile["users_by_services"]):
        raise EventLogError(
            f"None of the {profile['users']:,} users has events in two services (services found: "
            f"{', '.join(services[:10])}); contrastive training pairs a user's services, "
            "so give logs of at least two with shared user ids."
        )


def _planted(reading: Reading) -> str | None:
    """Return the spec of a planted log, as its Parquet files carry it."""
    file = reading.files[0]
    if file.format != "parquet":
        return None
    with file.open() as source:
        planted = (pq.read_schema(source).metadata or {}).get(METADATA_KEY)
    return planted.decode() if planted else None
