"""Read JSON Lines with Arrow's parser, block by block.

A block that Arrow cannot parse is read again line by line in Python. This accepts what Arrow
rejects, such as fields of mixed types, and reports the line number of an error.
"""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.json

from clue_ray.corpus.logs.encoding import decode_bytes
from clue_ray.errors import EventLogError

BLOCK, SAMPLE = 16_000_000, 200_000
"""Bytes that are parsed at a time, and bytes of a block from which its schema is inferred."""


def json_schema(source: pa.NativeFile, name: str) -> pa.Schema:
    """Infer the schema of a file from its first lines.

    A field of mixed types is text; a field of nothing but nulls has type null.
    """
    block = next(_blocks(source), None)
    found = _find_schema(block or b"", name, 1)
    if not found.names:
        raise pa.ArrowInvalid("it is empty")
    return found


def _find_schema(block: bytes, name: str, first: int) -> pa.Schema:
    kinds: dict[str, set[type]] = {}
    sample = block[: block.find(b"\n", SAMPLE) + 1 or None]  # up to the end of a line
    for number, line in enumerate(sample.split(b"\n"), first):
        for key, value in (_parse(line, name, number) if line.strip() else {}).items():
            kinds.setdefault(key, set()).add(type(value))
    return pa.schema([(key, _arrow_type(found - {type(None)})) for key, found in kinds.items()])


def _arrow_type(kinds: set[type]) -> pa.DataType:
    if not kinds:
        return pa.null()
    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    return pa.string() if len(kinds) > 1 else types.get(next(iter(kinds)), pa.string())


def read_json_lines(
    source: pa.NativeFile, columns: list[str], name: str
) -> Iterator[tuple[pa.Table, int]]:
    """Yield the given fields of each block, and the number of its values that were not UTF-8.

    Args:
        name: of the file, for messages.
    """
    line = 1
    for block in _blocks(source):
        found = _find_schema(block, name, line)
        yield _read_fast(block, columns, found) or _read_slowly(block, columns, name, line)
        line += block.count(b"\n")


def _read_fast(block: bytes, columns: list[str], found: pa.Schema) -> tuple[pa.Table, int] | None:
    """Read a block with Arrow, or return None if Arrow rejects it."""
    types = [found.field(column).type if column in found.names else pa.null() for column in columns]
    # A field that the sample lacks may still occur later in the block: read it as text.
    fields = [
        (c, pa.string() if pa.types.is_null(t) else t) for c, t in zip(columns, types, strict=True)
    ]
    options = pa.json.ParseOptions(
        explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"
    )
    whole = pa.json.ReadOptions(block_size=len(block) + 1)
    try:
        return pa.json.read_json(pa.BufferReader(block), whole, options).select(columns), 0
    except pa.ArrowInvalid:
        return None


def _read_slowly(block: bytes, columns: list[str], name: str, first: int) -> tuple[pa.Table, int]:
    """Read a block line by line, all fields as text; `first` is the number of its first line."""
    lines = [(first + n, line) for n, line in enumerate(block.split(b"\n")) if line.strip()]
    rows = [_parse(line, name, number) for number, line in lines]
    values = {column: [_as_text(row.get(column)) for row in rows] for column in columns}
    whole = {
        column: [v and _without_surrogates(v) for v in found] for column, found in values.items()
    }
    recoded = sum(decode_bytes(line)[1] for _, line in lines)
    recoded += sum(
        a != b for column in columns for a, b in zip(values[column], whole[column], strict=True)
    )
    return pa.table(
        {column: pa.array(found, pa.string()) for column, found in whole.items()}
    ), recoded


def _without_surrogates(text: str) -> str:
    """Replace unpaired surrogates by U+FFFD; JavaScript leaves them where it cuts an emoji."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parse(line: bytes, name: str, number: int) -> dict[str, Any]:
    """Parse one line, or raise EventLogError with its number."""
    try:
        row = json.loads((decode_bytes(line)[0] or "").removeprefix("\ufeff"))
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise EventLogError(
            f"Event log {name}, line {number} is not JSON ({reason}); fix the line: each line "
            "must be one object."
        ) from None
    if not isinstance(row, dict):
        raise EventLogError(
            f"Event log {name}, line {number} holds {type(row).__name__}; each line must be one "
            "object."
        )
    return row


def _as_text(value: Any) -> str | None:
    """Write a JSON value as the text that Arrow's parser and casts would produce."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or value.is_integer():
        return str(int(value))
    return str(pa.scalar(value).cast(pa.string()).as_py())


def _blocks(source: pa.NativeFile) -> Iterator[bytes]:
    """Yield the stream in blocks of whole lines."""
    rest = b""
    while data := source.read(BLOCK):
        cut = data.rfind(b"\n") + 1
        if cut:
            yield rest + data[:cut]
            rest = data[cut:]
        else:
            rest += data
    if rest.strip():
        yield rest
