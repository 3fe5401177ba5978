"""Event logs to a corpus of training shards with Ray Data, once, before any run.

Two passes over the log: the first collects distinct items and keeps bad rows aside, the second gathers each bucket of
users and writes its shard. Shards depend on the log and the spec alone, never on the cluster: users go to buckets by
our own hash, rows of a shard have a total order, and the digest is taken over contents. A folder appears whole or
not at all: it is built under a temporary name and renamed, with `corpus.json` written last.
"""

import errno
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from clue_ray.corpus.events import check_log, file_format, normalise, text_columns
from clue_ray.corpus.store import NUM_BUCKETS, Corpus, open_corpus, read_manifest, split_of, stable_hash
from clue_ray.corpus.text import tokenize_items, train_tokenizer
from clue_ray.errors import CorpusError, EventLogError
from clue_ray.runs import write_json
from clue_ray.spec import CorpusSpec, fingerprint

FOUND = pa.schema(
    [
        ("service", pa.string()),
        ("text", pa.string()),
        ("training", pa.bool_()),
        ("events", pa.int64()),
        ("reason", pa.string()),
    ]
)
SHARDS = pa.schema([("path", pa.string()), ("users", pa.int64()), ("events", pa.int64()), ("sha256", pa.string())])
TOTAL_ORDER = [
    ("user_id", "ascending"),
    ("service", "ascending"),
    ("timestamp", "descending"),
    ("item", "ascending"),
]
PREPARATION = 1
"""Bump when the same log and spec would make another corpus."""


def build_corpus(spec: CorpusSpec, output: str | Path) -> Corpus:
    """Prepare the corpus of `spec` in folder `output`, or open the one already there.

    Raises:
        EventLogError: the log cannot be read or trusted.
        CorpusError: `output` holds something else, or the disk is too full.
    """
    files = check_log(spec)
    key = source_key(spec, files)
    target = Path(output).absolute()
    if target.exists():
        return _reopen(target, key)
    _check_disk(target.parent, files)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        _write_corpus(spec, files, partial, key)
        os.replace(partial, target)
    except (OSError, RayError, pa.ArrowException) as error:
        raise _explain_failure(error, target.parent) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_corpus(target)


