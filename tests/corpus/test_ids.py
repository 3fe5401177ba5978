"""The same id is the same text, whatever type a file stores it in."""

import uuid
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clue_ray.corpus.logs.ids import as_ids, fold_id
from clue_ray.corpus.logs.numbers import as_number, find_exception


def ids(values, type_=None):
    return as_ids(pa.chunked_array([pa.array(values, type_)])).to_pylist()


@given(st.integers(-(2**63), 2**63 - 1))
def test_integers_are_one_id_in_every_type(number):
    expected = [str(number)]
    assert ids([number], pa.int64()) == expected
    assert ids([Decimal(number)], pa.decimal128(38, 4)) == expected
    assert ids([f"{number}"]) == ids([f"{number}.0"]) == ids([f" {number}.000 "]) == expected
    if abs(number) <= 2**53:
        assert ids([float(number)], pa.float64()) == expected
        assert ids([repr(float(number))]) == expected


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_whole_float_is_one_id_as_number_and_as_text(number):
    if number == int(number):
        assert ids([number]) == ids([f"{number!r}"]) == ids([str(int(number))])


@pytest.mark.parametrize(
    "text", ["007", "007.0", "1e5", "1E5", "2.50", "v1.0", "12345678901234567890123", "NA", "null"]
)
def test_text_that_is_no_plain_number_stays(text):
    assert ids([text]) == [text]


def test_large_floats_of_other_programs():
    assert ids(["1.2345678E7", "1e+16", "1.2345678901234568e+16", "1.5E-3"]) == [
        "12345678",
        "10000000000000000",
        "12345678901234568",
        "1.5E-3",
    ]
    assert ids([1e20]) == ["100000000000000000000"]


def test_missing_values_are_null():
    assert ids(["NaN", "nan", "<NA>", r"\N", "NaT", "Nan"]) == [None] * 5 + ["Nan"]
    assert ids([float("nan"), float("inf"), 1.0]) == [None, None, "1"]


def test_wrapped_and_binary_ids():
    assert ids(['{"$oid": "507f1f77bcf86cd799439011"}', '{"$numberLong": "7"}']) == [
        "507f1f77bcf86cd799439011",
        "7",
    ]
    one = uuid.UUID(int=5)
    assert ids([one.bytes], pa.binary(16)) == [str(one)]


def test_forms_fold_together():
    forms = ["Anna", "anna ", "AN NA", "007", "7", "7.0", "2.50", "2.5", "caf\u00e9", "cafe\u0301"]
    assert fold_id(pa.array(forms)).to_pylist() == [
        *["anna"] * 3, *["7"] * 3, "2.5", "2.5", "caf\u00e9", "caf\u00e9",
    ]  # fmt: skip


def test_numbers():
    texts = ["1", "-2.5", "100,008", "1,234.5", "1e3", " 7 ", "007", "1,5", "-", "", "12-3"]
    assert [as_number(t) for t in texts] == [1, -2.5, 100008, 1234.5, 1000, 7, *[None] * 5]
    assert find_exception([*map(str, range(30)), "-"]) == "-"
    assert find_exception(["a", "b", "3"]) is None
