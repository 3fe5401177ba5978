"""What an id is: the same id is the same text, whatever type a file stores it in.

One table holds a user as the integer 1000, the next as the float 1000.0 (pandas does so where a
value is missing), a decimal 1000.00, or text that was written from one of these. All are `1000`.
Text that is not such a number stays as it is: 007 keeps its zeros, and no digit is rounded.
"""

import json
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MISSING = pa.array(["NaN", "nan", "-NaN", "-nan", "<NA>", "NaT", r"\N"])
"""Texts that stand for a missing value and nothing else: pandas, numpy, and database dumps."""
LONGEST_MISSING = 4
"""Bytes of the longest of them."""
DOUBTFUL = ("null", "(null)", "none", "nil", "na", "n/a", "undefined", "unknown", "-", "?")
"""Ids that are usually placeholders; the profile names them, but they are read as ids."""
ROUNDED = r"^\d(?:[.,]\d{1,5})?E\+\d\d+$"
"""How Excel shows a number of twelve digits or more: different ids become one, for good."""
WHOLE = r"^(-?(?:0|[1-9][0-9]*))\.0*$"
"""A whole number with nothing but zeros after its point."""
SCIENTIFIC = r"^-?\d(?:\.\d+)?e\+\d+$|^-?\d\.\d+E\d+$"
"""A large float as C and Python write it, and as Java does; 1e5 may be an id of its own."""
WRAPPERS = ("$oid", "$numberLong", "$numberInt", "$numberDouble", "$numberDecimal", "$uuid")
"""Keys of MongoDB's Extended JSON that wrap a scalar."""


def is_uuid(type_: pa.DataType) -> bool:
    """Return whether a column holds UUIDs as 16 bytes."""
    storage = type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_
    return pa.types.is_fixed_size_binary(storage) and storage.byte_width == 16


def as_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert ids and names to canonical text; missing values become null."""
    text = as_text(column)
    if pa.types.is_floating(column.type):
        return pc.if_else(pc.is_finite(column), text, pa.scalar(None, pa.string()))
    if pa.types.is_decimal(column.type):
        return _map_where(text, pc.is_valid(text), _shorten)
    if pa.types.is_integer(column.type):
        return text
    text = _map_where(text, pc.starts_with(text, '{"$'), _unwrap)
    if _may_hold(text, b"."):
        text = pc.replace_substring_regex(text, WHOLE, r"\1")
        text = pc.if_else(pc.equal(text, "-0"), "0", text)
        text = _map_where(text, pc.match_substring_regex(text, SCIENTIFIC), _expand)
    elif _may_hold(text, b"e+"):
        text = _map_where(text, pc.match_substring_regex(text, SCIENTIFIC), _expand)
    return text


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert a column to text without surrounding white space; missing values become null.

    Numbers keep all their digits, and a whole float is written as an integer.
    """
    if is_uuid(column.type):
        return _uuid_text(column)
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    text = column.cast(pa.string())
    if pa.types.is_floating(column.type):
        numbers = column.cast(pa.float64())
        whole = pc.and_(pc.is_finite(numbers), pc.equal(pc.floor(numbers), numbers))
        small = pc.and_(whole, pc.less(pc.abs(numbers), 2.0**63))
        integers = pc.if_else(small, numbers, 0.0).cast(pa.int64()).cast(pa.string())
        text = pc.if_else(small, integers, text)
        text = _map_where(text, pc.and_(whole, pc.invert(small)), lambda x: str(int(float(x))))
        return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.string()), text)
    return without_missing(pc.utf8_trim_whitespace(text))


def without_missing(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace the texts that stand for a missing value by null."""
    if not _any(pc.less_equal(pc.binary_length(text), LONGEST_MISSING)):  # usual for texts
        return text
    missing = pc.is_in(text, value_set=MISSING)
    return pc.if_else(missing, pa.scalar(None, pa.string()), text) if _any(missing) else text


def fold_id(text: pa.Array) -> pa.Array:
    """Return what remains of ids without their form: case, Unicode form, spaces, zeros in front.

    Ids that are equal in this are probably one user, whom two systems write differently.
    """
    folded = pc.utf8_lower(pc.utf8_normalize(text, "NFKC"))
    if _any(pc.match_substring_regex(folded, r"[\s\p{Cf}]")):
        folded = pc.replace_substring_regex(folded, r"[\s\p{Cf}]+", "")
    if _any(pc.match_substring(folded, ".")):
        folded = pc.replace_substring_regex(folded, r"^(-?\d+)\.0*$", r"\1")
        folded = pc.replace_substring_regex(folded, r"^(-?\d+\.\d*?[1-9])0+$", r"\1")
    return pc.replace_substring_regex(folded, r"^0+(\d)", r"\1")


def _map_where(text: Any, mask: Any, change: Callable[[str], str]) -> Any:
    """Apply a function to the texts that a mask selects; rare, so one by one."""
    if not _any(mask):
        return text
    chosen = pc.fill_null(mask, False).to_numpy(zero_copy_only=False).astype(bool)
    values = text.to_numpy(zero_copy_only=False).astype(object)
    values[chosen] = np.array([change(value) for value in values[chosen]], dtype=object)
    return pa.chunked_array([pa.array(values, pa.string(), from_pandas=True)])


def _may_hold(text: pa.ChunkedArray, part: bytes) -> bool:
    """Return whether any value may hold a text: a search of all bytes, not value by value."""
    buffers = [chunk.buffers()[2] for chunk in text.chunks]
    return any(part in buffer.to_pybytes() for buffer in buffers if buffer)


def _any(mask: Any) -> bool:
    return bool(pc.any(mask).as_py())


def _shorten(text: str) -> str:
    """Write a number without an exponent and without zeros behind its point."""
    number = Decimal(text)
    plain = f"{number:f}"
    shorter = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if number == 0 else shorter


def _expand(text: str) -> str:
    """Write a float that has an exponent as the integer that it is, if it is one."""
    number = float(text)
    return str(int(number)) if number.is_integer() else text


def _unwrap(text: str) -> str:
    """Return the value that MongoDB's Extended JSON wraps, or the text itself."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    key, value = next(iter(found.items())) if len(found) == 1 else ("", None)
    return str(value) if key in WRAPPERS and isinstance(value, str | int | float) else text


def _uuid_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Write UUIDs of 16 bytes as text, as a CSV or JSON file has them."""
    if isinstance(column.type, pa.BaseExtensionType):
        chunks = [chunk.storage for chunk in column.chunks]
        column = pa.chunked_array(chunks, column.type.storage_type)
    values = [None if v is None else str(uuid.UUID(bytes=v)) for v in column.to_pylist()]
    return pa.chunked_array([pa.array(values, pa.string())])
