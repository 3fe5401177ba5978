"""Event logs: every format to one schema; every mistake named."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clue_ray.corpus.events import (
    as_seconds,
    build_text,
    check_columns,
    check_log,
    find_files,
    normalise,
    read_schema,
    template_fields,
)
from clue_ray.errors import EventLogError
from clue_ray.spec import CorpusSpec

LOG = pa.table(
    {
        "author": ["a", "b", None, "d", " ", "f"],
        "service": ["x", "y", "x", "x", "y", None],
        "when": ["2020-01-01", "2020-01-01T00:00:01", "2020-01-02", "soon", "2020-01-03", "2020-01-04"],
        "title": ["tea", None, "pot", "cup", "jug", "mug"],
        "price": [1.5, 2.0, 3.0, None, 5.0, 6.0],
    }
)
SPEC = CorpusSpec(events="x", columns={"user_id": "author", "timestamp": "when"}, text="{title}; {price}")


def test_rows_keep_their_reason():
    rows = normalise(LOG, SPEC).to_pylist()
    assert [row["reason"] for row in rows] == [
        None,
        None,
        "user_id is null or empty",
        "timestamp cannot be read",
        "user_id is null or empty",
        "service is null or empty",
    ]
    assert [row["text"] for row in rows] == ["tea; 1.5", "; 2", "pot; 3", "cup;", "jug; 5", "mug; 6"]
    assert rows[0]["timestamp"] == 1577836800 and rows[1]["timestamp"] == 1577836801


def test_services_are_chosen_and_bad_ones_kept_for_the_count():
    rows = normalise(LOG, SPEC.model_copy(update={"services": ("x",)})).to_pylist()
    assert [row["service"] for row in rows] == ["x", "x", "x", None]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([10, 20], [10.0, 20.0]),
        ([1.5, None], [1.5, None]),
        (
            [1_600_000_000_123_456_789, 1_600_000_000_000, 1_600_000_000],
            [1_600_000_000.1234567, 1_600_000_000.0, 1_600_000_000.0],
        ),
        ([pd.Timestamp("1970-01-02"), None], [86400.0, None]),
        (["1970-01-01T00:00:10Z", "never"], [10.0, None]),
    ],
)
def test_timestamps(values, expected):
    found = as_seconds(pa.chunked_array([pa.array(values)])).to_pylist()
    assert [value is None for value in found] == [value is None for value in expected]
    assert [v for v in found if v is not None] == pytest.approx([v for v in expected if v is not None])


@given(st.lists(st.tuples(st.none() | st.text(), st.none() | st.integers(-5, 5)), min_size=1, max_size=5))
def test_template_equals_python_format(rows):
    table = pa.table(
        {"a": pa.array([r[0] for r in rows], pa.string()), "b": pa.array([r[1] for r in rows], pa.int64())}
    )
    found = build_text(table, CorpusSpec(events="x", text="{a} / {b}")).to_pylist()
    for text, (a, b) in zip(found, rows, strict=True):
        parts = [trim(a or ""), "" if b is None else str(b)]
        assert text == (trim(f"{parts[0]} / {parts[1]}") if any(parts) else None)


def trim(text: str) -> str:
    """Trim as Arrow does: Unicode white space, but not the control characters Python counts as such."""
    import pyarrow.compute as pc

    return pc.utf8_trim_whitespace(pa.scalar(text)).as_py()


@pytest.mark.parametrize("template", ["{", "plain", "{}", "{a"])
def test_malformed_template(template):
    with pytest.raises(EventLogError, match="Text template"):
        template_fields(template)


def test_files_of_three_formats_read_alike(tmp_path):
    frame = pd.DataFrame({"user_id": ["u", "v"], "service": ["s", "s"], "timestamp": [1, 2], "text": ["a b", "c"]})
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "log.parquet")
    frame.to_csv(tmp_path / "log.csv", index=False)
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")))
    for name in ("log.parquet", "log.csv", "log.jsonl"):
        files = find_files(str(tmp_path / name))
        schema = read_schema(files[0])
        check_columns(schema, CorpusSpec(events="x"))
        assert schema.names == ["user_id", "service", "timestamp", "text"]


def test_folder_and_glob(tmp_path):
    for name in ("b.csv", "a.csv", "notes.txt"):
        (tmp_path / name).write_text("user_id,service,timestamp,text\n")
    assert [f[-5:] for f in find_files(str(tmp_path))] == ["a.csv", "b.csv"]
    assert find_files(str(tmp_path / "*.csv")) == find_files(str(tmp_path))
    (tmp_path / "c.parquet").write_bytes(b"")
    with pytest.raises(EventLogError, match="mixes csv, parquet"):
        find_files(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.parquet", None, "does not exist"),
        ("log.xlsx", b"x", "ends in '.xlsx'"),
        ("log.parquet", b"junk", "cannot be read"),
        ("log.csv", b"", "cannot be read"),
    ],
)
def test_unusable_files(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(EventLogError, match=words) as error:
        read_schema(find_files(str(tmp_path / name))[0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"text": "{titel}"},
            "no column 'titel'; columns found are 'user_id', 'service', 'timestamp', 'title', 'price'",
        ),
        ({"text": "{price}"}, "'price' holds double, not words"),
        ({"columns": {"user": "u"}, "text": "{title}"}, "unknown role 'user'; did you mean 'user_id'?"),
        ({"columns": {"user_id": "author"}, "text": "{title}"}, "no column 'author'"),
    ],
)
def test_columns_are_checked(spec, words):
    names = {"user_id": "string", "service": "string", "timestamp": "int64", "title": "string", "price": "float64"}
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in names.items()])
    with pytest.raises(EventLogError) as error:
        check_columns(schema, CorpusSpec(events="x", **spec))
    assert words in str(error.value)


def test_numbers_keep_their_digits_as_ids():
    table = pa.table({"user_id": np.arange(2), "service": ["s"] * 2, "timestamp": [0, 0], "text": ["a", "b"]})
    assert normalise(table, CorpusSpec(events="x"))["user_id"].to_pylist() == ["0", "1"]


def test_every_file_of_a_log_is_checked(tmp_path):
    pd.DataFrame({"user_id": ["u"], "service": ["s"], "timestamp": [1], "text": ["a"]}).to_parquet(
        tmp_path / "a.parquet"
    )
    pd.DataFrame({"user_id": ["u"], "service": ["s"], "timestamp": [1]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(EventLogError, match=r"no column 'text'.*b\.parquet"):
        check_log(CorpusSpec(events=str(tmp_path)))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(EventLogError, match=r"b\.parquet cannot be read"):
        check_log(CorpusSpec(events=str(tmp_path)))
