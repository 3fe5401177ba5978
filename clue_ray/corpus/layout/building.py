"""Build the training layout from the shards of a corpus, in five rounds of tasks.

Each shard's items are split by ranges and each range is merged, which gives the item ids; then each
shard's users are split and each range of users is merged; last, training users are put in order.
The caller says how a round runs: `one_by_one` in this process, or with Ray on all nodes.
"""

from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from clue_ray.corpus.layout.arrays import SPLITS, USER_IDS, VERSION, Piece, Recipe
from clue_ray.corpus.layout.items import merge_items, split_items
from clue_ray.corpus.layout.plan import LayoutPlan
from clue_ray.corpus.layout.users import merge_users, order_users, split_users


class Each(Protocol):
    """Calls `task(plan, number, *arguments[number])` for every number; returns the results."""

    def __call__(
        self, task: Callable[..., Any], plan: LayoutPlan, arguments: Iterable[Sequence[Any]]
    ) -> list[Any]:
        """Run one round of tasks."""


class Built(NamedTuple):
    """A layout in parts.

    Attributes:
        recipe: how the parts make the arrays.
        text_tokens: number of tokens of a whole text -> distinct items.
    """

    recipe: Recipe
    text_tokens: Counter[int]


def one_by_one(
    task: Callable[..., Any], plan: LayoutPlan, arguments: Iterable[Sequence[Any]]
) -> list[Any]:
    """Run a round of tasks in this process."""
    return [task(plan, number, *given) for number, given in enumerate(arguments)]


def build_parts(plan: LayoutPlan, digest: str, each: Each) -> Built:
    """Write the parts of a layout.

    Args:
        digest: of the corpus.

    Raises:
        CorpusError: the shards are damaged.
    """
    each(split_items, plan, [()] * len(plan.shards))
    items = each(merge_items, plan, [()] * len(plan.item_ranges))
    first_ids = _starts([found["items"] for found in items])
    shards = each(split_users, plan, [(first_ids,)] * len(plan.shards))
    sums = {name: _sum([shard[name] for shard in shards]) for name in (*SPLITS, "users", "events")}
    firsts = zip(*(_starts(sums[split]) for split in SPLITS), strict=True)
    users = each(
        merge_users,
        plan,
        [
            (first, dict(zip(SPLITS, of_split, strict=True)))
            for first, of_split in zip(_starts(sums["users"]), firsts, strict=True)
        ],
    )
    sums["order"] = _sum([found["order"] for found in users])
    ordered = each(order_users, plan, [(first,) for first in _starts(sums["order"])])
    pools = {"train": [found["pools"] for found in ordered]} | {
        split: [found["pools"][split] for found in users] for split in SPLITS[1:]
    }
    facts = {
        "version": VERSION,
        "digest": digest,
        "services": len(plan.services),
        "users": sum(sums["users"]),
        "events": sum(sums["events"]),
        "items": sum(found["items"] for found in items),
        "tokens": sum(found["tokens"] for found in shards),
        "users_in_two_services": sum(found["in_two_services"] for found in shards),
        "last_time": max(
            (t for found in shards if (t := found["last_time"]) is not None), default=0.0
        ),
        "pool_bounds": {split: [0, *accumulate(_sum(pools[split]))] for split in SPLITS},
    }
    pieces = _list_pieces(items, sums, len(plan.services))
    pieces |= {f"{split}_pools": _pool_pieces(split, pools[split]) for split in SPLITS}
    made = [found["files"] for found in (*items, *users, *ordered)]
    text_tokens = sum((Counter(found["text_tokens"]) for found in items), Counter())
    return Built(Recipe(facts, pieces, dict(ChainMap(*made))), text_tokens)


def _sum(columns: list[list[int]]) -> list[int]:
    """Add up columns of numbers, row by row."""
    return [sum(row) for row in zip(*columns, strict=True)]


def _list_pieces(
    items: list[dict[str, Any]], sums: dict[str, list[int]], services: int
) -> dict[str, list[Piece]]:
    """List the pieces of the arrays that are whole parts end to end.

    Args:
        sums: users, events and users of each split in each range of users, and training users in
            each range of their order.
    """
    lengths = {
        "events": sums["events"],
        "times": sums["events"],
        "offsets": [users * services for users in sums["users"]],
        "item_tokens": [found["tokens"] for found in items],
        "item_offsets": [found["items"] for found in items],
        "train_users": sums["order"],
        "train_tokens": sums["order"],
        "validation_users": sums["validation"],
        "test_users": sums["test"],
        USER_IDS: sums["users"],
    }
    return {
        name: [Piece(f"{name}-{place}", 0, length) for place, length in enumerate(of_parts)]
        for name, of_parts in lengths.items()
    }


def _starts(lengths: list[int]) -> list[int]:
    return [0, *accumulate(lengths)][:-1]


def _pool_pieces(split: str, lengths: list[list[int]]) -> list[Piece]:
    """List the pieces of a split's pools: pair by pair, where a part holds its users pair by pair.

    Args:
        lengths: users in each pool of each part, [parts][pairs].
    """
    bounds = [[0, *accumulate(part)] for part in lengths]
    return [
        Piece(f"{split}_pools-{place}", bound[pair], bound[pair + 1])
        for pair in range(len(lengths[0]))
        for place, bound in enumerate(bounds)
    ]
