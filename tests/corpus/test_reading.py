"""Read logs of every format in order, with a one-sentence error for what cannot be read."""

import gzip
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clue_ray.corpus.logs import jsonlines, reading
from clue_ray.corpus.logs.encoding import decode_bytes
from clue_ray.corpus.logs.reading import plan_reading, read_part
from clue_ray.corpus.logs.schema import normalise
from clue_ray.errors import EventLogError
from clue_ray.spec.specs import CorpusSpec

FRAME = pd.DataFrame(
    {
        "user_id": [f"u{n}" for n in range(40)],
        "service": ["s", "t"] * 20,
        "timestamp": range(40),
        "text": [f'item {n}, "quoted" {"naïve ☕" if n % 3 else "&amp;"}' for n in range(40)],
        "unused": 1.5,
    }
)


def events_of(spec: CorpusSpec) -> list[dict]:
    """Read and normalise a log without Ray."""
    plan = plan_reading(spec)
    rows = []
    for part in plan.parts:
        log = plan.logs[part.log]
        for batch in read_part(part, log):
            rows += normalise(
                batch.table, log, spec, file=part.number, first_row=batch.first_row
            ).to_pylist()
    return rows


def write(frame: pd.DataFrame, path) -> None:
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, row_group_size=7)
    elif ".csv" in path.name:
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True, force_ascii=False)


@pytest.mark.parametrize(
    "name", ["log.parquet", "log.csv", "log.csv.gz", "log.jsonl", "log.ndjson.gz"]
)
def test_formats_read_alike(tmp_path, monkeypatch, name):
    monkeypatch.setattr(reading, "ROWS_PER_PART", 10)
    monkeypatch.setattr(jsonlines, "BLOCK", 200)
    write(FRAME, tmp_path / name)
    rows = events_of(CorpusSpec(events=str(tmp_path / name)))
    assert [row["text"] for row in rows] == FRAME["text"].tolist()
    assert [row["row"] for row in rows] == list(range(40))
    assert {row["reason"] for row in rows} == {None}
    assert [(row["user_id"], row["timestamp"]) for row in rows] == [
        (f"u{n}", float(n)) for n in range(40)
    ]


def test_formats_may_be_mixed_in_a_log(tmp_path):
    for n, name in enumerate(["a.parquet", "b.csv", "c.jsonl"]):
        write(FRAME.astype({"timestamp": str}).iloc[n * 10 : n * 10 + 10], tmp_path / name)
    assert [row["user_id"] for row in events_of(CorpusSpec(events=str(tmp_path)))] == [
        f"u{n}" for n in range(30)
    ]


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.jsonl"])
def test_without_a_timestamp_order_of_appearance_counts(tmp_path, monkeypatch, name):
    monkeypatch.setattr(reading, "ROWS_PER_PART", 10)
    for part in ("0", "1"):
        write(FRAME.drop(columns="timestamp"), tmp_path / f"{part}-{name}")
    times = [row["timestamp"] for row in events_of(CorpusSpec(events=str(tmp_path)))]
    assert times == sorted(times)
    assert len(set(times)) == 80
    with pytest.raises(EventLogError, match="no column 'when'"):
        plan_reading(CorpusSpec(events=str(tmp_path), columns={"timestamp": "when"}))
    with pytest.raises(EventLogError, match=r"split\.time needs event times"):
        plan_reading(CorpusSpec(events=str(tmp_path), split={"time": "2020-01-01"}))
    with pytest.raises(EventLogError, match="duplicates: drop needs event times"):
        plan_reading(CorpusSpec(events=str(tmp_path), duplicates="drop"))


def test_logs_are_joined_as_services(tmp_path):
    write(FRAME.rename(columns={"text": "query"}).drop(columns="service"), tmp_path / "search.csv")
    write(FRAME.rename(columns={"user_id": "buyer", "text": "title"}), tmp_path / "shop.parquet")
    shop = {
        "events": str(tmp_path / "shop.parquet"),
        "columns": {"user_id": "buyer"},
        "text": "{title}; {unused}",
    }
    spec = CorpusSpec(events={"search": str(tmp_path / "search.csv"), "shop": shop}, text="{query}")
    rows = events_of(spec)
    assert [row["service"] for row in rows] == ["search"] * 40 + ["shop"] * 40
    assert rows[40]["text"] == f"{FRAME['text'][0]}; 1.5"
    assert rows[40]["user_id"] == rows[0]["user_id"] == "u0"
    chosen = spec.model_copy(update={"services": ("shop",)})
    assert {row["service"] for row in events_of(chosen)} == {"shop"}


