"""Column kinds and text encodings: bytes are read as UTF-8, and otherwise as Windows-1252."""

import pyarrow as pa

from clue_ray.corpus.logs.ids import is_uuid

UNDEFINED = {0x81, 0x8D, 0x8F, 0x90, 0x9D}
"""Bytes that Windows-1252 does not define; they are read as Latin-1, so that no byte is lost."""
WINDOWS_1252 = {
    byte: bytes([byte]).decode("cp1252") for byte in range(128, 256) if byte not in UNDEFINED
}


def kind_of(type_: pa.DataType) -> str:
    """Return the kind of values that a column holds.

    Files of one log may differ in it: each is converted from its own type.
    """
    value = type_.value_type if pa.types.is_dictionary(type_) else type_
    kinds = {
        "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, _is_bytes),
        "whole numbers": (pa.types.is_integer,),
        "numbers": (pa.types.is_floating, pa.types.is_decimal),
        "times": (pa.types.is_timestamp, pa.types.is_date),
        "UUIDs": (is_uuid,),
        "unknown": (pa.types.is_null,),
    }
    return next(
        (kind for kind, tests in kinds.items() if any(test(value) for test in tests)), str(value)
    )


def _is_bytes(type_: pa.DataType) -> bool:
    """Return whether a column holds bytes."""
    return (
        pa.types.is_binary(type_)
        or pa.types.is_large_binary(type_)
        or pa.types.is_binary_view(type_)
    )


def decode(table: pa.Table) -> tuple[pa.Table, int]:
    """Decode every column of text or bytes, and count the values that were not UTF-8."""
    recoded = 0
    for index, name in enumerate(table.column_names):
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if kind_of(column.type) == "text":
            column, count = _decode_column(column)
            recoded += count
        table = table.set_column(index, name, column)
    return table, recoded


def _decode_column(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    """Return a column as valid text, and the number of its values that were not UTF-8."""
    try:
        text = column.cast(pa.string())
        # Arrow checks UTF-8 only where it casts bytes to text, and a file may declare bytes that
        # are not UTF-8 as text: a cast to bytes and back checks those too.
        return (text if _is_bytes(column.type) else text.cast(pa.binary()).cast(pa.string())), 0
    except pa.ArrowInvalid:
        values = [decode_bytes(value) for value in column.cast(pa.large_binary()).to_pylist()]
    texts = pa.array([text for text, _ in values], pa.string())
    return pa.chunked_array([texts]), sum(recoded for _, recoded in values)


def decode_bytes(value: bytes | None) -> tuple[str | None, bool]:
    """Decode one value, and return whether it was not UTF-8.

    Any bytes can be decoded. Windows-1252 is what old exports of shops and spreadsheets use, and
    it agrees with Latin-1 in all letters.
    """
    if value is None:
        return None, False
    try:
        return value.decode(), False
    except UnicodeDecodeError:
        return "".join(WINDOWS_1252.get(byte, chr(byte)) for byte in value), True
