"""Tables of users' properties, in the forms in which other tools write them."""

import datetime
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clue_ray.errors import SpecError
from clue_ray.transfer.tasks.attributes import user_values
from clue_ray.transfer.tasks.spec import AttributeSpec

USERS = [str(1000 + n) for n in range(60)]
INCOME = [10.25 + n for n in range(60)]
FRAME = pd.DataFrame({"user_id": USERS, "income": INCOME})


def values(path):
    found = user_values(AttributeSpec(table=str(path), column="income", user="user_id"))
    return dict(found.items())


def write(path, frame=FRAME, **options):
    frame.to_csv(path, index=False, **options)
    return path


@pytest.mark.parametrize(
    ("separator", "decimal"), [(",", "."), (";", "."), (";", ","), ("\t", ".")]
)
@pytest.mark.parametrize("name", ["users.csv", "USERS.CSV.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_numbers_of_text_files(tmp_path, separator, decimal, name, encoding):
    options = {"sep": separator, "decimal": decimal, "encoding": encoding}
    path = write(tmp_path / name, **options)
    assert values(path) == dict(zip(USERS, INCOME, strict=True))


def test_a_column_with_one_text_among_decimal_commas_is_not_numbers(tmp_path):
    texts = [f"{n},5" for n in range(59)] + ["n/a"]
    path = write(tmp_path / "users.csv", FRAME.assign(income=texts), sep=";")
    assert values(path) == dict(zip(USERS, texts, strict=True))


def test_gaps_among_decimal_commas_are_missing(tmp_path):
    texts = [f"{n},5" for n in range(59)] + [""]
    path = write(tmp_path / "users.csv", FRAME.assign(income=texts), sep=";")
    assert values(path)["1002"] == 2.5
    assert np.isnan(values(path)["1059"])


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(USERS).cast(pa.string_view()),
        pa.array(map(float, USERS)),
        pa.array(USERS, "binary"),
    ],
    ids=["view", "float", "binary"],
)
def test_decimals_and_types_of_keys(tmp_path, ids):
    income = pa.array([f"{value:.2f}" for value in INCOME]).cast(pa.decimal128(10, 2))
    pq.write_table(pa.table({"user_id": ids, "income": income}), tmp_path / "u.PARQUET")
    assert values(tmp_path / "u.PARQUET") == dict(zip(USERS, INCOME, strict=True))


def test_uuids_as_keys(tmp_path):
    users = [uuid.UUID(int=n) for n in range(60)]
    ids = pa.array([user.bytes for user in users], pa.uuid())
    pq.write_table(pa.table({"user_id": ids, "income": INCOME}), tmp_path / "u.parquet")
    assert values(tmp_path / "u.parquet") == dict(zip(map(str, users), INCOME, strict=True))


def test_separated_thousands(tmp_path):
    path = write(tmp_path / "u.csv", FRAME.assign(income=[f"{100_008 + n:,}" for n in range(60)]))
    assert values(path)["1001"] == 100_009


@pytest.mark.parametrize(
    ("income", "words"),
    [
        ([f"{n}.5" for n in range(59)] + ["-"], "holds numbers, and '-' in row 59; give numbers"),
        ([datetime.date(2023, 1, 1)] * 60, "holds date32"),
        ([[1.0]] * 60, "holds list"),
    ],
)
def test_what_is_no_number_is_refused_in_a_sentence(tmp_path, income, words):
    pq.write_table(pa.table({"user_id": USERS, "income": income}), tmp_path / "u.parquet")
    with pytest.raises(SpecError, match=words):
        values(tmp_path / "u.parquet")
