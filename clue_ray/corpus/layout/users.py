"""Put the histories of all users in the order of their ids, and training users in their own order.

Shards hold users by a hash of the id, each shard sorted by id: a range of ids is a run of rows in
every shard. Held-out users keep the order of their ids; training users are sorted by a hash, so
that a prefix of them is a random subset.
"""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clue_ray.corpus.hashes import split_of, stable_hash
from clue_ray.corpus.layout.arrays import SPLITS, USER_IDS, service_pairs
from clue_ray.corpus.layout.plan import (
    LayoutPlan,
    as_batch,
    find_cuts,
    read_batches,
    read_table,
    write_batches,
    write_numbers,
)
from clue_ray.corpus.ranges import ranges


def split_users(plan: LayoutPlan, shard: int, first_ids: list[int]) -> dict[str, Any]:
    """Write the users of one shard, with corpus-wide item ids, as a record batch per range.

    Args:
        first_ids: id of the first item of each range of items.

    Returns:
        The number of `users`, `events` and users of each split (`train`, ...), [ranges] each; the
        `tokens` of all events, the number of users with events `in_two_services`, and the
        `last_time` of an event (None without events).
    """
    ids, lengths = _item_ids(plan, shard, first_ids)
    columns = ["user_id", "service", "items", "timestamps"]
    rows = as_batch(read_table(plan.corpus, f"shards/{plan.shards[shard]}", columns))
    service = pc.index_in(rows["service"], value_set=pa.array(plan.services)).to_numpy()
    owners, user_ids = _number_users(rows["user_id"])
    counts = np.zeros((len(user_ids), len(plan.services)), np.int32)
    counts[owners, service] = np.asarray(rows["items"].value_lengths())
    items, times = (rows[name].flatten().to_numpy() for name in ("items", "timestamps"))
    bounds = np.append(0, np.cumsum(counts.sum(1, dtype=np.int64)))
    tokens = np.add.reduceat(lengths[items], bounds[:-1]) if len(items) else bounds[:0]
    names = user_ids.to_pandas()
    split = pd.Categorical(split_of(names, plan.split), SPLITS).codes
    users = pa.table(
        {
            "user_id": user_ids,
            "counts": _as_lists(counts),
            "tokens": tokens.astype(np.int64),
            "order": stable_hash(names, "order"),
            "split": split,
            "moves": _move_in_time(times, bounds),
            "events": pa.ListArray.from_arrays(bounds.astype(np.int32), pa.array(ids[items])),
            "times": pa.ListArray.from_arrays(bounds.astype(np.int32), pa.array(times)),
        }
    )
    cuts = find_cuts(user_ids, plan.user_ranges)
    parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    write_batches(
        plan.work,
        f"users-{shard}.arrow",
        [as_batch(users.slice(part.start, part.stop - part.start)) for part in parts],
    )
    return {
        "users": [part.stop - part.start for part in parts],
        "events": [int(bounds[part.stop] - bounds[part.start]) for part in parts],
        **{
            name: [int((split[part] == code).sum()) for part in parts]
            for code, name in enumerate(SPLITS)
        },
        "tokens": int(tokens.sum()),
        "in_two_services": int(((counts > 0).sum(1) >= 2).sum()),
        "last_time": float(times.max()) if len(times) else None,
    }


