"""Open a small table: CSV with any separator, Parquet or JSON Lines, packed or not."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from clue_ray.storage.delimited import declared_separator, find_separator, split_header
from clue_ray.storage.documents import parse_json
from clue_ray.storage.unpack import unpack

if TYPE_CHECKING:  # pandas is slow to import, and `import clue_ray` should not be
    import pandas as pd

PACKED = {".gz", ".gzip", ".bz2", ".zst", ".zstd", ".lz4", ".xz", ".zip"}
PARQUET, JSON_LINES = {".parquet", ".pq", ".parq"}, {".jsonl", ".ndjson", ".json", ".jsonlines"}
CHUNK = 16_000_000
MOST_PLAIN, MOST_RATIO = 64_000_000, 200
"""A packed table may unpack to so many bytes, or so many times its size; texts shrink tenfold."""
MOST_ROWS = 10_000_000
"""Rows of a Parquet table that is read whole."""
MOST_COLUMNS, MOST_CELLS = 10_000, 30_000_000
"""Columns of any table, and rows times columns; a small file can hold very many equal ones."""
MOST_HEADER = 2_000_000
"""Characters of the header of a CSV file."""


@dataclass(frozen=True)
class CsvText:
    """The text of a CSV file from its header on, and the separator that the header shows."""

    text: str
    separator: str


def open_table(
    content: bytes, name: str, wanted: Collection[str]
) -> bytes | CsvText | list[dict[str, Any]]:
    """Unpack a table: Parquet as bytes, CSV as text, JSON Lines as rows.

    Args:
        name: of the file; its ending names the format.
        wanted: columns that are needed, which tell the separator of a CSV file.

    Raises:
        ValueError: the file is empty or not JSON, or two columns of a CSV file have one name.
        OSError: the file is packed and damaged.
    """
    endings = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    while endings and endings[-1] in PACKED:
        endings.pop()
    ending = endings[-1] if endings else ""
    stream = unpack(pa.BufferReader(content))
    parts = []
    most = max(MOST_PLAIN, MOST_RATIO * len(content))
    while chunk := bytes(stream.read(CHUNK)):
        parts.append(chunk)
        if sum(map(len, parts)) > most:
            raise OSError(f"it unpacks to more than {most:,} bytes, as no table does")
    plain = b"".join(parts)
    if ending in PARQUET or plain[:4] == b"PAR1":
        return plain
    text = _decode(plain)
    return _read_json(text) if ending in JSON_LINES else _find_dialect(text, wanted)


def read_parquet(source: pa.NativeFile | Path) -> "pd.DataFrame":
    """Read a small Parquet table, by its columns alone: notes that pandas left in it are ignored.

    Raises:
        ValueError: it is damaged, two columns have one name, or it has absurdly many rows or
            columns; a file of a kilobyte can hold a billion equal rows.
        OSError: it cannot be read.
    """
    try:
        # The limit is that of any list in the footer: columns, row groups, columns of one of them.
        file = pq.ParquetFile(source, thrift_container_size_limit=2 * MOST_COLUMNS)
        rows = file.metadata.num_rows
        if rows > MOST_ROWS:
            raise ValueError(f"it has {rows:,} rows, at most {MOST_ROWS:,} are read")
        _check_size(rows, file.metadata.num_columns)
        check_names(file.schema_arrow.names)
        table = file.read()
        table.validate(full=True)  # text that is not UTF-8 fails only where it is used
        return table.to_pandas(ignore_metadata=True)
    except (pa.ArrowException, LookupError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None


def check_names(names: Iterable[str]) -> None:
    """Check that no two columns have one name; raise ValueError otherwise."""
    (twice, times), *_ = [*Counter(names).most_common(1), ("", 0)]
    if times > 1:
        raise ValueError(f"{times} columns are named {twice!r:.100}: rename all but one")


def _check_size(rows: int, columns: int, written: int = 0) -> None:
    """Check that a table fits in memory; raise ValueError otherwise.

    Args:
        written: values that the file spells out; a table may have ten times as many.
    """
    if columns > MOST_COLUMNS:
        raise ValueError(f"it has {columns:,} columns, at most {MOST_COLUMNS:,} are read")
    if rows * columns > max(MOST_CELLS, 10 * written):
        raise ValueError(
            f"it has {rows:,} rows of {columns:,} columns, at most {MOST_CELLS:,} values are read"
        )


def _decode(content: bytes) -> str:
    """Decode text as UTF-8, and otherwise as Windows-1252."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _read_json(text: str) -> list[dict[str, Any]]:
    """Read a list of objects, or one object per line."""
    if text.lstrip().startswith("["):
        rows = parse_json(text)
    else:
        rows = [parse_json(line) for line in text.split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("each line must be one object")
    _check_size(len(rows), len(set().union(*rows)), written=sum(map(len, rows)))
    return list(rows)


def _find_dialect(text: str, wanted: Collection[str]) -> CsvText:
    """Find the separator of a CSV file, and check the names in its header."""
    text = text.lstrip("\r\n")
    first, _, rest = text.partition("\n")
    if declared := declared_separator(first.strip()):
        text, first = rest, rest.partition("\n")[0]
    if not text.strip():
        raise ValueError("it is empty")
    if len(first) > MOST_HEADER:
        raise ValueError(f"its header has more than {MOST_HEADER:,} characters")
    separator = declared or find_separator(first.strip("\r"), wanted)
    header = split_header(first.strip("\r"), separator)
    _check_size(0, len(header))  # each value takes a byte of the text, which is in memory
    check_names(header)
    return CsvText(text, separator)