def test_ids_and_texts_keep_their_digits(tmp_path):
    frame = pd.DataFrame(
        {
            "user_id": ["007", "1e5", "NA", "2020-01-01"],
            "service": "s",
            "timestamp": "7",
            "text": "a",
        }
    )
    for name in ("log.csv", "log.jsonl", "log.parquet"):
        write(frame, tmp_path / name)
        rows = events_of(CorpusSpec(events=str(tmp_path / name)))
        assert [row["user_id"] for row in rows] == ["007", "1e5", "NA", "2020-01-01"]


def test_quoted_lines_in_csv(tmp_path):
    write(FRAME.assign(text=["two\nlines", *["x"] * 39]), tmp_path / "log.csv")
    assert events_of(CorpusSpec(events=str(tmp_path)))[0]["text"] == "two\nlines"


def test_json_of_mixed_kinds(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonlines, "SAMPLE", 80)
    rows = [{"user_id": 1, "service": "s", "timestamp": 5, "text": "a"}] * 4
    rows += [
        {
            "user_id": "guest",
            "service": "s",
            "timestamp": "1970-01-01T00:00:09",
            "text": "b",
            "more": [1],
        }
    ]
    rows += [
        {"user_id": None, "service": "s", "timestamp": 5.5, "text": "c"},
        {"user_id": True, "text": {"a": "ü"}},
    ]
    (tmp_path / "log.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    found = events_of(CorpusSpec(events=str(tmp_path)))
    assert [row["user_id"] for row in found] == ["1"] * 4 + ["guest", None, "true"]
    assert [row["timestamp"] for row in found] == [5.0] * 4 + [9.0, 5.5, None]
    assert found[-1]["text"] == '{"a": "ü"}'


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "log.parquet"])
def test_other_encodings_are_read_and_counted(tmp_path, name):
    latin = ["café".encode(), "café".encode("cp1252"), "10 €".encode("cp1252"), b"\x81"]
    if name == "log.parquet":
        table = pa.table(
            {"user_id": list("abcd"), "service": ["s"] * 4, "timestamp": range(4), "text": latin}
        )
        pq.write_table(table, tmp_path / name)
    elif name == "log.csv":
        lines = [b"a,s,%d,%s" % (n, text) for n, text in enumerate(latin)]
        (tmp_path / name).write_bytes(b"\n".join([b"user_id,service,timestamp,text", *lines]))
    else:
        lines = [
            b'{"user_id":"a","service":"s","timestamp":%d,"text":"%s"}' % (n, t)
            for n, t in enumerate(latin)
        ]
        (tmp_path / name).write_bytes(b"\n".join(lines))
    plan = plan_reading(CorpusSpec(events=str(tmp_path)))
    batches = list(read_part(plan.parts[0], plan.logs[0]))
    texts = [text for batch in batches for text in batch.table["text"].to_pylist()]
    assert texts == ["café", "café", "10 €", "\x81"]
    assert sum(batch.recoded for batch in batches) == 3


@given(st.binary())
def test_any_bytes_are_read(value):
    text, recoded = decode_bytes(value)
    assert len(text) == len(value) if recoded else text.encode() == value


def write_damaged(path, name):
    """Write a log with one error in it."""
    write(FRAME, path / "log.parquet")
    whole = (path / "log.parquet").read_bytes()
    (path / "log.parquet").unlink()
    contents = {
        "cut.parquet": whole[:-20],
        "junk.parquet": b"junk",
        "nothing.csv": b"",
        "nothing.jsonl": b"\n\n",
        "list.json": json.dumps(FRAME.to_dict("records")).encode(),
        "half.csv.gz": gzip.compress(FRAME.to_csv(index=False).encode())[:-30],
    }
    (path / name).write_bytes(contents[name])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut.parquet", r"cut\.parquet cannot be read"),
        ("junk.parquet", r"junk\.parquet cannot be read"),
        ("nothing.csv", r"Event log .* is empty"),
        ("nothing.jsonl", r"Event log .* is empty"),
        ("list.json", r"list\.json cannot be read \(line 1 holds a list"),
        ("half.csv.gz", r"half\.csv\.gz cannot be read"),
    ],
)
def test_errors_are_located(tmp_path, name, words):
    write_damaged(tmp_path, name)
    with pytest.raises(EventLogError, match=words) as error:
        events_of(CorpusSpec(events=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_broken_line_is_a_rejected_row_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonlines, "BLOCK", 300)
    lines = [json.dumps(row) for row in FRAME.to_dict("records")]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines[:33], "oops", *lines[33:]]))
    rows = events_of(CorpusSpec(events=str(tmp_path)))
    assert [row["row"] for row in rows if row["reason"]] == [33]
    assert rows[33]["reason"] == "the line is not JSON"
    assert len(rows) == 41


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.drop(columns="text"), r"no column 'text'.*b\.parquet"),
        (
            lambda f: f.drop(columns="timestamp"),
            r"b\.parquet has no column 'timestamp', but .*a\.parquet has",
        ),
    ],
)
def test_files_of_a_log_must_agree(tmp_path, change, words):
    write(FRAME, tmp_path / "a.parquet")
    write(change(FRAME), tmp_path / "b.parquet")
    with pytest.raises(EventLogError, match=words):
        plan_reading(CorpusSpec(events=str(tmp_path)))


