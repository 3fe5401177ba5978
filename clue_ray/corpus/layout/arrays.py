"""The arrays of the training layout: their files, and how they are assembled, opened and checked.

The folder `train/` of a corpus holds one raw little-endian file per array, `user_ids.arrow`, and
`layout.json`, written last. Opening maps the files, so it reads nothing, takes no private memory,
and all processes of a node share the pages that they touch.

The arrays are made in parts, by many tasks (see `building`). A part never depends on the number of
tasks, nodes or other parts once the parts are put in order, so the files do not either.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clue_ray.corpus.hashes import sha256
from clue_ray.corpus.layout.checks import check_facts, check_pieces, check_recipe
from clue_ray.corpus.layout.plan import as_batch
from clue_ray.errors import CorpusError, reason_of
from clue_ray.storage.documents import is_file_name, read_document
from clue_ray.storage.files import write_json

VERSION = 2
"""Increase when the files below change; a layout of another version is built again."""
DTYPES = {
    "events": "<i4",
    "times": "<f8",
    "offsets": "<i8",
    "item_tokens": "<i4",
    "item_offsets": "<i8",
    "train_users": "<i8",
    "validation_users": "<i8",
    "test_users": "<i8",
    "train_tokens": "<i8",
    "train_pools": "<i8",
    "validation_pools": "<i8",
    "test_pools": "<i8",
}
"""Arrays and their types.

`train_tokens` are prefix sums: the tokens of the first n training users, [training users + 1]. The
pools of a split list, for each pair of services in turn, the positions in the split's users of
those who have events in both; for a service with itself, of those who have two events or more; and
last, of those who have events at two different times or more.
"""
SPLITS = ("train", "validation", "test")
SUMS = {"offsets", "item_offsets", "train_tokens"}
"""Arrays that are prefix sums; their parts hold what is summed."""
USER_IDS = "user_ids"
ARRAYS = (*DTYPES, USER_IDS)
LAYOUT_FILE, RECIPE_FILE = "layout.json", "recipe.json"
PART_NAME = re.compile(r"[a-z_]+-\d+")
IDS_PER_BATCH = 100_000
BLOCK = 4_000_000
"""Numbers that are read at a time when parts are assembled."""

Fetch = Callable[[str], None]
Pair = tuple[int, int]
PAST_FUTURE: Pair = (-1, -1)
"""Stands for a pair of services where a user's past is paired with the same user's future."""


class Piece(NamedTuple):
    """A stretch of a part, in numbers."""

    part: str
    start: int
    stop: int


class Recipe(NamedTuple):
    """How the arrays are put together from parts.

    Attributes:
        facts: sizes of the corpus, and the bounds of the pools.
        pieces: stretches of parts of each array, in order; those of `user_ids` are whole.
        files: name -> sha256 of every part.
    """

    facts: dict[str, Any]
    pieces: dict[str, list[Piece]]
    files: dict[str, str]


def service_pairs(services: int) -> list[Pair]:
    """List the pairs of services in the order of the pools, each service with itself included.

    The pool of PAST_FUTURE follows theirs.
    """
    return [(a, b) for a in range(services) for b in range(a, services)]


def file_name(array: str) -> str:
    """Return the name of an array's file, within the folder of the layout."""
    if array == USER_IDS:
        return f"{USER_IDS}.arrow"
    return f"{array}.{DTYPES[array][1:]}"


def assemble(parts: Path, recipe: Recipe, folder: Path) -> None:
    """Write the files of a layout from its parts, in blocks; the folder appears complete.

    Call it under a lock, or for a folder that no other process writes. Each part is deleted once it
    is copied, so that parts and arrays together take little more disk than the arrays.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = {file_name(name): write_array(parts, recipe, name, partial) for name in ARRAYS}
    sizes = {name: (partial / name).stat().st_size for name in files}
    write_json(partial / LAYOUT_FILE, {**recipe.facts, "files": files, "bytes": sizes})
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def write_array(parts: Path, recipe: Recipe, array: str, folder: Path) -> str:
    """Write the file of one array from its parts, which are deleted; return its sha256."""
    target, pieces = folder / file_name(array), recipe.pieces[array]
    check_pieces(parts, array, pieces, np.dtype(DTYPES[array]).itemsize if array in DTYPES else 0)
    if array == USER_IDS:
        _join_user_ids(parts, pieces, target)
        return sha256(target)
    found, total = hashlib.sha256(), np.zeros(1, "<i8")
    with open(target, "wb") as file:

        def write(values: NDArray[Any]) -> None:
            content = values.astype(DTYPES[array]).data.cast("B")
            file.write(content)
            found.update(content)

        if array in SUMS:
            write(total)
        for block in _read_pieces(parts, pieces, array):
            if array in SUMS:
                sums = np.cumsum(block) + total
                total = sums[-1:]
            write(sums if array in SUMS else block)
    return found.hexdigest()


def _read_pieces(parts: Path, pieces: list[Piece], array: str) -> Iterator[NDArray[Any]]:
    """Read pieces of an array in blocks; delete each part after its last piece."""
    dtype = np.dtype(DTYPES[array])
    last = {piece.part: place for place, piece in enumerate(pieces)}
    for place, piece in enumerate(pieces):
        for start in range(piece.start, piece.stop, BLOCK):
            count = min(BLOCK, piece.stop - start)
            yield np.fromfile(parts / piece.part, dtype, count, offset=start * dtype.itemsize)
        if last[piece.part] == place:
            (parts / piece.part).unlink()


def _join_user_ids(parts: Path, pieces: list[Piece], target: Path) -> None:
    """Write the ids in batches of IDS_PER_BATCH, however many parts they come from."""
    schema = pa.schema([("user_id", pa.string())])
    waiting = schema.empty_table()
    with pa.ipc.new_file(str(target), schema) as writer:
        for number, piece in enumerate(pieces, 1):
            with pa.ipc.open_file(pa.memory_map(str(parts / piece.part))) as reader:
                waiting = pa.concat_tables([waiting, reader.read_all()])
            (parts / piece.part).unlink()  # what is waiting stays mapped
            least = 1 if number == len(pieces) else IDS_PER_BATCH
            while len(waiting) >= least:
                writer.write_batch(as_batch(waiting.slice(0, IDS_PER_BATCH)))
                waiting = waiting.slice(IDS_PER_BATCH)


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write a recipe for the nodes that fetch the parts."""
    write_json(folder / RECIPE_FILE, recipe._asdict())


