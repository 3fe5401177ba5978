"""Read JSON Lines with Arrow's parser, block by block, and count their lines independently of it.

A block that Arrow cannot parse is read again line by line in Python. This accepts what Arrow
rejects, such as fields of mixed types. A line that is not an object is a row with a fault.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from clue_ray.corpus.logs.encoding import decode_bytes
from clue_ray.corpus.logs.nested import flatten_object, look_up, nest, pick
from clue_ray.corpus.logs.table import Block, LineCounter, with_faults
from clue_ray.storage.unpack import Readable

BLOCK, SAMPLE = 16_000_000, 200_000
"""Bytes that are parsed at a time, and bytes of a block from which its schema is inferred."""
JSON_NAMES = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}
BETWEEN = re.compile(r"[\s,]*")
"""What may be between two values on one line."""
EXACT = 2.0**53
"""Floats beyond this may stand for integers that lost digits."""


def json_schema(source: Readable) -> pa.Schema | None:
    """Infer the schema of a file from its first lines; None if the file is empty.

    A field of mixed types is text; a field of nothing but nulls has type null.

    Raises:
        ArrowInvalid: none of these lines is an object.
    """
    block = next(_blocks(source), None)
    if block is None:
        return None
    sample = _sample(block)
    found = _find_schema(sample)
    if not found.names:
        lines = [(n, line) for n, line in enumerate(sample.split(b"\n"), 1) if line.strip()]
        if not lines:
            return None
        faults = [(n, fault) for n, line in lines if (fault := _parse(line)[1])]
        if faults:
            raise pa.ArrowInvalid(
                f"line {faults[0][0]} {faults[0][1]}; each line must be one object, "
                "as `jq -c` writes it (`jq -c '.[]'` from an array)"
            )
    return found


def has_key(source: Readable, key: str, *, sample: bool = False) -> bool:
    """Return whether an object of a file has a key, or, for a sample, one of the first block.

    The key may be a path. The same word within another object or within a text does not count.
    """
    spelled = _spell(key) | _spell(key.rpartition(".")[2])
    pattern = re.compile(rb"(?:" + b"|".join(map(re.escape, spelled)) + rb")\s*:")
    for block in islice(_blocks(source), 1 if sample else None):
        place = 0
        while found := pattern.search(block, place):
            start, end = block.rfind(b"\n", 0, found.start()) + 1, block.find(b"\n", found.end())
            place = end if end >= 0 else len(block)
            if look_up(_parse(block[start:place])[0], key, absent=pattern) is not pattern:
                return True
    return False


def _spell(key: str) -> set[bytes]:
    """Return how JSON may write a key."""
    return {json.dumps(key).encode(), json.dumps(key, ensure_ascii=False).encode()}


def _mentions(block: bytes, key: str) -> bool:
    """Return whether a key may occur in a block."""
    return any(spelled in block for spelled in _spell(key))


def _sample(block: bytes) -> bytes:
    """Return the beginning of a block, up to the end of a line."""
    return block[: block.find(b"\n", SAMPLE) + 1 or None]


def _find_schema(sample: bytes) -> pa.Schema:
    kinds: dict[str, set[type]] = {}
    for line in sample.split(b"\n"):
        for key, value in (flatten_object(_parse(line)[0]) if line.strip() else {}).items():
            kinds.setdefault(key, set()).add(type(value))
    return pa.schema([(key, _arrow_type(found - {type(None)})) for key, found in kinds.items()])


def _arrow_type(kinds: set[type]) -> pa.DataType:
    if not kinds:
        return pa.null()
    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    return pa.string() if len(kinds) > 1 else types.get(next(iter(kinds)), pa.string())


def read_json_lines(source: Readable, columns: Sequence[str]) -> Iterator[Block]:
    """Yield the given fields of each block; a field that a line lacks is null.

    Raises:
        ArrowInvalid: the lines of the file do not add up.
    """
    counter = LineCounter(source, carriage_returns=False)
    for block in _blocks(counter):
        rows, blank = _count_lines(block)
        fast = _read_fast(block, list(columns), _find_schema(_sample(block)))
        found = fast if fast and fast.table.num_rows == rows else _read_slowly(block, list(columns))
        if found.table.num_rows != rows:
            raise pa.ArrowInvalid(f"{found.table.num_rows:,} rows were parsed of {rows:,} lines")
        yield found.with_lines(counter.take(), blank)
    yield Block(
        pa.table({name: pa.nulls(0, pa.string()) for name in columns}), lines=counter.take()
    )


def _count_lines(block: bytes) -> tuple[int, int]:
    """Count the lines of a block and, apart from them, its blank lines."""
    array = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(array == ord("\n"))
    starts = np.concatenate([[0], ends + 1])
    starts = starts[starts < len(array)]
    if (array[starts] == ord("{")).all():
        return len(starts), 0
    lines = block.split(b"\n")[: len(starts)]
    blank = sum(not line.strip() for line in lines)
    return len(starts) - blank, blank


def _read_fast(block: bytes, columns: list[str], found: pa.Schema) -> Block | None:
    """Read a block with Arrow, or return None if Arrow rejects it."""
    types = [found.field(column).type if column in found.names else pa.null() for column in columns]
    # A field that the sample lacks may still occur later in the block: read it as text.
    fields = {
        c: pa.string() if pa.types.is_null(t) else t for c, t in zip(columns, types, strict=True)
    }
    flat = [c for c in columns if "." not in c or _mentions(block, c)]
    paths = [c.partition(".")[0] for c in columns if "." in c]
    if any(c in paths or ("." in c and _mentions(block, c.partition(".")[0])) for c in flat):
        return None  # whether a name is a path is decided line by line
    options = pa.json.ParseOptions(
        explicit_schema=nest(fields, flat), unexpected_field_behavior="ignore"
    )
    whole = pa.json.ReadOptions(block_size=len(block) + 1)
    try:
        read = pa.json.read_json(pa.BufferReader(block), whole, options)
    except pa.ArrowInvalid:
        return None
    table = pick(read, columns)
    return None if any(map(_may_be_rounded, table.columns)) else Block(table)


def _may_be_rounded(column: pa.ChunkedArray) -> bool:
    """Return whether a column of floats holds one that may have been an integer of many digits."""
    if not pa.types.is_floating(column.type):
        return False
    return bool(pc.any(pc.greater_equal(pc.abs(column), EXACT)).as_py())


def _read_slowly(block: bytes, columns: list[str]) -> Block:
    """Read a block line by line, all fields as text."""
    lines = [line for line in block.split(b"\n") if line.strip()]
    parsed = [_parse(line) for line in lines]
    rows = [row for row, fault in parsed if not fault]
    faults = {
        place: (f"the line {fault}", lines[place].decode("utf-8", "replace"))
        for place, (_, fault) in enumerate(parsed)
        if fault
    }
    values = {column: [_as_text(look_up(row, column)) for row in rows] for column in columns}
    whole = {
        column: [v and _without_surrogates(v) for v in found] for column, found in values.items()
    }
    recoded = sum(decode_bytes(line)[1] for line in lines)
    recoded += sum(
        a != b for column in columns for a, b in zip(values[column], whole[column], strict=True)
    )
    table = pa.table({column: pa.array(found, pa.string()) for column, found in whole.items()})
    return Block(with_faults(table, faults), recoded)


def _without_surrogates(text: str) -> str:
    """Replace unpaired surrogates by U+FFFD; JavaScript leaves them where it cuts an emoji."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parse(line: bytes) -> tuple[dict[str, Any], str | None]:
    """Parse one line; return its object, or what is wrong with the line."""
    text = (decode_bytes(line)[0] or "").removeprefix("\ufeff")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return {}, _name_fault(text)
    if not isinstance(row, dict):
        return {}, f"holds {JSON_NAMES.get(type(row), 'a number')}, not an object"
    return row, None


def _name_fault(text: str) -> str:
    """Return why a line is not one JSON value: it may be several, where a line end was lost."""
    decoder, place, values = json.JSONDecoder(), 0, 0
    try:
        while (place := BETWEEN.match(text, place).end()) < len(text):  # type: ignore[union-attr]
            place = decoder.raw_decode(text, place)[1]
            values += 1
    except (ValueError, RecursionError):
        return "is not JSON"
    return f"holds {values} JSON values, not one object" if values > 1 else "is not JSON"


def _as_text(value: Any) -> str | None:
    """Write a JSON value as the text that Arrow's parser and casts would produce."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int) and not math.isfinite(value):
        return None
    if isinstance(value, int) or value.is_integer():
        return str(int(value))
    return str(pa.scalar(value).cast(pa.string()).as_py())


def _blocks(source: Readable) -> Iterator[bytes]:
    """Yield the stream in blocks of whole lines."""
    rest = b""
    while data := bytes(source.read(BLOCK)):
        cut = data.rfind(b"\n") + 1
        if cut:
            yield rest + data[:cut]
            rest = data[cut:]
        else:
            rest += data
    if rest.strip():
        yield rest
