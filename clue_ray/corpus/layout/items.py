"""Give each distinct item of all shards its id, and write the tokens of all items in that order.

An item's id is its rank by service and text, so it does not depend on the number of shards. Each
shard's items are sorted the same way: a range of the order is a run of rows in every shard.
"""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clue_ray.corpus.layout.plan import (
    LayoutPlan,
    as_batch,
    find_cuts,
    read_batches,
    read_table,
    write_batches,
    write_numbers,
)
from clue_ray.errors import CorpusError

ITEM_IDS = pa.schema([("id", pa.int32()), ("length", pa.int32())])
"""Of each item of a shard in a range: its rank in the range, and its number of tokens."""


def split_items(plan: LayoutPlan, shard: int) -> None:
    """Write the items of one shard as a record batch per range."""
    columns = ["service", "text", "tokens", "text_tokens"]
    table = read_table(plan.corpus, f"items/{plan.shards[shard]}", columns)
    service = pc.index_in(table["service"], value_set=pa.array(plan.services)).to_numpy()
    table = table.drop_columns("service").combine_chunks()
    batches = []
    for number in range(len(plan.services)):
        first, last = np.searchsorted(service, [number, number + 1])
        rows = table.slice(first, last - first)
        bounds = [text for owner, text in plan.item_ranges if owner == number]
        cuts = find_cuts(as_batch(rows)["text"], bounds)
        batches += [as_batch(rows.slice(a, b - a)) for a, b in itertools.pairwise(cuts)]
    write_batches(plan.work, f"items-{shard}.arrow", batches)


def merge_items(plan: LayoutPlan, number: int) -> dict[str, Any]:
    """Number the distinct items of one range of all shards, and write their tokens.

    Returns:
        The number of `items` and `tokens`, the `text_tokens` -> items of whole texts, and the
        `files` that were written.

    Raises:
        CorpusError: an item holds a token that the vocabulary lacks.
    """
    names = [f"items-{shard}.arrow" for shard in range(len(plan.shards))]
    batches = read_batches(plan.work, names, number)
    table = pa.Table.from_batches(batches)
    text = table["text"].cast(pa.large_string()).combine_chunks().dictionary_encode()
    order = pc.sort_indices(text.dictionary).to_numpy()
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    ids = rank[text.indices.to_numpy()]
    first = np.empty(len(order), np.int64)
    first[ids[::-1]] = np.arange(len(ids))[::-1]  # of one copy of each item
    lists = table["tokens"].cast(pa.large_list(pa.int32())).combine_chunks()
    lengths = np.asarray(lists.value_lengths()).astype(np.int32)
    _write_ids(plan, number, batches, ids, lengths)
    tokens = lists.take(pa.array(first)).flatten().to_numpy()
    if len(tokens) and tokens.max() >= plan.tokens:
        raise CorpusError(
            f"{plan.corpus} contains token {tokens.max()}, but its vocabulary has {plan.tokens} "
            "tokens; delete the folder and prepare the corpus again."
        )
    values, counts = np.unique(table["text_tokens"].to_numpy()[first], return_counts=True)
    named = {
        f"item_tokens-{number}": tokens.astype("<i4"),
        f"item_offsets-{number}": lengths[first].astype("<i8"),
    }
    return {
        "items": len(order),
        "tokens": len(tokens),
        "text_tokens": dict(zip(values.tolist(), counts.tolist(), strict=True)),
        "files": {name: write_numbers(plan.parts, name, part) for name, part in named.items()},
    }


def _write_ids(
    plan: LayoutPlan,
    number: int,
    batches: list[pa.RecordBatch],
    ids: "np.ndarray[Any, np.dtype[np.int32]]",
    lengths: "np.ndarray[Any, np.dtype[np.int32]]",
) -> None:
    """Write the ids of one range of items as a record batch per shard."""
    ends = np.cumsum([batch.num_rows for batch in batches])[:-1]
    write_batches(
        plan.work,
        f"ids-{number}.arrow",
        [
            pa.record_batch([pa.array(part), pa.array(length)], schema=ITEM_IDS)
            for part, length in zip(np.split(ids, ends), np.split(lengths, ends), strict=True)
        ],
    )