def read_recipe(folder: Path) -> Recipe | None:
    """Read a recipe; return None if there is none of this version.

    Raises:
        CorpusError: it is damaged, or names something else than parts.
    """
    file = folder / RECIPE_FILE
    if not file.exists():
        return None
    try:
        found = read_document(file)
        recipe = _parse_recipe(found) if found["facts"]["version"] == VERSION else None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CorpusError(
            f"{file} is damaged ({reason_of(error)}); delete the corpus and prepare it again."
        ) from None
    return recipe


def _parse_recipe(found: Any) -> Recipe:
    """Check a recipe; raise any of several errors if it is not one."""
    pieces = {name: [Piece(*piece) for piece in given] for name, given in found["pieces"].items()}
    names = [*found["files"], *(piece.part for given in pieces.values() for piece in given)]
    # Storage is not trusted: a name must not lead out of the folder of the parts.
    if strange := next((name for name in names if not PART_NAME.fullmatch(name)), None):
        raise CorpusError(
            f"The layout's recipe names {strange!r}, which is not a part of a layout; delete the "
            "corpus there and prepare it again."
        )
    if set(pieces) != set(ARRAYS) or not set(names) <= set(found["files"]):
        raise ValueError("it does not name the arrays of a layout and their parts")
    named = {name: [piece._asdict() for piece in given] for name, given in pieces.items()}
    check_recipe({"pieces": named, "files": found["files"]})
    check_facts(found["facts"], SPLITS)
    return Recipe(dict(found["facts"]), pieces, dict(found["files"]))


class Layout:
    """An assembled layout, or one whose arrays are fetched when they are first used.

    Attributes:
        facts: content of layout.json.
        fetch: writes the file of an array that the folder lacks, given its name.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], fetch: Fetch | None = None):
        self.folder, self.facts, self.fetch = folder, facts, fetch
        pairs = [*service_pairs(facts["services"]), PAST_FUTURE]
        self._places = {pair: n for n, pair in enumerate(pairs)}
        self._pools: dict[str, NDArray[np.int64]] = {}

    def array(self, name: str) -> NDArray[Any]:
        """Map an array into memory.

        Raises:
            OSError: the file was cut short after the layout was opened.
        """
        file = self._file(name)
        size = file.stat().st_size
        if size != self.facts.get("bytes", {}).get(file.name, size):
            raise OSError(f"{file} was cut short; run the same command again, to build it again")
        if not size:
            return np.zeros(0, DTYPES[name])
        # A plain view: indexing it does not go through the methods of np.memmap.
        return np.memmap(file, DTYPES[name], "r").view(np.ndarray)

    def _file(self, name: str) -> Path:
        """Return the file of an array, which is fetched if it is not there."""
        file = self.folder / file_name(name)
        if self.fetch and not file.exists():
            self.fetch(name)
        return file

    def pool(self, split: str, pair: Pair) -> NDArray[np.int64]:
        """Map the pool of a pair: ascending positions in the users of the split."""
        if split not in self._pools:
            self._pools[split] = self.array(f"{split}_pools")
        place, bounds = self._places[pair], self.facts["pool_bounds"][split]
        return self._pools[split][bounds[place] : bounds[place + 1]]

    def user_ids(self) -> NDArray[np.object_]:
        """Read the ids of all users, sorted, into memory."""
        with pa.ipc.open_file(pa.memory_map(str(self._file(USER_IDS)))) as reader:
            column = reader.read_all()["user_id"]
        return column.to_numpy(zero_copy_only=False) if len(column) else np.zeros(0, object)

    def is_whole(self, *, fetched: bool = False) -> bool:
        """Return whether no file is cut short, by the sizes in layout.json, without reading them.

        A process that maps such a file would be killed, or would train on fewer users.

        Args:
            fetched: whether arrays are fetched when they are used, so that they may be missing.
        """
        sizes = self.facts.get("bytes")
        try:
            return sizes is None or all(  # an earlier version wrote none
                (self.folder / name).stat().st_size == sizes[name]
                for name in self.facts["files"]
                if not fetched or (self.folder / name).exists()
            )
        except (OSError, LookupError, TypeError):
            return False

    def sums(self) -> dict[str, str]:
        """Return the sha256 of the file of each array by its name; "none" if it is not known."""
        return {name: self.facts["files"].get(name, "none") for name in map(file_name, ARRAYS)}


def read_layout(folder: Path, digest: str, fetch: Fetch | None = None) -> Layout | None:
    """Open the layout in a folder; return None if there is none of this version and corpus.

    Args:
        fetch: writes the file of an array that the folder lacks, given its name.
    """
    try:
        facts = read_document(folder / LAYOUT_FILE)
        if (facts["version"], facts["digest"]) != (VERSION, digest):
            return None
        check_facts(facts, SPLITS)
        known = all(map(is_file_name, facts["files"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return Layout(folder, facts, fetch) if known else None
