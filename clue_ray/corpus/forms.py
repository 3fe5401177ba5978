"""Find user ids that differ by form alone, in a sample of the users of all shards.

`Anna` and `anna`, or `007` and `7`, are two users of a corpus, and probably one person. Two forms
of an id lie in different shards, so each shard sends the ids with the lowest hashes of their folded
form. Below the lowest limit of all shards, the sample holds every form of each of its ids.
"""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from clue_ray.corpus.hashes import stable_hash
from clue_ray.corpus.logs.ids import fold_id

USERS = 1_000_000
"""Users that are compared, over all shards."""
NO_LIMIT = np.uint64(2**64 - 1)
EXAMPLES = 3


def sample_forms(ids: pa.Array, limit: int) -> dict[str, Any]:
    """Return the ids of a shard with the lowest hashes of their folded form, as in SHARD_COUNTS."""
    hashes = stable_hash(fold_id(ids).to_pandas(), "form")
    order = np.argsort(hashes, kind="stable")[:limit]
    kept = hashes[order]
    return {
        "forms": kept,
        "form_ids": ids.take(pa.array(order)).to_pylist(),
        "form_limit": kept[-1] if len(hashes) > limit else NO_LIMIT,
    }


class Forms:
    """The samples of all shards."""

    def __init__(self) -> None:
        self.hashes: list[Any] = []
        self.ids: list[str] = []
        self.limit = NO_LIMIT

    def add(self, shard: dict[str, Any]) -> None:
        """Add a shard, given as a row of SHARD_COUNTS."""
        self.hashes += list(shard["forms"])
        self.ids += shard["form_ids"]
        self.limit = min(self.limit, np.uint64(shard["form_limit"]))

    def summary(self) -> dict[str, Any]:
        """Return how many users were compared, how many groups differ by form, and examples."""
        table = pd.DataFrame({"hash": np.array(self.hashes, np.uint64), "id": self.ids})
        table = table[table["hash"] <= self.limit]
        alike = table[table["hash"].duplicated(keep=False)].sort_values("id")
        groups = alike.groupby("hash")["id"].apply(list)
        return {
            "users": len(table),
            "groups": len(groups),
            "examples": sorted(ids[:EXAMPLES] for ids in groups)[:EXAMPLES],
        }
