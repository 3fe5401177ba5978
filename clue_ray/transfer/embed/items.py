"""Items that several buckets of users share: each is encoded once over the whole log.

The vector of an item depends on its text and its service alone, not on the user. The items of all
buckets are gathered in ranges of a hash. A range's shared items are encoded by one task, which
writes their vectors as a file; the buckets then map these files and look their items up. Items of
one bucket alone are encoded there, so they need no file.

A file of `items/` holds the sorted keys of its items, uint64, and then their vectors, float32.
"""

import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray

from clue_ray.errors import StudyError
from clue_ray.storage.files import fetch_files, list_files
from clue_ray.storage.in_use import InUse, delete_unused
from clue_ray.storage.place import is_uri
from clue_ray.storage.sync import node_folder
from clue_ray.transfer.embed.packed import PACKED, pack, unpack
from clue_ray.transfer.embed.parts import ITEM_FILE, item_file
from clue_ray.transfer.embed.writing import EmbedPlan
from clue_ray.transfer.encode import Histories, UserEncoder

ITEM_ROWS = pa.schema(
    [("range", pa.int32()), ("key", pa.uint64()), ("tokens", pa.large_list(pa.int32()))]
)
"""Items of a bucket: the range of the key, the key, and the tokens with the guide token."""


def list_items(packed: pa.Table, plan: EmbedPlan) -> pa.Table:
    """List the items of packed buckets as ITEM_ROWS, except those of ranges that are encoded."""
    tables = [_items_of(unpack(packed.slice(row, 1)), plan) for row in range(packed.num_rows)]
    return pa.concat_tables([ITEM_ROWS.empty_table(), *tables])


def _items_of(histories: Histories, plan: EmbedPlan) -> pa.Table:
    numbers = _range_of(histories.item_keys, plan.buckets)
    tokens = pa.LargeListArray.from_arrays(
        pa.array(histories.item_offsets), pa.array(histories.item_tokens)
    )
    table = pa.table([pa.array(numbers), pa.array(histories.item_keys), tokens], schema=ITEM_ROWS)
    return table.filter(pa.array(~np.isin(numbers, sorted(plan.encoded))))


def _range_of(keys: NDArray[np.uint64], ranges: int) -> NDArray[np.int32]:
    return (keys % np.uint64(ranges)).astype(np.int32)


def share_items(rows: pa.Table) -> Iterator[pa.Table]:
    """Pack the items of each range that more than one bucket has, sorted by key; texts occur once.

    A bucket lists an item once, so a key that occurs twice is of two buckets.
    """
    yield PACKED.empty_table()  # so that ranges without shared items have columns, too
    if not rows.num_rows:
        return
    numbers, keys = (rows[name].to_numpy() for name in ("range", "key"))
    for number in np.unique(numbers).tolist():
        (mine,) = np.nonzero(numbers == number)
        distinct, first, counts = np.unique(keys[mine], return_index=True, return_counts=True)
        shared = counts > 1
        if shared.any():
            tokens = rows["tokens"].take(pa.array(mine[first[shared]])).combine_chunks()
            yield pack(number, _as_histories(distinct[shared], tokens))


def _as_histories(keys: NDArray[np.uint64], tokens: pa.LargeListArray) -> Histories:
    """Return items as histories without users, one event per item."""
    lengths = tokens.value_lengths().to_numpy()
    return Histories.of_arrays(
        [],
        np.zeros(0, object),
        events=np.arange(len(keys), dtype=np.int32),
        offsets=np.zeros(1, np.int64),
        item_tokens=tokens.flatten().to_numpy(),
        item_offsets=np.append(0, np.cumsum(lengths)),
        item_keys=keys,
        times=np.zeros(0),
        cuts=np.zeros(0),
    )


def write_items(row: pa.Table, encoder: UserEncoder, plan: EmbedPlan) -> None:
    """Encode the items of one packed range and write their file. A task may be retried."""
    items = unpack(row)
    keys, vectors = items.item_keys.astype("<u8"), encoder.encode_items(items).astype("<f4")
    plan.parts.write(item_file(row["number"][0].as_py()), keys.tobytes() + vectors.tobytes())


class ItemVectors:
    """The vectors of shared items, mapped from their files.

    Attributes:
        folder: local folder of the files.
        ranges: number of ranges of the keys.
        width: numbers per vector.
    """

    def __init__(self, folder: Path, ranges: int, width: int, in_use: InUse | None = None):
        self.folder, self.ranges, self.width = folder, ranges, width
        self._in_use = in_use  # keeps the folder in the cache for as long as this object is used
        self._files: dict[int, tuple[NDArray[np.uint64], NDArray[np.float32]]] = {}

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Return which keys are known, and the vectors of those that are, [known, width]."""
        known, vectors = np.zeros(len(keys), bool), np.empty((len(keys), self.width), np.float32)
        owners = _range_of(keys, self.ranges)
        order = np.argsort(owners, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(owners[order])) + 1):
            if not len(rows):  # of no keys at all
                continue
            stored, values = self._open(int(owners[rows[0]]))
            if len(stored):
                places = np.minimum(np.searchsorted(stored, keys[rows]), len(stored) - 1)
                same = stored[places] == keys[rows]
                known[rows], vectors[rows[same]] = same, values[places[same]]
        return known, vectors[known]

    def _open(self, number: int) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        """Map the file of a range; one that no buckets share items of has none."""
        if number not in self._files:
            file = self.folder / Path(item_file(number)).name
            whole: NDArray[np.uint8] = np.zeros(0, np.uint8)
            if file.exists() and file.stat().st_size:
                whole = np.memmap(file, np.uint8, "r").view(np.ndarray)
            keys = len(whole) // (8 + 4 * self.width) * 8
            values = whole[keys:].view("<f4").reshape(-1, self.width)
            self._files[number] = whole[:keys].view("<u8"), values
        return self._files[number]


@lru_cache(maxsize=1)  # one process encodes many buckets
def open_items(place: str, attempt: str, ranges: int, width: int) -> ItemVectors:
    """Map the vectors of shared items; those at a URI are fetched once per node.

    Args:
        place: of the embedding.
        attempt: name of the run of the pipeline that wrote the files.
    """
    if not is_uri(place):
        return ItemVectors(Path(place) / "items", ranges, width)
    cache = node_folder("items")
    folder = cache / attempt
    with FileLock(cache / ".lock"):
        if not folder.exists():
            _fetch_items(place, folder)
        return ItemVectors(folder, ranges, width, InUse(folder))


def _fetch_items(place: str, folder: Path) -> None:
    """Fetch the vectors of shared items; delete those of attempts that no process reads.

    Raises:
        StudyError: the disk is too full, or storage failed for two minutes.
    """
    for earlier in filter(Path.is_dir, folder.parent.glob("*")):
        delete_unused(earlier)
    files = list_files(place)
    sizes = {name: size for name, (size, _) in files.items() if ITEM_FILE.fullmatch(name)}
    need, free = sum(sizes.values()), shutil.disk_usage(folder.parent).free
    if free < need:
        raise StudyError(
            f"Not enough free disk at {folder.parent} for the vectors of the items of {place}: "
            f"{free:,} bytes free, {need:,} needed; free some space, or set TMPDIR to a larger "
            "disk."
        )
    partial = folder.parent / ".partial"
    fetch_files(place, sizes, partial)
    (partial / "items").mkdir(parents=True, exist_ok=True)
    (partial / "items").rename(folder)
