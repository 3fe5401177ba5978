"""What a column holds, and its bytes as valid text: UTF-8, else Windows-1252."""

import pyarrow as pa


def kind_of(type_: pa.DataType) -> str:
    """Name what a column holds: two files of one log must agree in it."""
    value = type_.value_type if pa.types.is_dictionary(type_) else type_
    kinds = {
        "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, _is_bytes),
        "whole numbers": (pa.types.is_integer,),
        "numbers": (pa.types.is_floating, pa.types.is_decimal),
        "times": (pa.types.is_timestamp, pa.types.is_date),
        "unknown": (pa.types.is_null,),
    }
    return next(
        (kind for kind, tests in kinds.items() if any(test(value) for test in tests)), str(value)
    )


def _is_bytes(type_: pa.DataType) -> bool:
    """Tell whether a column holds bytes, which are read as UTF-8."""
    return (
        pa.types.is_binary(type_)
        or pa.types.is_large_binary(type_)
        or pa.types.is_binary_view(type_)
    )


def decode(table: pa.Table) -> tuple[pa.Table, int]:
    """Make every column of bytes or text valid text, and count the values that were not UTF-8."""
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
    """Return a column of bytes or text as valid text, and how many values were not UTF-8."""
    try:
        text = column.cast(pa.string())
        return (
            text if _is_bytes(column.type) else text.cast(pa.binary()).cast(pa.string())
        ), 0  # a cast back checks
    except pa.ArrowInvalid:
        values = [decode_bytes(value) for value in column.cast(pa.large_binary()).to_pylist()]
        return pa.chunked_array([pa.array([v for v, _ in values], pa.string())]), sum(
            bad for _, bad in values
        )


def decode_bytes(value: bytes | None) -> tuple[str | None, bool]:
    """Read bytes as UTF-8, else as Windows-1252, whose five gaps are taken as Latin-1; tell whether
    it was else.
    """
    if value is None:
        return None, False
    try:
        return value.decode(), False
    except UnicodeDecodeError:
        return "".join(WINDOWS.get(byte, chr(byte)) for byte in value), True


WINDOWS = {
    byte: bytes([byte]).decode("cp1252")
    for byte in range(128, 256)
    if byte not in {129, 141, 143, 144, 157}
}
