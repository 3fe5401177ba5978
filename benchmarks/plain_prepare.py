"""Prepare a log that fits in memory, in one process: the baselines of benchmarks/prepare.py.

Both do the work of `clue_ray.corpus.build`: check rows, hold out users, train the tokenizer on the
texts of training users, sort the events of each user, and write items and sequences to one shard
per bucket of users.
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from clue_ray.corpus.hashes import split_of, stable_hash
from clue_ray.corpus.shards import SEQUENCES, number_of_shards
from clue_ray.corpus.tokenizer import train_tokenizer
from clue_ray.spec.specs import CorpusSpec

Tokens = dict[str, list[int]]
ITEMS = pa.schema(
    [
        ("service", pa.string()),
        ("text", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("text_tokens", pa.int32()),
    ]
)


def digest(folder: Path) -> str:
    """Hash the shards and items of a corpus folder."""
    found = hashlib.sha256()
    for file in sorted([*folder.glob("shards/*.parquet"), *folder.glob("items/*.parquet")]):
        found.update(f"{file.parent.name}/{file.name}".encode() + file.read_bytes())
    return found.hexdigest()[:12]


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> Tokens:
    """Tokenize every distinct text once."""
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return {text: item.ids for text, item in zip(texts, encoded, strict=True)}


def with_pyarrow(log: Path, folder: Path, spec: CorpusSpec) -> None:
    """Prepare a log with pyarrow and tokenizers, the whole table in memory."""
    table = pq.read_table(log)
    for column in ("user_id", "service", "text"):
        table = table.set_column(
            table.column_names.index(column), column, pc.utf8_trim_whitespace(table[column])
        )
        table = table.filter(pc.greater(pc.utf8_length(table[column]), 0))
    table = table.filter(pc.is_valid(table["timestamp"]))
    users = table["user_id"].combine_chunks().dictionary_encode()
    names = pd.Series(users.dictionary.to_pandas())
    training = (split_of(names, spec.split) == "train")[users.indices.to_numpy()]
    texts = sorted(pc.unique(table["text"].filter(pa.array(training))).to_pylist())
    tokenizer = train_tokenizer(texts, spec.vocab_size)
    tokens = tokenize(tokenizer, pc.unique(table["text"]).to_pylist())
    shards = number_of_shards(table.num_rows)
    bucket = (stable_hash(names, "bucket") % np.uint64(shards))[users.indices.to_numpy()]
    seconds = table["timestamp"].cast(pa.float64())
    table = table.set_column(table.column_names.index("timestamp"), "timestamp", seconds)
    table = table.append_column("bucket", pa.array(bucket.astype(np.int32)))
    services = sorted(pc.unique(table["service"]).to_pylist())
    order = [("bucket", "ascending"), ("user_id", "ascending"), ("service", "ascending")]
    table = table.sort_by(
        [*order, ("timestamp", "descending"), ("text", "ascending")]
    ).combine_chunks()
    bounds = np.searchsorted(table["bucket"].to_numpy(), np.arange(shards + 1))
    for shard in range(shards):
        part = table.slice(bounds[shard], bounds[shard + 1] - bounds[shard])
        if part.num_rows:
            _write_arrow_shard(
                part,
                folder,
                f"shard-{shard:05d}.parquet",
                tokens,
                tokenizer.get_vocab_size(),
                services,
                spec,
            )


def _write_arrow_shard(
    part: pa.Table,
    folder: Path,
    name: str,
    tokens: Tokens,
    first_guide: int,
    services: list[str],
    spec: CorpusSpec,
) -> None:
    items = (
        part.group_by(["service", "text"])
        .aggregate([])
        .sort_by([("service", "ascending"), ("text", "ascending")])
    )
    keys = pc.binary_join_element_wise(items["service"], items["text"], "\x1f")
    item = pc.index_in(
        pc.binary_join_element_wise(part["service"], part["text"], "\x1f"), value_set=keys
    )
    user, service = part["user_id"].to_numpy(), part["service"].to_numpy()
    starts = np.flatnonzero(np.r_[True, (user[1:] != user[:-1]) | (service[1:] != service[:-1])])
    offsets = pa.array(np.r_[starts, len(user)].astype(np.int32))
    heads = pd.Series(user[starts])
    columns = {
        "user_id": pa.array(heads, pa.string()),
        "service": part["service"].take(pa.array(starts)),
        "num_services": heads.map(heads.value_counts()).to_numpy(np.int32),
        "items": pa.ListArray.from_arrays(offsets, item.combine_chunks().cast(pa.int32())),
        "timestamps": pa.ListArray.from_arrays(offsets, part["timestamp"].combine_chunks()),
    }
    _write(pa.table(columns, schema=SEQUENCES), folder / "shards" / name)
    _write_items(
        items["service"].to_pylist(),
        items["text"].to_pylist(),
        folder / "items" / name,
        tokens,
        first_guide,
        services,
        spec,
    )


def with_pandas(log: Path, folder: Path, spec: CorpusSpec) -> None:
    """Prepare a log with pandas and tokenizers, the whole frame in memory."""
    frame = pd.read_parquet(log)
    for column in ("user_id", "service", "text"):
        frame[column] = frame[column].str.strip()
        frame = frame[frame[column].str.len() > 0]
    frame = frame.dropna(subset=["timestamp"])
    training = split_of(frame["user_id"], spec.split) == "train"
    tokenizer = train_tokenizer(sorted(frame.loc[training, "text"].unique()), spec.vocab_size)
    tokens = tokenize(tokenizer, frame["text"].unique().tolist())
    shards = number_of_shards(len(frame))
    frame["bucket"] = (stable_hash(frame["user_id"], "bucket") % np.uint64(shards)).astype(np.int32)
    frame["timestamp"] = frame["timestamp"].astype(float)
    services = sorted(frame["service"].unique())
    frame = frame.sort_values(
        ["user_id", "service", "timestamp", "text"], ascending=[True, True, False, True]
    )
    for shard, part in frame.groupby("bucket"):
        _write_frame_shard(
            part,
            folder,
            f"shard-{shard:05d}.parquet",
            tokens,
            tokenizer.get_vocab_size(),
            services,
            spec,
        )


def _write_frame_shard(
    part: pd.DataFrame,
    folder: Path,
    name: str,
    tokens: Tokens,
    first_guide: int,
    services: list[str],
    spec: CorpusSpec,
) -> None:
    items = (
        part[["service", "text"]]
        .drop_duplicates()
        .sort_values(["service", "text"])
        .reset_index(drop=True)
    )
    items["item"] = items.index
    part = part.merge(items, on=["service", "text"], how="left")
    groups = part.groupby(["user_id", "service"])
    lists = groups.agg(items=("item", list), timestamps=("timestamp", list)).reset_index()
    lists["num_services"] = lists.groupby("user_id")["service"].transform("size").astype(np.int32)
    _write(
        pa.Table.from_pandas(
            lists[SEQUENCES.names], schema=SEQUENCES, preserve_index=False
        ).replace_schema_metadata(),
        folder / "shards" / name,
    )
    _write_items(
        items["service"].tolist(),
        items["text"].tolist(),
        folder / "items" / name,
        tokens,
        first_guide,
        services,
        spec,
    )


def _write_items(
    names: list[str],
    texts: list[str],
    path: Path,
    tokens: Tokens,
    first_guide: int,
    services: list[str],
    spec: CorpusSpec,
) -> None:
    ids = [tokens[text] for text in texts]
    guided = [
        [first_guide + services.index(s), *i[: spec.max_item_tokens]]
        for s, i in zip(names, ids, strict=True)
    ]
    _write(pa.table([names, texts, guided, [len(i) for i in ids]], schema=ITEMS), path)


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", row_group_size=4096)
