"""Join the items of a catalogue to the rows of a log, batch by batch.

A loaded catalogue is three arrays in the order of the ids' hashes, so that a batch finds its items
by binary search and no process builds an index of its own. On Ray, the arrays lie in the object
store, which the workers of a node share without a copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clue_ray.corpus.logs.ids import as_ids
from clue_ray.corpus.logs.table import FAULT
from clue_ray.errors import EventLogError
from clue_ray.spec.items import ItemsSpec

ITEM = "clue_ray.item."
"""Before the name of a column: the column of a batch with the texts of the items of its ids."""
EXAMPLES = 3
"""Unmatched ids that are shown."""
PIECE = 1_000_000
"""Ids that are hashed at a time."""


@dataclass(frozen=True)
class Catalogue:
    """Items by id, in the order of `hash_ids` of their ids.

    Attributes:
        hashes: sorted, [items].
        ids, texts: large_string, [items].
        unusable: rows of the table without a key or a text.
    """

    hashes: NDArray[np.uint64]
    ids: pa.Array
    texts: pa.Array
    unusable: int = 0

    def find(self, ids: pa.Array) -> pa.Array:
        """Return the text of each id, null for an id that the catalogue lacks."""
        wanted = ids.cast(pa.large_string())
        places = np.searchsorted(self.hashes, hash_ids(pc.fill_null(wanted, "")))
        places = pa.array(np.minimum(places, len(self.hashes) - 1))
        same = pc.fill_null(pc.equal(self.ids.take(places), wanted), False)
        return pc.if_else(same, self.texts.take(places), None).cast(pa.string())


@dataclass(frozen=True)
class ItemJoin:
    """A catalogue that is joined to a log.

    Attributes:
        name: its key in the spec, such as events.sku.
        column: the log's column of item ids.
        service: the service whose rows are joined; None for all rows.
        catalogue: None until it is loaded.
    """

    name: str
    column: str
    service: str | None
    spec: ItemsSpec
    catalogue: Catalogue | None = None

    @property
    def fault(self) -> str:
        """The reason of a rejected row."""
        return f"{self.column} is not in the catalogue"


class Joined(NamedTuple):
    """Rows of a batch whose ids a catalogue has, those that it lacks, and a few of the latter."""

    name: str
    matched: int
    unmatched: int
    examples: tuple[str, ...] = ()


def hash_ids(ids: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """Hash ids to uint64; the hash is the same within one session, which is all that needs it."""
    # In pieces, because numpy turns each id into an object of Python.
    hashes = [np.zeros(0, np.uint64)]
    for start in range(0, len(ids), PIECE):
        values = ids.slice(start, PIECE).to_numpy(zero_copy_only=False).astype(object)
        hashes.append(pd.util.hash_array(values, categorize=False))
    return np.concatenate(hashes)


def make_catalogue(ids: pa.Array, texts: pa.Array, table: str, unusable: int = 0) -> Catalogue:
    """Sort the items of a table by the hashes of their ids.

    Raises:
        EventLogError: the table has no item, or an id twice.
    """
    if not len(ids):
        raise EventLogError(
            f"Catalogue {table} has no row with a key and a text; check key and text."
        )
    ids, texts = ids.cast(pa.large_string()), texts.cast(pa.large_string())
    hashes = hash_ids(ids)
    order = np.argsort(hashes, kind="stable")
    hashes, ids, texts = hashes[order], ids.take(pa.array(order)), texts.take(pa.array(order))
    again = np.flatnonzero(hashes[1:] == hashes[:-1])
    if len(again):
        first = min(ids.take(pa.array(again)).to_pylist())
        raise EventLogError(
            f"Catalogue {table} has key {first!r} more than once ({len(again):,} of its "
            f"{len(ids):,} rows repeat a key); give one row per key."
        )
    return Catalogue(hashes, ids, texts, unusable)


def join_items(
    table: pa.Table, joins: Sequence[ItemJoin], service: str | None
) -> tuple[pa.Table, tuple[Joined, ...]]:
    """Add a column of texts for each joined column of a batch, and count what was found.

    Args:
        service: the table's column of services; None if all its rows are of one service.
    """
    counts = []
    for join in joins:
        assert join.catalogue is not None, "load catalogues before reading"
        ids = as_ids(table[join.column]).combine_chunks()
        asked = pc.is_valid(ids)
        if join.service is not None and service is not None:
            own = pc.equal(as_ids(table[service]).combine_chunks(), join.service)
            asked = pc.and_(asked, pc.fill_null(own, False))
        texts = join.catalogue.find(pc.if_else(asked, ids, None))
        unmatched = pc.and_(asked, pc.is_null(texts))
        table = _set_column(table, ITEM + join.column, texts, ids)
        if join.spec.unmatched == "reject":
            fault = pc.if_else(unmatched, join.fault, pa.scalar(None, pa.string()))
            table = _set_column(table, FAULT, fault, pa.nulls(table.num_rows, pa.string()))
        counts.append(_count(join.name, asked, unmatched, ids))
    return table, tuple(counts)


def _set_column(table: pa.Table, name: str, values: pa.Array, otherwise: pa.Array) -> pa.Table:
    """Set the values that are not null; the others stay, or are `otherwise` in a new column."""
    if name not in table.column_names:
        return table.append_column(name, pc.coalesce(values, otherwise))
    column = pc.coalesce(values, table[name])
    return table.set_column(table.column_names.index(name), name, column)


def _count(name: str, asked: pa.Array, unmatched: pa.Array, ids: pa.Array) -> Joined:
    lacking = ids.filter(unmatched)
    examples = sorted(pc.unique(lacking).to_pylist())[:EXAMPLES]
    rows = pc.sum(asked, min_count=0).as_py()
    return Joined(name, rows - len(lacking), len(lacking), tuple(examples))