def _explain_failure(error: Exception, folder: Path) -> Exception:
    """Turn what stopped a worker or the driver into one sentence; a programming error stays as it is."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return CorpusError(f"No free disk at {folder}; free some space or choose another output.")
    if isinstance(cause, pa.ArrowException | ValueError | OSError) or "ArrowInvalid" in str(error):
        reason = str(cause).strip().splitlines()[-1].rstrip(".")
        return EventLogError(f"The event log cannot be read ({reason}); mend or leave out the file.")
    return error


def source_key(spec: CorpusSpec, files: list[str]) -> str:
    """Fingerprint what a corpus is made from: the spec, and each file's name, size and time of change."""
    stats = [(Path(file).name, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]
    return fingerprint(
        {"preparation": PREPARATION, "spec": spec.model_dump(mode="json", exclude={"events"}), "files": stats}
    )


def _reopen(target: Path, key: str) -> Corpus:
    if read_manifest(target)["key"] != key:
        raise CorpusError(f"{target} holds a corpus of another log or spec; choose another output, or delete it first.")
    return open_corpus(target)


def _check_disk(folder: Path, files: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    need = sum(os.path.getsize(file) for file in files) * 2
    free = shutil.disk_usage(folder).free
    if free < need:
        raise CorpusError(f"No free disk at {folder}: {free:,} bytes free, about {need:,} needed; free some space.")


def _write_corpus(spec: CorpusSpec, files: list[str], folder: Path, key: str) -> None:
    events = _read(files, spec).map_batches(
        normalise, batch_format="pyarrow", batch_size=None, fn_kwargs={"spec": spec}
    )
    (folder / "shards").mkdir()
    found = _find_items(events, spec, folder)
    items = _write_items(found, spec, folder)
    shards = _write_shards(events, items, folder)
    _check_pairs(folder)
    services = sorted(set(items["service"]))
    manifest = {
        "key": key,
        "spec": spec.model_dump(mode="json"),
        "services": services,
        "vocab_size": int(items.attrs["vocab_size"]) + len(services),
        "max_item_tokens": spec.max_item_tokens + 1,
        "events": int(shards["events"].sum()),
        "rejected": {k: int(v) for k, v in found[found["reason"].notna()].groupby("reason")["events"].sum().items()},
        "files": {row.path: row.sha256 for row in shards.itertuples()}
        | {"items.parquet": _sha256(folder / "items.parquet")},
        "tokenizer_sha256": _sha256(folder / "tokenizer.json"),
    }
    manifest["digest"] = fingerprint([manifest["files"], manifest["tokenizer_sha256"], manifest["spec"]["split"]])
    write_json(folder / "corpus.json", manifest)


def _read(files: list[str], spec: CorpusSpec) -> "ray.data.Dataset":
    if file_format(files) == "parquet":
        return ray.data.read_parquet(files)
    if file_format(files) == "json":
        return ray.data.read_json(files)
    as_text = pa.csv.ConvertOptions(column_types={column: pa.string() for column in text_columns(spec)})
    return ray.data.read_csv(files, convert_options=as_text)


def _find_items(events: "ray.data.Dataset", spec: CorpusSpec, folder: Path) -> pd.DataFrame:
    """First pass: distinct (service, text) with their events; bad rows are written to rejected/ and counted."""
    batches = events.map_batches(
        summarise, batch_format="pyarrow", batch_size=None, fn_kwargs={"spec": spec, "folder": str(folder)}
    )
    found = pd.concat([FOUND.empty_table().to_pandas(), *batches.iter_batches(batch_size=None, batch_format="pandas")])
    total, bad = int(found["events"].sum()), found[found["reason"].notna()]
    if not total:
        raise EventLogError("The event log is empty; give a log with at least one row of the wanted services.")
    if bad["events"].sum() > spec.max_rejected * total:
        raise EventLogError(_rejection(bad, total, spec, folder))
    return found


def _rejection(bad: pd.DataFrame, total: int, spec: CorpusSpec, folder: Path) -> str:
    counts = bad.groupby("reason")["events"].sum().sort_values(ascending=False)
    reasons = ", ".join(f"{reason}: {count:,}" for reason, count in counts.items())
    samples = pq.read_table(folder / "rejected").slice(0, 3).drop_columns(["reason"]).to_pylist()
    return (
        f"{counts.sum():,} of {total:,} rows cannot be used ({reasons}), more than the {spec.max_rejected:.0%} "
        f"allowed; mend the log or raise max_rejected; first rows: {samples}."
    )


def summarise(events: pa.Table, spec: CorpusSpec, folder: str) -> pa.Table:
    """Count the distinct items of a batch, and write its bad rows aside under a name made of their content."""
    bad = events.filter(pc.is_valid(events["reason"]))
    if bad.num_rows:
        rejected = Path(folder) / "rejected"
        rejected.mkdir(exist_ok=True)
        name = hashlib.sha256(repr(bad.to_pydict()).encode()).hexdigest()[:16]
        pq.write_table(bad, rejected / f"{name}.parquet")
    frame = events.select(["user_id", "service", "text", "reason"]).to_pandas()
    frame["training"] = split_of(frame["user_id"].fillna(""), spec.split) == "train"
    frame.loc[frame["reason"].notna(), ["service", "text", "training"]] = [None, None, False]
    counts = frame.groupby(["service", "text", "training", "reason"], dropna=False).size().rename("events")
    return pa.Table.from_pandas(counts.reset_index(), schema=FOUND, preserve_index=False)


def _write_items(found: pd.DataFrame, spec: CorpusSpec, folder: Path) -> pd.DataFrame:
    """Train the tokenizer on training users' texts, and write every distinct item with its tokens."""
    good = found[found["reason"].isna()]
    items = good[["service", "text"]].drop_duplicates().sort_values(["service", "text"]).reset_index(drop=True)
    if not items["text"].str.contains(r"[^\W\d_]").any():
        raise EventLogError(
            f"Texts hold no words, only {items['text'].iloc[0]!r} and the like; build them from worded columns."
        )
    training = sorted(set(good.loc[good["training"], "text"]))
    tokenizer = train_tokenizer(training, spec.vocab_size)
    guides = pd.Categorical(items["service"]).codes.astype(np.int32)
    tokens = tokenize_items(tokenizer, items["text"].tolist(), guides, spec.max_item_tokens)
    tokenizer.save(str(folder / "tokenizer.json"))
    columns = {"service": items["service"].tolist(), "text": items["text"].tolist(), "tokens": tokens}
    types = pa.schema([("service", pa.string()), ("text", pa.string()), ("tokens", pa.list_(pa.int32()))])
    pq.write_table(pa.table(columns, schema=types), folder / "items.parquet", compression="zstd")
    items.attrs["vocab_size"] = tokenizer.get_vocab_size()
    return items


def _write_shards(events: "ray.data.Dataset", items: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Second pass: gather buckets of users and write one shard each; the pipeline's output is the list of shards."""
    keys = ray.put(pa.array(item_key(items["service"], items["text"])))
    partitions = partitions_for(int(ray.cluster_resources().get("CPU", 1)))
    shards = (
        events.map_batches(to_item_ids, batch_format="pyarrow", batch_size=None, fn_kwargs={"keys": keys})
        .repartition(partitions, keys=["bucket"])
        .map_batches(
            write_buckets,
            batch_format="pyarrow",
            batch_size=None,
            fn_kwargs={"folder": str(folder / "shards")},
        )
    )
    frame = pd.concat([SHARDS.empty_table().to_pandas(), *shards.iter_batches(batch_size=None, batch_format="pandas")])
    return frame.sort_values("path").reset_index(drop=True)


def partitions_for(cpus: int) -> int:
    """Choose how many parts the shuffle has; the shards do not depend on it."""
    return min(NUM_BUCKETS, max(4, 2 * cpus))


def _check_pairs(folder: Path) -> None:
    """Refuse a log in which nobody can be a positive pair."""
    shards = pq.read_table(folder / "shards", columns=["user_id", "service"]).to_pandas()
    services = shards.groupby("user_id")["service"].nunique()
    if (services < 2).all():
        raise EventLogError(
            f"None of the {len(services):,} users has events in two services (services found: "
            f"{', '.join(sorted(shards['service'].unique())[:10])}); contrastive training pairs a user's services, "
            "so give logs of at least two with shared user ids."
        )


def item_key(service: pd.Series, text: pd.Series) -> pd.Series:
    """Join service and text to one key; the separator cannot occur in a service name."""
    return service.astype(str) + "\x1f" + text.astype(str)


def to_item_ids(events: pa.Table, keys: "ray.ObjectRef[pa.Array]") -> pa.Table:
    """Replace texts by item ids and add each user's bucket; bad rows, kept aside before, are left out."""
    good = events.filter(pc.is_null(events["reason"]))
    key = pc.binary_join_element_wise(good["service"], good["text"], "\x1f")
    users = good["user_id"].to_pandas()
    bucket = (stable_hash(users, "bucket") % np.uint64(NUM_BUCKETS)).astype(np.int32)
    columns = {
        "user_id": good["user_id"],
        "service": good["service"],
        "timestamp": good["timestamp"],
        "item": pc.index_in(key, value_set=ray.get(keys)),
        "bucket": pa.array(bucket),
    }
    return pa.table(columns)


def write_buckets(events: pa.Table, folder: str) -> pa.Table:
    """Write one shard a bucket: a row a user and service, events most recent first. May be retried."""
    rows = []
    for bucket in sorted(pc.unique(events["bucket"]).to_pylist() if events.num_rows else []):
        part = events.filter(pc.equal(events["bucket"], bucket)).sort_by(TOTAL_ORDER)
        path = Path(folder) / f"shard-{bucket:05d}.parquet"
        shard = to_sequences(part)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        pq.write_table(shard, temporary, compression="zstd", row_group_size=4096)
        os.replace(temporary, path)
        users = pc.count_distinct(shard["user_id"]).as_py()
        rows.append({"path": f"shards/{path.name}", "users": users, "events": part.num_rows, "sha256": _sha256(path)})
    return pa.Table.from_pylist(rows, schema=SHARDS)


def to_sequences(events: pa.Table) -> pa.Table:
    """Fold sorted events into one row a (user, service) with lists of items and timestamps."""
    users, services = (events[c].combine_chunks().dictionary_encode() for c in ("user_id", "service"))
    user, service = users.indices.to_numpy(), services.indices.to_numpy()
    starts = np.flatnonzero(np.r_[True, (user[1:] != user[:-1]) | (service[1:] != service[:-1])])
    offsets = pa.array(np.r_[starts, len(user)].astype(np.int32))
    lists = {
        "items": pa.ListArray.from_arrays(offsets, events["item"].combine_chunks().cast(pa.int32())),
        "timestamps": pa.ListArray.from_arrays(offsets, events["timestamp"].combine_chunks()),
    }
    keys = events.select(["user_id", "service"]).take(pa.array(starts))
    return pa.table({"user_id": keys["user_id"], "service": keys["service"], **lists})


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
