"""A list of users to embed, in the order in which their vectors are wanted."""

import csv
import hashlib
import io
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clue_ray.corpus.logs.ids import as_ids
from clue_ray.errors import StudyError
from clue_ray.storage.files import read_bytes
from clue_ray.storage.place import explain_access
from clue_ray.storage.tables import CsvText, open_table

MOST_USERS = 50_000_000
"""Users of a list or matrix: their ids and places take about 120 bytes of memory each."""
BLOCK = 1_000_000
"""Ids that are Python strings at a time."""
COLUMNS = ("user_id", "client_id")
"""Names of the column of users in a table; a table of one column may have any name."""


@dataclass(frozen=True)
class ClientList:
    """Distinct users in the order of their file, with ids as a log's are read.

    Attributes:
        place: path or URI of the file.
        users: [users] of string.
    """

    place: str
    users: pa.Array

    @property
    def digest(self) -> str:
        """Hash of the ids and their order, 12 hex digits."""
        found = hashlib.sha256()
        for start in range(0, len(self.users), BLOCK):
            # In blocks: a Python string takes several times the bytes of an id.
            text = "\n".join(self.users[start : start + BLOCK].to_pylist())
            found.update(("\n" if start else "").encode() + text.encode())
        return found.hexdigest()[:12]


def read_clients(place: str) -> ClientList:
    """Read a list of users: a one-dimensional .npy file, or a table as CSV, Parquet or JSON Lines.

    Raises:
        StudyError: the file cannot be read, has no column of users, or repeats or lacks an id.
    """
    try:
        column = _read_column(place, read_bytes(place))
    except FileNotFoundError:
        raise StudyError(
            f"User list {place} does not exist; give a .npy, CSV or Parquet file."
        ) from None
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise StudyError(
            f"User list {place} cannot be read ({explain_access(error)}); give a one-dimensional "
            "array of ids as .npy, or a table as CSV or Parquet."
        ) from None
    check_number(len(column), f"User list {place} has")
    users = as_ids(column).combine_chunks()
    if not len(users):
        raise StudyError(f"User list {place} is empty; give at least one user.")
    if missing := users.null_count + (pc.sum(pc.equal(users, "")).as_py() or 0):
        raise StudyError(f"User list {place} has {missing:,} rows without an id; leave them out.")
    if again := len(users) - len(pc.unique(users)):
        counts = pc.value_counts(users)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise StudyError(
            f"User list {place} repeats a user in {again:,} rows (such as {twice!r}); give each "
            "user once."
        )
    return ClientList(place, users)


def check_number(users: int, what: str) -> None:
    """Raise StudyError for more users than a matrix can have.

    Args:
        what: start of the sentence, what has as many users.
    """
    if users > MOST_USERS:
        raise StudyError(
            f"{what} {users:,} users, and a matrix can have {MOST_USERS:,}; split the list, or use "
            "the vectors in parts."
        )


def _read_column(place: str, content: bytes) -> pa.ChunkedArray:
    """Return the column of users as it is stored."""
    path = urlsplit(place).path
    if path.endswith(".npy"):
        values = np.load(io.BytesIO(content))
        if not isinstance(values, np.ndarray):
            raise ValueError("it is an archive of arrays")
        if values.ndim != 1:
            raise ValueError(f"it has {values.ndim} dimensions, not 1")
        return pa.chunked_array([pa.array(values)])
    found = open_table(content, path, COLUMNS)
    if isinstance(found, bytes):
        table = pq.read_table(pa.BufferReader(found))
    elif isinstance(found, CsvText):
        head, *rows = [
            row for row in csv.reader(io.StringIO(found.text), delimiter=found.separator) if row
        ]
        for number, row in enumerate(rows, 2):
            if len(row) != len(head):
                raise ValueError(f"line {number} has {len(row)} fields, and the header {len(head)}")
        table = pa.table({name: [row[n] for row in rows] for n, name in enumerate(head)})
    else:
        table = pa.Table.from_pylist(found)
    names = [name for name in table.column_names if name.strip() in COLUMNS]
    if not names and table.num_columns == 1:
        names = table.column_names
    if len(names) != 1:
        raise ValueError(f"its columns are {', '.join(table.column_names)}, none is user_id")
    return table[names[0]]
