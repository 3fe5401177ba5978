"""Timestamps as logs write them: numbers in four units, dates, and ISO 8601 text."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

UNITS = {"seconds": 0.0, "milliseconds": 1e11, "microseconds": 1e14, "nanoseconds": 1e17}
"""Unit -> the smallest number that is read in this unit; 1e11 seconds would be the year 5138."""
EPOCH = pd.Timestamp(0, tz="UTC")
NUMBER = r"^\s*[+-]?\d+(\.\d*)?([eE][+-]?\d+)?\s*$"


def as_seconds(column: pa.ChunkedArray) -> pa.Array:
    """Convert timestamps to seconds since the epoch.

    Times without a zone are read as UTC. Values that cannot be read become null.
    """
    return pa.array(_seconds(column), from_pandas=True)


def _seconds(column: pa.ChunkedArray) -> NDArray[np.float64]:
    if _is_number(column.type):
        numbers = column.cast(pa.float64(), safe=False).to_numpy()
        return np.where(np.isfinite(numbers), numbers, np.nan) / 1000.0 ** _unit_codes(numbers)
    if pa.types.is_temporal(column.type):
        return _read_times(column)
    return _read_text(column.cast(pa.string()))


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)


def _read_times(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Convert Arrow's own times by their integers.

    Going through pandas would fail for a placeholder such as 9999-12-31, which is beyond the range
    of 64-bit nanoseconds.
    """
    if pa.types.is_date32(column.type):
        return column.cast(pa.int32()).cast(pa.float64()).to_numpy() * 86_400
    steps = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
    unit = "ms" if pa.types.is_date64(column.type) else column.type.unit
    return column.cast(pa.int64()).cast(pa.float64(), safe=False).to_numpy() / steps[unit]


def _unit_codes(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index in UNITS of each number's unit; 0 for NaN."""
    # The unit is inferred per value, not per column: joined logs may mix units in one column.
    return np.searchsorted(list(UNITS.values())[1:], np.nan_to_num(np.abs(numbers)), side="right")


def _read_text(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Read text values: those that look like numbers as numbers, and the others as ISO 8601."""
    numeric = pc.fill_null(pc.match_substring_regex(column, NUMBER), False)
    count = pc.sum(numeric).as_py() or 0
    if count == len(column):  # the usual case of a CSV file: pandas need not see any value
        return _seconds(pc.utf8_trim_whitespace(column).cast(pa.float64()))
    seconds = _since_epoch(column.to_pandas())
    if count:
        mask = numeric.to_numpy()
        seconds[mask] = _seconds(pc.utf8_trim_whitespace(column.filter(numeric)).cast(pa.float64()))
    return seconds


def _since_epoch(values: "pd.Series[Any]") -> NDArray[np.float64]:
    times = pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601")
    return np.array((times - EPOCH) / pd.Timedelta(seconds=1), dtype=np.float64)


def count_units(column: pa.ChunkedArray) -> Counter[str]:
    """Count the timestamps of a column by how they are read: in a unit, as dates or as text."""
    if _is_number(column.type):
        codes = _unit_codes(column.drop_null().cast(pa.float64(), safe=False).to_numpy())
        names = list(UNITS)
        return Counter({names[code]: int(n) for code, n in enumerate(np.bincount(codes)) if n})
    if pa.types.is_temporal(column.type):
        return Counter({"dates": len(column) - column.null_count})
    return _count_text_units(column.cast(pa.string()).drop_null())


def _count_text_units(text: pa.ChunkedArray) -> Counter[str]:
    if not len(text):
        return Counter()
    numeric = pc.match_substring_regex(text, NUMBER)
    counts = count_units(pc.utf8_trim_whitespace(text.filter(numeric)).cast(pa.float64()))
    rest = len(text) - counts.total()
    return counts + Counter({"ISO 8601 text": rest} if rest else {})