def test_a_file_of_nothing_but_nulls_agrees_with_all(tmp_path):
    write(FRAME, tmp_path / "a.parquet")
    write(FRAME.assign(service=None), tmp_path / "b.parquet")
    assert len(events_of(CorpusSpec(events=str(tmp_path)))) == 80


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"text": "{titel}"},
            "no column 'titel'; columns found are 'user_id', 'service', 'timestamp', 'text', "
            "'unused'",
        ),
        ({"text": "{unused}"}, "'unused' holds double, not words"),
        ({"columns": {"user": "u"}}, "unknown role 'user'; did you mean 'user_id'?"),
        ({"columns": {"user_id": "author"}}, "no column 'author'"),
    ],
)
def test_columns_are_checked(tmp_path, spec, words):
    write(FRAME, tmp_path / "log.parquet")
    with pytest.raises(EventLogError) as error:
        plan_reading(CorpusSpec(events=str(tmp_path), **spec))
    assert words in str(error.value)


def test_odd_values_of_json(tmp_path):
    base = {"service": "s", "timestamp": 1, "text": "a"}
    rows = [
        {**base, "user_id": 12345678901234567890123},
        {**base, "user_id": 12345678901.0},
        {**base, "user_id": 1.5},
    ]
    lines = [json.dumps(row) for row in rows]
    lines.append(
        '{"user_id": "u", "service": "s", "timestamp": 2, "text": "half \\ud83d an emoji"}'
    )
    (tmp_path / "log.jsonl").write_bytes(
        "\n".join(lines).encode() + b'\n{"user_id": "caf\xe9 \x81", "text": "b"}'
    )
    plan = plan_reading(CorpusSpec(events=str(tmp_path)))
    batches = list(read_part(plan.parts[0], plan.logs[0]))
    users = [user for batch in batches for user in batch.table["user_id"].to_pylist()]
    assert users == ["12345678901234567890123", "12345678901", "1.5", "u", "café \x81"]
    assert batches[0].table["text"].to_pylist()[3] == "half \ufffd an emoji"
    assert sum(batch.recoded for batch in batches) == 2


def test_floats_and_integers_are_the_same_ids(tmp_path):
    for name, ids in (("a", [12345678901.0, 7.0, 2.5]), ("b", [12345678901, 7, 3])):
        frame = pd.DataFrame({"user_id": ids, "timestamp": 0, "text": "word"})
        pq.write_table(pa.Table.from_pandas(frame), tmp_path / f"{name}.parquet")
    spec = CorpusSpec(events={name: str(tmp_path / f"{name}.parquet") for name in "ab"})
    assert [row["user_id"] for row in events_of(spec)] == [
        "12345678901",
        "7",
        "2.5",
        "12345678901",
        "7",
        "3",
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pa.array([{"a": 1}]), "holds struct"),
        (pa.array([[1]]), "holds list"),
        (pa.array([5], pa.duration("s")), "holds dur"),
    ],
)
def test_columns_of_unsupported_types_are_errors(tmp_path, values, words):
    for column in ("user_id", "timestamp"):
        table = {"user_id": ["u"], "service": ["s"], "timestamp": [1], "text": ["a"]} | {
            column: values
        }
        pq.write_table(pa.table(table), tmp_path / "log.parquet")
        with pytest.raises(EventLogError, match=words):
            plan_reading(CorpusSpec(events=str(tmp_path)))


def test_texts_keep_their_spaces_and_control_characters(tmp_path):
    texts = [" lead", "trail\x1f ", "\t", "a"]
    table = pa.table(
        {"user_id": [" u "] * 4, "service": ["s"] * 4, "timestamp": [1] * 4, "text": texts}
    )
    pq.write_table(table, tmp_path / "log.parquet")
    rows = events_of(CorpusSpec(events=str(tmp_path)))
    assert [row["text"] for row in rows] == [" lead", "trail\x1f ", None, "a"]
    assert rows[0]["user_id"] == "u"


def test_a_link_to_its_own_folder_reads_no_file_twice(tmp_path):
    write(FRAME, tmp_path / "log.csv")
    (tmp_path / "again").symlink_to(tmp_path)
    assert len(events_of(CorpusSpec(events=str(tmp_path)))) == 40


def test_a_first_line_longer_than_the_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonlines, "SAMPLE", 50)
    lines = [
        json.dumps({"user_id": "u", "service": "s", "timestamp": 1, "text": "word " * n})
        for n in (99, 1)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert [len(row["text"]) for row in events_of(CorpusSpec(events=str(tmp_path)))] == [495, 5]
