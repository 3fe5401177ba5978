"""The loader before the training layout: it reads all shards at once and sorts them in memory."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clue_ray.corpus.hashes import split_of, stable_hash
from clue_ray.corpus.ranges import ranges
from clue_ray.corpus.store import Corpus
from clue_ray.spec.specs import SplitSpec


def load_corpus(corpus: Corpus) -> SimpleNamespace:
    """Load the arrays of a corpus from its shards."""
    found = SimpleNamespace()
    common = _load_items(corpus, found)
    _load_events(corpus, common, found)
    ids = pd.Series(found.user_ids)
    split = split_of(ids, SplitSpec(**corpus.manifest["spec"]["split"]))
    order = np.lexsort((found.user_ids, stable_hash(ids, "order")))
    found.train_users = order[split[order] == "train"]
    found.test_users = np.sort(order[split[order] == "test"])
    found.validation_users = np.sort(order[split[order] == "validation"])
    found.counts = np.diff(found.offsets).reshape(len(ids), -1)
    return found


def _files(corpus: Corpus, folder: str) -> list[Path]:
    return sorted((corpus.path / folder).glob("*.parquet"))


def _load_items(corpus: Corpus, found: SimpleNamespace) -> list[np.ndarray]:
    shards = [pq.read_table(file) for file in _files(corpus, "items")]
    items = pa.concat_tables(shards)
    text = items["text"].cast(pa.large_string()).combine_chunks().dictionary_encode()
    rank = pc.rank(text.dictionary, sort_keys="ascending").to_numpy().astype(np.int64)
    service = pc.index_in(items["service"], value_set=pa.array(corpus.services)).to_numpy()
    keys = service.astype(np.int64) * (len(rank) + 1) + rank[text.indices.to_numpy()]
    _, first, common = np.unique(keys, return_index=True, return_inverse=True)
    column = items["tokens"]
    lists = column.cast(pa.large_list(column.type.value_type)).combine_chunks()
    tokens = lists.take(pa.array(first))
    found.item_offsets = tokens.offsets.to_numpy().astype(np.int64)
    found.item_tokens = tokens.values.to_numpy()
    return np.split(common.astype(np.int32), np.cumsum([len(shard) for shard in shards])[:-1])


def _load_events(corpus: Corpus, common: list[np.ndarray], found: SimpleNamespace) -> None:
    tables = [
        pq.read_table(file, columns=["user_id", "service", "items", "timestamps"])
        for file in _files(corpus, "shards")
    ]
    shards = pa.concat_tables(tables)
    found.user_ids, users = np.unique(shards["user_id"].to_numpy(), return_inverse=True)
    rows = users * len(corpus.services) + pd.Index(corpus.services).get_indexer(
        shards["service"].to_pandas()
    )
    lists = [table["items"].combine_chunks() for table in tables]
    lengths = np.concatenate([np.asarray(column.value_lengths()) for column in lists])
    counts = np.zeros(len(found.user_ids) * len(corpus.services), dtype=np.int64)
    counts[rows] = lengths
    found.offsets = np.concatenate([[0], np.cumsum(counts)])
    found.events = np.empty(found.offsets[-1], dtype=np.int32)
    flat = [ids[column.flatten().to_numpy()] for ids, column in zip(common, lists, strict=True)]
    found.events[ranges(found.offsets[rows], lengths)] = np.concatenate(flat)
    found.times = np.empty(found.offsets[-1])
    times = shards["timestamps"].combine_chunks().flatten().to_numpy()
    found.times[ranges(found.offsets[rows], lengths)] = times
