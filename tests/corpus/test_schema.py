"""Normalise rows of a log to one schema; every unusable row has a reason."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clue_ray.corpus.logs.schema import build_text, logs_of, normalise, template_fields
from clue_ray.errors import EventLogError, SpecError
from clue_ray.spec.specs import CorpusSpec

LOG = pa.table(
    {
        "author": ["a", "b", None, "d", " ", "f", "g", "h"],
        "service": ["x", "y", "x", "x", "y", None, "x", "x"],
        "when": [
            "2020-01-01",
            "2020-01-01T00:00:01",
            "2020-01-02",
            "soon",
            "2020-01-03",
            "2020-01-04",
            "2200-01-01",
            "0",
        ],
        "title": ["tea", None, "pot", "cup", "jug", "mug", "urn", "long" * 9],
        "price": [1.5, 2.0, 3.0, None, 5.0, 6.0, 7.0, 8.0],
    }
)
SPEC = CorpusSpec(
    events="x",
    columns={"user_id": "author", "timestamp": "when"},
    text="{title}; {price}",
    max_text_length=20,
)


def normal(table: pa.Table, spec: CorpusSpec) -> pa.Table:
    return normalise(table, logs_of(spec)[0], spec)


def test_rows_keep_their_reason():
    rows = normal(LOG, SPEC).to_pylist()
    assert [row["reason"] for row in rows] == [
        None,
        None,
        "user_id is null or empty",
        "timestamp cannot be read",
        "user_id is null or empty",
        "service is null or empty",
        "timestamp is after the year 2100",
        "text is longer than 20 characters",
    ]
    assert [row["text"] for row in rows[:6]] == [
        "tea; 1.5",
        "; 2",
        "pot; 3",
        "cup;",
        "jug; 5",
        "mug; 6",
    ]
    assert rows[0]["timestamp"] == 1577836800
    assert rows[1]["timestamp"] == 1577836801


def test_services_are_selected_and_rows_without_one_are_kept():
    rows = normal(LOG, SPEC.model_copy(update={"services": ("x",)})).to_pylist()
    assert [row["service"] for row in rows] == ["x", "x", "x", None, "x", "x"]
    assert [row["row"] for row in rows] == [0, 2, 3, 5, 6, 7]


def test_dates_written_as_numbers_are_rejected():
    table = pa.table(
        {"user_id": ["a"], "service": ["s"], "timestamp": [20240131123000], "text": ["t"]}
    )
    assert normal(table, CorpusSpec(events="x"))["reason"].to_pylist() == [
        "timestamp is after the year 2100"
    ]


@given(
    st.lists(
        st.tuples(st.none() | st.text(), st.none() | st.integers(-5, 5)), min_size=1, max_size=5
    )
)
def test_template_equals_python_format(rows):
    table = pa.table(
        {
            "a": pa.array([r[0] for r in rows], pa.string()),
            "b": pa.array([r[1] for r in rows], pa.int64()),
        }
    )
    found = build_text(table, logs_of(CorpusSpec(events="x", text="{a} / {b}"))[0]).to_pylist()
    for text, (a, b) in zip(found, rows, strict=True):
        parts = [trim(a or ""), "" if b is None else str(b)]
        assert text == (trim(f"{parts[0]} / {parts[1]}") if any(parts) else None)


def trim(text: str) -> str:
    """Trim as Arrow does: Unicode white space, but not the control characters Python counts as
    such."""
    import pyarrow.compute as pc

    return pc.utf8_trim_whitespace(pa.scalar(text)).as_py()


@pytest.mark.parametrize("template", ["{", "plain", "{}", "{a"])
def test_malformed_template(template):
    with pytest.raises(EventLogError, match="Text template"):
        template_fields(template)


def test_numbers_keep_their_digits_as_ids():
    table = pa.table(
        {"user_id": np.arange(2), "service": ["s"] * 2, "timestamp": [0, 0], "text": ["a", "b"]}
    )
    assert normal(table, CorpusSpec(events="x"))["user_id"].to_pylist() == ["0", "1"]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"events": {}}, "events is {}; give files"),
        ({"events": {"search": {"event": "x"}}}, "unknown key"),
        ({"events": {"search": 3}}, "events"),
        ({"events": {" ": "x.csv"}}, "names a service ' '"),
        (
            {"events": "x", "tokenizer": "t.json", "vocab_size": 300},
            "both tokenizer and vocab_size",
        ),
        ({"events": "x", "duplicates": "maybe"}, "duplicates"),
        ({"events": "x", "split": {"time": "when"}}, "split.time"),
        ({"events": 5}, "events"),
    ],
)
def test_invalid_specs(document, words):
    with pytest.raises(SpecError) as error:
        CorpusSpec.parse(document, "corpus.yaml")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
