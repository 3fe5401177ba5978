"""Timestamps of every kind are recognised and converted."""

from datetime import date, datetime

import pandas as pd
import pyarrow as pa
import pytest

from clue_ray.corpus.logs.times import as_seconds, count_units


@pytest.mark.parametrize(
    ("values", "expected", "units"),
    [
        ([10, 20], [10.0, 20.0], {"seconds": 2}),
        ([1.5, None], [1.5, None], {"seconds": 1}),
        (
            [1_600_000_000_123_456_789, 1_600_000_000_000, 1_600_000_000],
            [1_600_000_000.1234567, 1_600_000_000.0, 1_600_000_000.0],
            {"nanoseconds": 1, "milliseconds": 1, "seconds": 1},
        ),
        ([1_600_000_000_000_000], [1_600_000_000.0], {"microseconds": 1}),
        ([-5, 0], [-5.0, 0.0], {"seconds": 2}),
        ([float("-inf"), 2.5], [None, 2.5], None),
        ([datetime(9999, 12, 31)], [253402214400.0], {"dates": 1}),
        ([date(9999, 12, 31)], [253402214400.0], {"dates": 1}),
        ([datetime(1970, 1, 2), None], [86400.0, None], {"dates": 1}),
        ([date(1970, 1, 3)], [172800.0], {"dates": 1}),
        (["1970-01-01T00:00:10Z", "never"], [10.0, None], {"ISO 8601 text": 2}),
        (["1970-01-01T01:00:10+01:00", "1970-01-02"], [10.0, 86400.0], {"ISO 8601 text": 2}),
        (["1600000000", " 1600000000000 ", "1970-01-02"], [1.6e9, 1.6e9, 86400.0], None),
        (["12.5", "x", None, ""], [12.5, None, None, None], {"seconds": 1, "ISO 8601 text": 2}),
    ],
)
def test_timestamps(values, expected, units):
    column = pa.chunked_array([pa.array(values)])
    found = as_seconds(column).to_pylist()
    assert [value is None for value in found] == [value is None for value in expected]
    assert [v for v in found if v is not None] == pytest.approx(
        [v for v in expected if v is not None]
    )
    assert units is None or dict(count_units(column)) == units


def test_zones_are_kept():
    column = pa.chunked_array(
        [pa.array(pd.Series([pd.Timestamp("1970-01-01 05:00", tz="Asia/Kolkata")]))]
    )
    assert as_seconds(column).to_pylist() == [-1800.0]


def test_a_column_of_nothing():
    assert as_seconds(pa.chunked_array([pa.nulls(2)])).to_pylist() == [None, None]
    assert not count_units(pa.chunked_array([pa.nulls(2)]))
