"""What a time is: numbers in four units, dates, and the forms of text that mean one time only.

Almost all text is ISO 8601 and is read by pandas, a column at a time. What pandas cannot read goes
to `written_times`, value by value. A form that could mean two times, such as 03/04/2023, is read
only with `timestamp_format`.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clue_ray.corpus.logs.ids import as_ids
from clue_ray.corpus.logs.written_times import parse_time

UNITS = {"seconds": 0.0, "milliseconds": 1e11, "microseconds": 1e14, "nanoseconds": 1e17}
"""Unit -> the smallest number that is read in this unit; 1e11 seconds would be the year 5138."""
EARLIEST_DATE = 315_532_800
"""The first second of 1980: earlier numbers are hardly times, but places in an order or days."""
EPOCH = pd.Timestamp(0, tz="UTC")
NUMBER = r"^\s*[+-]?\d+(\.\d*)?([eE][+-]?\d+)?\s*$"
NEAR_DATE = r"^(1[7-9]|2[01])\d\d\D"
"""Text of the years 1700 to 2199, which 64-bit nanoseconds hold."""
OTHER_FORM = r"(?i)(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[-/ .:,]|^[{/]"
REWRITES = (
    (r"^(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d),(\d)", r"\1.\2"),
    (r" ([+-]\d\d:?\d\d)(?: UTC| GMT)?$", r"\1"),
    (r"(:\d\d(?:\.\d+)?) ?(?:UTC|GMT)$", r"\1Z"),
)
"""How databases write ISO 8601 with a comma, a space before the zone, or a zone's name."""
FORMS = (
    "seconds, milliseconds, microseconds or nanoseconds since 1970; ISO 8601 such as "
    "2023-11-14T22:13:20Z, with a space, an offset, UTC or a zone such as [Europe/Paris]; and "
    "dates with the month's name, such as 'Tue, 14 Nov 2023 22:13:20 GMT' or "
    "14/Nov/2023:22:13:20 +0000"
)
"""The forms that are read, for messages."""


def explain_unread(values: Sequence[str]) -> str:
    """Show up to three timestamps that cannot be read, and name the forms that are read."""
    shown = ", ".join(repr(value[:60]) for value in values[:3])
    return (
        f"timestamps such as {shown} cannot be read; read are {FORMS}; describe any other form "
        "in timestamp_format, such as '%d/%m/%Y %H:%M'"
    )


def as_seconds(column: pa.ChunkedArray, timestamp_format: str | None = None) -> pa.Array:
    """Convert timestamps to seconds since the epoch.

    Times without a zone are read as UTC. Values that cannot be read become null.

    Args:
        timestamp_format: how text and numbers are written, for `strptime`; if left out, every
            unambiguous form is read.
    """
    if timestamp_format and not pa.types.is_temporal(column.type):
        return pa.array(_read_format(as_ids(column), timestamp_format), from_pandas=True)
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
    """Read text values: those that look like numbers as numbers, and the others as dates."""
    numeric = pc.fill_null(_are_numbers(column), False)
    count = pc.sum(numeric).as_py() or 0
    if count == len(column):  # the usual case of a CSV file: pandas need not see any value
        return _seconds(pc.utf8_trim_whitespace(column).cast(pa.float64()))
    seconds = _read_dates(column)
    if count:
        mask = numeric.to_numpy()
        seconds[mask] = _seconds(pc.utf8_trim_whitespace(column.filter(numeric)).cast(pa.float64()))
    return seconds


def _are_numbers(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return which texts are written as numbers."""
    digits = pc.ascii_is_decimal(text)  # almost all numbers, and far cheaper than the expression
    return digits if pc.all(digits).as_py() else pc.match_substring_regex(text, NUMBER)


def _read_dates(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Read dates as text: with pandas where it can, then rewritten, then value by value."""
    seconds = _read_iso(column)
    for read in (_read_rewritten, _read_each):
        left = np.isnan(seconds) & column.is_valid().to_numpy()
        if not left.any():
            break
        seconds[left] = read(column.filter(pa.array(left)))
    return seconds


def _read_iso(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Read ISO 8601 text of the years 1700 to 2199 with pandas; NaN for anything else."""
    near = pc.match_substring_regex(column, NEAR_DATE)
    values = pc.if_else(near, column, pa.scalar(None, pa.string())).to_pandas()
    times = pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601")
    return np.array((times - EPOCH) / pd.Timedelta(seconds=1), dtype=np.float64)


def _read_rewritten(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Rewrite what databases export as ISO 8601, and read that."""
    text = pc.utf8_trim_whitespace(column)
    for pattern, replacement in REWRITES:
        text = pc.replace_substring_regex(text, pattern, replacement)
    return _read_iso(text)


def _read_each(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Read each distinct value by itself."""
    encoded = column.combine_chunks().dictionary_encode()
    found = [parse_time(value) for value in encoded.dictionary.to_pylist()]
    return np.array([np.nan if v is None else v for v in found])[encoded.indices.to_numpy()]


def _read_format(text: pa.ChunkedArray, timestamp_format: str) -> NDArray[np.float64]:
    """Read text by a format of strptime; NaN for what does not match it."""
    encoded = text.combine_chunks().dictionary_encode()
    found = [_strptime(value, timestamp_format) for value in encoded.dictionary.to_pylist()]
    codes = encoded.indices.fill_null(len(found)).to_numpy()
    return np.array([*found, np.nan])[codes]


def _strptime(value: str, timestamp_format: str) -> float:
    try:
        time = datetime.strptime(value, timestamp_format)
    except ValueError:
        return np.nan
    zoned = time if time.tzinfo else time.replace(tzinfo=UTC)
    return (zoned - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()


def count_units(column: pa.ChunkedArray, timestamp_format: str | None = None) -> Counter[str]:
    """Count the timestamps of a column by how they are read: in a unit, as dates or as text."""
    if pa.types.is_temporal(column.type):
        return Counter({"dates": len(column) - column.null_count})
    if timestamp_format:
        return Counter({f"text like {timestamp_format}": len(column) - column.null_count})
    if _is_number(column.type):
        codes = _unit_codes(column.drop_null().cast(pa.float64(), safe=False).to_numpy())
        names = list(UNITS)
        return Counter({names[code]: int(n) for code, n in enumerate(np.bincount(codes)) if n})
    return _count_text_units(column.cast(pa.string()).drop_null())


def _count_text_units(text: pa.ChunkedArray) -> Counter[str]:
    if not len(text):
        return Counter()
    numeric = _are_numbers(text)
    counts = count_units(pc.utf8_trim_whitespace(text.filter(numeric)).cast(pa.float64()))
    rest: Any = text.filter(pc.invert(numeric))
    other = int(pc.sum(pc.match_substring_regex(rest, OTHER_FORM)).as_py() or 0)
    named = {"ISO 8601 text": len(rest) - other, "text with a month's name or of JSON": other}
    return counts + Counter({name: n for name, n in named.items() if n})
