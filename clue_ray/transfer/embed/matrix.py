"""Write the vectors of an embedding as one matrix, its rows in the order of a list of users.

    matrix/client_ids.npy        int64 if all ids are integers
    matrix/embeddings.npy        float16
    matrix/embeddings.parquet    user_id, vector; instead of the arrays
    matrix/without_vector.parquet    users whose vector is zeros, and why

Several views of a user lie side by side: the services of an embedding per service, and the vectors
of further embeddings. The matrix is filled part by part on disk, so its size needs no memory.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from clue_ray.errors import StudyError
from clue_ray.storage.files import atomic_write, push_files
from clue_ray.storage.place import is_uri
from clue_ray.storage.sync import node_folder
from clue_ray.transfer.embed.client_list import ClientList, check_number
from clue_ray.transfer.embed.parts import Parts
from clue_ray.transfer.embed.writing import Precision
from clue_ray.transfer.encode import LEFT_OUT

FOLDER = "matrix"
MOST_COLUMNS = 2048
"""Numbers per user; the RecSys Challenge 2025 allows no more."""
MOST_PARTS = 100_000
"""Of an embedding; the names of their files have five digits."""
MANIFEST: dict[str, type] = {
    "key": str, "encoder_digest": str, "parts": int, "per_service": bool, "precision": str,
    "width": int,
}  # fmt: skip
"""What a manifest must have."""
NO_EVENTS = "no events in the log"
ROWS_PER_GROUP = 65_536
Format = Literal["parquet", "npy"]


@dataclass(frozen=True)
class View:
    """The columns of a matrix that one embedding fills.

    Attributes:
        services: of an embedding per service, each with its own columns; otherwise None.
        width: columns of one vector.
    """

    parts: Parts
    services: tuple[str, ...] | None
    width: int

    @property
    def columns(self) -> int:
        """Number of columns."""
        return self.width * (1 if self.services is None else len(self.services))

    def blocks(self) -> Iterator[tuple[pa.ChunkedArray, NDArray[np.int64], NDArray[Any]]]:
        """Yield the vectors of each part: users, first columns, and values [vectors, width]."""
        for number in self.parts.numbers():
            table = self.parts.read("vectors", number)
            if table is None or not table.num_rows:
                continue
            place = np.zeros(table.num_rows, np.int64)
            if self.services is not None:
                found = pc.index_in(table["service"], value_set=pa.array(self.services))
                place = found.to_numpy().astype(np.int64) * self.width
            values = table["vector"].combine_chunks().flatten().to_numpy()
            yield table["user_id"], place, values.reshape(-1, self.width)


def view_of(parts: Parts, *, per_service: bool, width: int) -> View:
    """Return the view of a finished embedding; its services are those with events."""
    if not per_service:
        return View(parts, None, width)
    services = {name for part in parts.summaries() for name in part["services"]}
    return View(parts, tuple(sorted(services)), width)


@dataclass(frozen=True)
class MatrixRequest:
    """Which matrix is asked for: its rows, its format, and the embeddings to join."""

    listed: ClientList | None
    form: Format
    join: tuple[tuple[str, View], ...]
    "keys of embeddings, and their views"

    @property
    def wanted(self) -> bool:
        """Whether there is a matrix at all."""
        return self.listed is not None or self.form == "npy" or bool(self.join)

    def identity(self) -> dict[str, Any]:
        """Return what distinguishes the output; nothing for vectors in parts alone."""
        if not self.wanted:
            return {}
        listed = self.listed and self.listed.digest
        return {"users": listed, "format": self.form, "join": [key for key, _ in self.join]}

    def nobody(self) -> str:
        """Describe that no user has a vector."""
        if self.listed is None:
            return "No user of the log has an event that can be encoded"
        return (
            f"None of the {len(self.listed.users):,} users in {self.listed.place} has an event "
            f"that can be encoded (the list has {self.listed.users[0].as_py()!r})"
        )

    def check_width(self, own: int) -> None:
        """Raise StudyError if the matrix would be too wide, given its own columns."""
        columns = own + sum(view.columns for _, view in self.join)
        if columns > MOST_COLUMNS:
            raise StudyError(
                f"The views have {columns:,} numbers per user, and at most {MOST_COLUMNS:,} are "
                "allowed; leave out a view, or train with a smaller output_width."
            )

    def write(self, own: View, precision: Precision) -> dict[str, Any]:
        """Write the matrix of the complete parts and of further views; return its description."""
        self.check_width(own.columns)
        views = [own, *(view for _, view in self.join)]
        used: Precision = "float16" if self.form == "npy" else precision
        return _write_matrix(views, self.listed and self.listed.users, self.form, used)


def find_view(output: str) -> tuple[str, View]:
    """Return the key and the view of a finished embedding.

    Raises:
        StudyError: there is none.
    """
    manifest = read_finished(output)
    parts = Parts(manifest["place"])
    view = view_of(parts, per_service=manifest["per_service"], width=manifest["width"])
    return manifest["key"], view


def read_finished(output: str) -> dict[str, Any]:
    """Read the manifest of a finished embedding, and add its place.

    Raises:
        StudyError: there is no manifest.
    """
    place = re.sub(r"/?manifest\.json(?=\?|$)", "", output)  # a URI may end with a query
    manifest = Parts(place).read_json("manifest.json")
    if manifest is None:
        raise StudyError(
            f"{output} is not a finished embedding (no manifest.json); give the --output of one "
            "that is finished."
        )
    if not _is_manifest(manifest):
        raise StudyError(
            f"{output} is not a manifest of an embedding; give the --output of one that is "
            "finished."
        )
    return manifest | {"place": place}


def _is_manifest(document: dict[str, Any]) -> bool:
    """Return whether a JSON mapping describes an embedding."""
    typed = all(isinstance(document.get(name), kind) for name, kind in MANIFEST.items())
    return typed and 0 < document["parts"] <= MOST_PARTS and 0 < document["width"] <= MOST_COLUMNS


def _write_matrix(
    views: Sequence[View], users: pa.Array | None, form: Format, precision: Precision
) -> dict[str, Any]:
    """Write the matrix of some views next to the first one, and return its description.

    Args:
        users: ids in the order of the rows; all users with a vector in some view, by id, if None.
        precision: of the numbers.

    Raises:
        StudyError: storage failed for two minutes.
    """
    columns = sum(view.columns for view in views)
    parts = views[0].parts
    order = pd.Index((_all_users(views) if users is None else users).to_pandas())
    with _local_folder(parts.place) as root:
        folder = root / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f".{form}.partial"
        matrix = open_memmap(file, mode="w+", dtype=precision, shape=(len(order), columns))
        filled = _fill(matrix, views, order)
        missing = pa.array(order[~filled], pa.string())
        _write_table(folder / "without_vector.parquet", [_explain_missing(missing, parts)])
        if form == "npy":
            with atomic_write(folder / "client_ids.npy") as temporary, temporary.open("wb") as out:
                np.save(out, _as_numbers(order))
            del matrix  # closes the file, which is then renamed
            file.replace(folder / "embeddings.npy")
        else:
            _write_table(folder / "embeddings.parquet", _row_groups(order, matrix))
            file.unlink()
        if is_uri(parts.place):
            names = [f"{FOLDER}/{found.name}" for found in sorted(folder.iterdir())]
            push_files(root, names, parts.place)
    return {
        "format": form,
        "rows": len(order),
        "columns": columns,
        "views": [view.columns for view in views],
        "without_vector": len(missing),
    }


@contextmanager
def _local_folder(place: str) -> Iterator[Path]:
    """Yield the place itself, or a temporary folder if it is a URI."""
    if not is_uri(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(dir=node_folder("work"), ignore_cleanup_errors=True) as name:
        yield Path(name)


def _all_users(views: Sequence[View]) -> pa.Array:
    """Return the users with a vector in some view, by id."""
    largest = max(sum(part["users"] for part in view.parts.summaries()) for view in views)
    check_number(largest, "An embedding has")  # before all ids are in memory
    tables = [
        view.parts.read("vectors", number, ["user_id"])
        for view in views
        for number in view.parts.numbers()
    ]
    users = pa.chunked_array([c for t in tables if t for c in t["user_id"].chunks], pa.string())
    distinct = pc.unique(users)
    check_number(len(distinct), "The embeddings have")
    return distinct.take(pc.sort_indices(distinct))


def _fill(matrix: NDArray[Any], views: Sequence[View], order: pd.Index) -> NDArray[np.bool_]:
    """Fill a matrix of zeros; return which rows have a vector in some view, [rows]."""
    filled, start = np.zeros(len(order), bool), 0
    for view in views:
        for users, place, values in view.blocks():
            rows = order.get_indexer(pd.Index(users.to_pandas()))
            kept = rows >= 0
            for offset in np.unique(place[kept]):
                own = kept & (place == offset)
                first = start + int(offset)
                matrix[rows[own], first : first + view.width] = values[own]
            filled[rows[kept]] = True
        start += view.columns
    return filled


def _as_numbers(order: pd.Index) -> NDArray[Any]:
    """Return ids as int64 if all are integers, otherwise as text."""
    texts = pa.array(order, pa.string())
    if pc.all(pc.match_substring_regex(texts, r"^(0|-?[1-9][0-9]{0,17})$")).as_py():
        return np.asarray(texts.cast(pa.int64()).to_numpy())
    return np.array(order, dtype=np.str_)


def _row_groups(order: pd.Index, matrix: NDArray[Any]) -> Iterator[pa.Table]:
    for start in range(0, len(order), ROWS_PER_GROUP):
        rows = slice(start, start + ROWS_PER_GROUP)
        values = pa.array(np.asarray(matrix[rows]).ravel())
        vectors = pa.FixedSizeListArray.from_arrays(values, matrix.shape[1])
        yield pa.table({"user_id": pa.array(order[rows], pa.string()), "vector": vectors})


def _write_table(file: Path, tables: Iterable[pa.Table]) -> None:
    """Write tables of one schema as the row groups of a file."""
    groups = iter(tables)
    first = next(groups)
    with atomic_write(file) as temporary, pq.ParquetWriter(temporary, first.schema) as writer:
        for table in chain([first], groups):
            writer.write_table(table)


def _explain_missing(missing: pa.Array, parts: Parts) -> pa.Table:
    """Return LEFT_OUT for users without a vector: why, if the log has rows of them."""
    told = [parts.read("left_out", number) for number in parts.numbers()]
    known = pa.concat_tables([LEFT_OUT.empty_table(), *filter(None, told)])
    places = pc.index_in(missing, value_set=known["user_id"].combine_chunks())
    reasons = pc.fill_null(known["reason"].combine_chunks().take(places), NO_EVENTS)
    return pa.table([missing, reasons], schema=LEFT_OUT)
