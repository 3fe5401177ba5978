"""Timestamps of every kind are recognised and converted."""

from datetime import date, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clue_ray.corpus.logs.times import as_seconds, count_units
from clue_ray.errors import SpecError
from clue_ray.spec.specs import CorpusSpec


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


@pytest.mark.parametrize(
    "text",
    [
        "2023-11-14 22:13:20 UTC",
        "2023-11-14 22:13:20.000000 UTC",
        "2023-11-14 22:13:20 GMT",
        "2023-11-14 22:13:20+00",
        "2023-11-14 22:13:20 +0000 UTC",
        "2023-11-14 14:13:20.000 -0800",
        "2023-11-14 22:13:20,000",
        "2023-11-14T22:13:20.000000000Z",
        "2023-11-14T23:13:20+01:00[Europe/Paris]",
        "2023-11-14 17:13:20 America/New_York",
        "20231114T221320Z",
        "2023/11/14 22:13:20",
        "2023-318T22:13:20",
        "Tue, 14 Nov 2023 22:13:20 +0000",
        "Tue, 14 Nov 2023 14:13:20 PST",
        "Tue Nov 14 22:13:20 UTC 2023",
        "Tue Nov 14 2023 22:13:20 GMT+0000 (Coordinated Universal Time)",
        "Nov 14, 2023 @ 22:13:20.000",
        "November 14, 2023 10:13:20 PM",
        "14-NOV-2023 22:13:20",
        "14/Nov/2023:22:13:20 +0000",
        "[14/Nov/2023:22:13:20 +0000]",
        '{"$date": "2023-11-14T22:13:20Z"}',
        '{"$date": {"$numberLong": "1700000000000"}}',
        "/Date(1700000000000)/",
    ],
)
def test_forms_that_databases_and_servers_write(text):
    near = pa.chunked_array([pa.array([text, "2023-11-14 22:13:20"])])
    assert as_seconds(near).to_pylist() == [1_700_000_000.0] * 2


@pytest.mark.parametrize(
    "text",
    ["03/04/2023", "14.11.2023 10:00", "2023-02-30", "2023-13-01", "now", "today", "infinity", "x"],
)
def test_what_is_ambiguous_or_no_time_is_not_read(text):
    assert as_seconds(pa.chunked_array([[text]])).to_pylist() == [None]


def test_far_off_times_do_not_wrap_and_spoil_no_other():
    texts = ["9999-12-31 00:00:00", "0001-01-01T00:00:00Z", "1600-01-01", "2023-11-14T24:00:00"]
    found = as_seconds(pa.chunked_array([[*texts, "1970-01-02"]])).to_pylist()
    assert found == [253402214400.0, -62135596800.0, -11676096000.0, 1700006400.0, 86400.0]


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)), st.integers(-14 * 60, 14 * 60))
def test_every_form_of_a_time_is_the_same_time(time, minutes):
    time = time.replace(microsecond=0)
    expected = (time - datetime(1970, 1, 1)).total_seconds()
    local = time + timedelta(minutes=minutes) if 2 < time.year < 9998 else time
    minutes = minutes if 2 < time.year < 9998 else 0
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    stamp = local.isoformat(" ")
    forms = [
        f"{stamp}{sign}{hours:02d}:{rest:02d}",
        f"{stamp} {sign}{hours:02d}{rest:02d}",
        f"{time.isoformat(' ')} UTC",
        f"{time.day:02d}/{time:%b}/{time.year:04d}:{time:%H:%M:%S} +0000",
        f"{time:%a}, {time.day} {time:%b} {time.year:04d} {time:%H:%M:%S} GMT",
    ]
    found = as_seconds(pa.chunked_array([forms])).to_pylist()
    assert found == pytest.approx([expected] * len(forms), abs=1e-5)


def test_a_given_format_is_the_only_one_that_counts():
    texts = ["03/04/2023 10:00", "2023-04-03", None, "31/12/9999 00:00"]
    found = as_seconds(pa.chunked_array([texts]), "%d/%m/%Y %H:%M").to_pylist()
    assert found == [1680516000.0, None, None, 253402214400.0]
    days = pa.chunked_array([pa.array([20231114, None])])
    assert as_seconds(days, "%Y%m%d").to_pylist() == [1699920000.0, None]


@pytest.mark.parametrize("pattern", ["dd/MM/yyyy", "%H:%M", "%d/%m", "%Q", ""])
def test_a_format_must_describe_a_date(pattern):
    with pytest.raises(SpecError, match=r"timestamp_format.*does not describe a date"):
        CorpusSpec.parse({"events": "x", "timestamp_format": pattern}, "corpus")


def test_zones_are_kept():
    column = pa.chunked_array(
        [pa.array(pd.Series([pd.Timestamp("1970-01-01 05:00", tz="Asia/Kolkata")]))]
    )
    assert as_seconds(column).to_pylist() == [-1800.0]


def test_a_column_of_nothing():
    assert as_seconds(pa.chunked_array([pa.nulls(2)])).to_pylist() == [None, None]
    assert not count_units(pa.chunked_array([pa.nulls(2)]))