def _move_in_time(times: NDArray[np.float64], bounds: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which users have events at two different times, [users]."""
    if not len(times):
        return np.zeros(0, bool)
    first, last = (each.reduceat(times, bounds[:-1]) for each in (np.minimum, np.maximum))
    return np.asarray(first < last)


def _item_ids(
    plan: LayoutPlan, shard: int, first_ids: list[int]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Read the corpus-wide ids of a shard's items, and their lengths, [items of the shard]."""
    names = [f"ids-{number}.arrow" for number in range(len(plan.item_ranges))]
    batches = read_batches(plan.work, names, shard)
    ids = [batch["id"].to_numpy() + first for batch, first in zip(batches, first_ids, strict=True)]
    lengths = [batch["length"].to_numpy() for batch in batches]
    return np.concatenate(ids).astype(np.int32), np.concatenate(lengths).astype(np.int64)


def _number_users(user_ids: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """Return the number of each row's user, [rows], and the distinct users, in order."""
    encoded = user_ids.dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary


def _as_lists(matrix: NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])


def merge_users(
    plan: LayoutPlan, number: int, first_user: int, first_of_split: dict[str, int]
) -> dict[str, Any]:
    """Write the parts of one range of users, and hand on its training users.

    Args:
        first_user: index of the first user of the range.
        first_of_split: number of users of each split in the ranges before it.

    Returns:
        The number of training users in each range of their order (`order`), the number of users in
        each pool of the held-out splits (`pools`), and the `files` that were written.
    """
    names = [f"users-{shard}.arrow" for shard in range(len(plan.shards))]
    batches = read_batches(plan.work, names, number)
    table = pa.Table.from_batches([batch.drop_columns(["events", "times"]) for batch in batches])
    order = pc.sort_indices(table["user_id"]).to_numpy()
    counts = _as_matrix(as_batch(table)["counts"], len(plan.services))[order]
    named: dict[str, NDArray[Any]] = {
        f"events-{number}": _place_events(batches, "events", order, counts).astype("<i4"),
        f"times-{number}": _place_events(batches, "times", order, counts).astype("<f8"),
        f"offsets-{number}": counts.astype("<i8").ravel(),
    }
    split, moves = (table[name].to_numpy()[order] for name in ("split", "moves"))
    pools = {}
    for code, name in enumerate(SPLITS[1:], 1):
        users = np.flatnonzero(split == code)
        positions = _find_pools(counts[users], moves[users], first_of_split[name])
        named[f"{name}_users-{number}"] = (first_user + users).astype("<i8")
        named[f"{name}_pools-{number}"] = np.concatenate(positions).astype("<i8")
        pools[name] = [len(pool) for pool in positions]
    files = {name: write_numbers(plan.parts, name, values) for name, values in named.items()}
    ids = as_batch(table.select(["user_id"]).take(pa.array(order)))
    files[f"{USER_IDS}-{number}"] = write_batches(plan.parts, f"{USER_IDS}-{number}", [ids])
    training = split == SPLITS.index("train")
    columns = {
        name: table[name].to_numpy()[order][training] for name in ("order", "tokens", "moves")
    }
    users = first_user + np.flatnonzero(training)
    in_order = _split_order(plan, number, users, counts[training], **columns)
    return {"order": in_order, "pools": pools, "files": files}


def _place_events(
    batches: list[pa.RecordBatch], name: str, order: NDArray[np.int64], counts: NDArray[np.int32]
) -> NDArray[Any]:
    """Put a column of the events of the batches' users in the order of the users."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    bounds = np.append(0, np.cumsum(counts.sum(1, dtype=np.int64)))
    events = np.empty(bounds[-1], batches[0][name].type.value_type.to_pandas_dtype())
    done = 0
    for batch in batches:
        mine = place[done : done + batch.num_rows]
        done += batch.num_rows
        lengths = bounds[mine + 1] - bounds[mine]
        events[ranges(bounds[mine], lengths)] = batch[name].flatten().to_numpy()
    return events


def _as_matrix(column: pa.FixedSizeListArray, width: int) -> NDArray[Any]:
    matrix: NDArray[Any] = column.flatten().to_numpy().reshape(-1, width)
    return matrix


def _find_pools(
    counts: NDArray[Any], moves: NDArray[np.bool_], first: int
) -> list[NDArray[np.int64]]:
    """List the positions of the users in the pool of each pair of services and of PAST_FUTURE.

    Args:
        counts: events of each user in each service, [users, services].
        moves: whether each user has events at two different times, [users].
        first: position of the first user.
    """
    pairs = service_pairs(counts.shape[1])
    members = [(counts[:, a] >= 1 + (a == b)) & (counts[:, b] >= 1) for a, b in pairs]
    return [first + np.flatnonzero(each).astype(np.int64) for each in (*members, moves)]


def _split_order(
    plan: LayoutPlan,
    number: int,
    users: NDArray[np.int64],
    counts: NDArray[np.int32],
    order: NDArray[np.uint64],
    tokens: NDArray[np.int64],
    moves: NDArray[np.bool_],
) -> list[int]:
    """Write the training users of one range of ids as a record batch per range of their order."""
    sort = np.argsort(order, kind="stable")
    table = pa.table(
        {
            "order": order[sort],
            "user": users[sort],
            "tokens": tokens[sort],
            "moves": moves[sort],
            "counts": _as_lists(np.minimum(counts[sort], 2).astype(np.uint8)),  # see _find_pools
        }
    )
    starts = [place * 2**64 // plan.order_ranges for place in range(plan.order_ranges)]
    cuts = [*np.searchsorted(order[sort], np.array(starts, np.uint64)).tolist(), len(sort)]
    write_batches(
        plan.work,
        f"order-{number}.arrow",
        [as_batch(table.slice(a, b - a)) for a, b in itertools.pairwise(cuts)],
    )
    return [b - a for a, b in itertools.pairwise(cuts)]


def order_users(plan: LayoutPlan, number: int, first: int) -> dict[str, Any]:
    """Write the parts of one range of the order of training users.

    Args:
        first: number of training users in the ranges before it.

    Returns:
        The number of users in each pool (`pools`), and the `files` that were written.
    """
    names = [f"order-{place}.arrow" for place in range(len(plan.user_ranges))]
    table = as_batch(pa.Table.from_batches(read_batches(plan.work, names, number)).combine_chunks())
    users = table["user"].to_numpy()
    order = np.lexsort((users, table["order"].to_numpy()))
    counts = _as_matrix(table["counts"], len(plan.services))[order]
    moves = table["moves"].to_numpy(zero_copy_only=False)[order]
    pools = _find_pools(counts, moves, first)
    named = {
        f"train_users-{number}": users[order],
        f"train_tokens-{number}": table["tokens"].to_numpy()[order],
        f"train_pools-{number}": np.concatenate(pools),
    }
    return {
        "pools": [len(pool) for pool in pools],
        "files": {
            name: write_numbers(plan.parts, name, values.astype("<i8"))
            for name, values in named.items()
        },
    }
