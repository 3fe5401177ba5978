"""Messy logs: every line of a file is an event or a rejected row, and nothing vanishes."""

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import random
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clue_ray.corpus.logs import csv_files, jsonlines
from clue_ray.corpus.logs.csv_files import read_csv
from clue_ray.corpus.logs.reading import plan_reading, read_part
from clue_ray.corpus.logs.schema import normalise
from clue_ray.errors import EventLogError
from clue_ray.spec.specs import CorpusSpec

NAMES = ["user_id", "service", "timestamp", "text"]
ROWS = [[f"{1000 + n}", "ab"[n % 2], f"{1_700_000_000 + n}", f"item {n}"] for n in range(200)]


def read(spec):
    """Return the rows of a log, after checking that they add up to its lines."""
    if not isinstance(spec, CorpusSpec):
        spec = CorpusSpec(events=str(spec))
    plan = plan_reading(spec)
    rows, counted, other = [], 0, 0
    for part in plan.parts:
        log = plan.logs[part.log]
        for batch in read_part(part, log):
            counted, other = counted + batch.lines, other + batch.other_lines
            rows += normalise(
                batch.table, log, spec, file=part.number, first_row=batch.first_row
            ).to_pylist()
    assert counted - other == len(rows)
    return rows


def write_csv(path, rows, separator=",", names=NAMES, **options):
    lines = [separator.join(row) for row in [names, *rows]]
    path.write_text("\n".join(lines) + "\n", **options)
    return path


@pytest.mark.parametrize("places", [[50], [50, 120], [50, 51, 52], [199], [0]])
@pytest.mark.parametrize("block", [300, 16_000_000])
def test_an_unclosed_quote_swallows_no_row(tmp_path, monkeypatch, places, block):
    monkeypatch.setattr(csv_files, "BLOCK", block)
    monkeypatch.setattr(csv_files, "HEADER", 50)
    rows = [list(row) for row in ROWS]
    for place in places:
        rows[place][3] = f'"best lamp {place}'
    found = read(write_csv(tmp_path / "log.csv", rows))
    assert [row["text"] for row in found] == [row[3] for row in rows]


def test_a_quote_further_down_does_not_close_an_open_one(tmp_path):
    rows = [list(row) for row in ROWS]
    rows[50][3], rows[70][3] = '"best lamp', 'monitor 27"'
    found = read(write_csv(tmp_path / "log.csv", rows))
    assert [row["text"] for row in found] == [row[3] for row in rows]
    quoted = [[f'"{value}"' for value in row] for row in ROWS]
    quoted[50][3] = '"best lamp'
    found = read(write_csv(tmp_path / "quoted.csv", quoted))
    assert len(found) == 200
    assert found[50]["text"] == '"best lamp'
    assert found[51]["text"] == "item 51"


def test_escaped_quotes_and_several_lines(tmp_path):
    rows = [list(row) for row in ROWS[:4]]
    rows[0][3] = r'"say \"hi\", please"'
    rows[1][3] = '"one, and\ntwo ""three""\n\nfour"'
    found = read(write_csv(tmp_path / "log.csv", rows))
    assert [row["text"] for row in found] == [
        'say "hi", please', 'one, and\ntwo "three"\n\nfour', "item 2", "item 3",
    ]  # fmt: skip


def test_a_quoted_field_may_be_longer_than_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "BLOCK", 100)
    monkeypatch.setattr(csv_files, "HEADER", 50)
    long = "word,\n" * 400
    rows = [[*row[:3], f'"{long}{n}"'] for n, row in enumerate(ROWS[:3])]
    found = read(write_csv(tmp_path / "log.csv", rows))
    assert [row["text"] for row in found] == [f"{long}{n}" for n in range(3)]


def test_ragged_and_cut_lines_are_rejected_with_their_place(tmp_path):
    rows = [list(row) for row in ROWS]
    rows[50].append("more")
    rows[60] = ["1"]
    found = read(write_csv(tmp_path / "log.csv", rows))
    assert {row["row"]: row["reason"] for row in found if row["reason"]} == {
        50: "the line has 5 fields, and the header 4",
        60: "the line has 1 fields, and the header 4",
    }
    lines = [json.dumps(dict(zip(NAMES, row, strict=True))) for row in ROWS]
    odd = ["[1]", "7", lines[0][:-9], lines[0] * 2, f"{lines[0]}, {lines[1]}"]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, *odd]))
    found = read(tmp_path / "log.jsonl")
    assert [row["reason"] for row in found[200:]] == [
        "the line holds a list, not an object",
        "the line holds a number, not an object",
        "the line is not JSON",
        *["the line holds 2 JSON values, not one object"] * 2,
    ]


CELL = st.one_of(
    st.text(st.sampled_from('ab1 ",;\t\u00e9'), max_size=6),
    st.text(st.sampled_from('ab1 "\n\r'), max_size=6),
)
"""Separators and line ends in one cell may look like rows of the file."""


@settings(max_examples=150)
@example([("1", "\r1", ",")], 20, False)  # the comma of a cell is no third column
@given(
    st.lists(st.tuples(CELL, CELL, CELL), max_size=12), st.sampled_from([20, 1000]), st.booleans()
)
def test_well_formed_csv_equals_a_plain_reader(rows, block, quote_all):
    rows = [row for row in rows if any(row)]
    text = io.StringIO()
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator="\r\n", quoting=quoting).writerows([("a", "b", "c"), *rows])
    found = list_rows(text.getvalue().encode(), block)
    assert found == [tuple(value.encode() for value in row) for row in rows]


@settings(max_examples=300)
@given(st.binary(max_size=300), st.sampled_from([20, 1000]))
def test_any_bytes_as_csv_add_up(data, block):
    list_rows(b"a,b,c\n" + data, block)


@settings(max_examples=200)
@example("111111111111111111\r\r\n", 5)  # a block of the file ends between the CRs
@given(st.text(st.sampled_from('a1",\n\r'), max_size=80), st.sampled_from([5, 20, 1000]))
def test_any_quotes_add_up(text, block):
    list_rows(b"a,b,c\n" + text.encode(), block)


def list_rows(data, block):
    """Read CSV bytes in small blocks, and check that the lines add up."""
    before = csv_files.BLOCK, csv_files.HEADER
    csv_files.BLOCK, csv_files.HEADER = block, 20
    try:
        blocks = list(read_csv(io.BytesIO(data), ["a", "b", "c"], ","))
    finally:
        csv_files.BLOCK, csv_files.HEADER = before
    rows = [row for one in blocks for row in zip(*one.table.to_pydict().values(), strict=True)]
    assert sum(b.lines - b.other_lines for b in blocks) == len(rows)
    endings = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    ends = endings.count(b"\n") + (not endings.endswith(b"\n"))
    assert sum(b.lines for b in blocks) == ends
    return rows


@pytest.mark.parametrize("separator", [";", "\t", "|", "\x01"])
def test_separators_are_found(tmp_path, separator):
    plan = plan_reading(CorpusSpec(events=str(write_csv(tmp_path / "log.csv", ROWS, separator))))
    assert len(plan.separators) == 1
    assert plan.separators[0][0] != "comma"
    assert [row["text"] for row in read(tmp_path / "log.csv")] == [row[3] for row in ROWS]


def test_a_given_separator_and_the_line_of_excel(tmp_path):
    path = write_csv(tmp_path / "log.csv", ROWS, "~")
    assert len(read(CorpusSpec(events=str(path), separator="~"))) == 200
    other = tmp_path / "excel.csv"
    other.write_text("sep=;\n" + write_csv(tmp_path / "log.csv", ROWS, ";").read_text())
    assert [row["user_id"] for row in read(other)] == [row[0] for row in ROWS]


def test_files_of_a_log_may_differ(tmp_path):
    frame = pd.DataFrame(ROWS, columns=NAMES).astype({"user_id": int, "timestamp": int})
    frame[:50].assign(brand="x").to_parquet(tmp_path / "a.parquet")
    nulled = frame[50:100].assign(user_id=frame.user_id[50:100].astype(float))
    nulled.loc[60, "user_id"] = np.nan
    nulled.to_parquet(tmp_path / "b.parquet")
    frame[100:150][NAMES[::-1]].to_csv(tmp_path / "c.csv", index=False, sep=";")
    times = pd.to_datetime(frame.timestamp[150:], unit="s").astype(str)
    frame[150:].assign(timestamp=times).to_json(tmp_path / "d.jsonl", orient="records", lines=True)
    (tmp_path / "e.csv").write_text("")
    (tmp_path / "f.jsonl").write_text("\n")
    rows = read(CorpusSpec(events=str(tmp_path), text="{brand} {text}"))
    assert [row["reason"] for row in rows].count(None) == 199
    good = [row for row in rows if not row["reason"]]
    assert {row["user_id"] for row in good} == {str(u) for u in frame.user_id if u != 1060}
    assert {row["timestamp"] for row in good} <= {float(t) for t in frame.timestamp}
    plan = plan_reading(CorpusSpec(events=str(tmp_path), text="{brand} {text}"))
    assert len(plan.empty_files) == 2


def test_a_key_that_comes_late_is_empty_before(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonlines, "SAMPLE", 500)
    monkeypatch.setattr(jsonlines, "BLOCK", 2000)
    lines = [dict(zip(NAMES, row, strict=True)) for row in ROWS]
    lines[190]["brand"] = "acme"
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    rows = read(CorpusSpec(events=str(path), text="{brand}; {text}"))
    assert rows[0]["text"] == "; item 0"
    assert rows[190]["text"] == "acme; item 190"
    with pytest.raises(EventLogError, match="no column 'colour'"):
        plan_reading(CorpusSpec(events=str(path), text="{colour}; {text}"))


def pack(data, ending):
    if ending == ".zip":
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("log.csv", data)
        return stream.getvalue()
    if ending in (".zst", ".lz4"):
        return pa.Codec({".zst": "zstd"}.get(ending, "lz4")).compress(data, asbytes=True)
    return {".gz": gzip, ".GZ": gzip, ".bz2": bz2, ".xz": lzma}[ending].compress(data)


@pytest.mark.parametrize("ending", [".gz", ".GZ", ".bz2", ".xz", ".zip", ".zst", ".lz4"])
def test_packed_files(tmp_path, ending):
    data = write_csv(tmp_path / "plain.csv", ROWS).read_bytes()
    packed = pack(data, ending)
    if ending in (".gz", ".bz2", ".zst"):
        packed = pack(data[:1000], ending) + pack(data[1000:], ending)  # several members
    (tmp_path / f"log.CSV{ending}").write_bytes(packed)
    assert len(read(tmp_path / f"log.CSV{ending}")) == 200
    (tmp_path / f"cut.csv{ending}").write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(EventLogError, match="cannot be read"):
        read(tmp_path / f"cut.csv{ending}")


def test_packing_is_known_by_the_first_bytes(tmp_path):
    data = write_csv(tmp_path / "plain.csv", ROWS).read_bytes()
    (tmp_path / "log.csv").write_bytes(gzip.compress(data))
    (tmp_path / "log.csv.gz").write_bytes(data)
    assert len(read(tmp_path / "log.csv")) == len(read(tmp_path / "log.csv.gz")) == 200


def test_old_times_of_parquet_do_not_wrap(tmp_path):
    times = pa.array([1_700_000_000_000_000, 253402214400_000_000, None, -62135596800_000_000])
    table = pa.table({"user_id": list("abcd"), "service": ["s"] * 4, "text": ["a"] * 4,
                      "timestamp": times.cast(pa.timestamp("us"))})  # fmt: skip
    pq.write_table(table, tmp_path / "log.parquet", use_deprecated_int96_timestamps=True)
    rows = read(tmp_path / "log.parquet")
    assert [row["timestamp"] for row in rows] == [1.7e9, 253402214400.0, None, -62135596800.0]
    assert rows[1]["reason"] == "timestamp is after the year 2100"


def test_missing_values_in_templates_are_empty(tmp_path):
    columns = {
        "user_id": ["a", "nan", "c"],
        "service": ["s"] * 3,
        "timestamp": [1, 2, 3],
        "text": ["tea", "tea", "tea"],
        "price": [1.5, 2.0, float("nan")],
    }
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "log.parquet")
    rows = read(CorpusSpec(events=str(tmp_path), text="{text}; {price}"))
    assert [row["text"] for row in rows] == ["tea; 1.5", "tea; 2", "tea;"]
    assert [row["reason"] for row in rows] == [None, "user_id is null or empty", None]


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_in_the_middle_is_rejected(tmp_path, timed, mark):
    frame = pd.DataFrame(ROWS, columns=NAMES)
    text = (frame if timed else frame.drop(columns="timestamp")).to_csv(index=False)
    (tmp_path / "log.csv").write_text(text + mark + text)
    rows = read(tmp_path / "log.csv")
    assert [row["reason"] for row in rows if row["reason"]] == ["the row repeats the header"]
    spec = CorpusSpec(events=str(tmp_path), text="{service}: {text}")
    assert [row["reason"] for row in read(spec)].count("the row repeats the header") == 1


@pytest.mark.parametrize("packed", ["parquet", "utf-16-le"])
def test_a_csv_file_that_is_not_text_is_named(tmp_path, packed):
    frame, path = pd.DataFrame(ROWS, columns=NAMES), tmp_path / "log.csv"
    if packed == "parquet":
        frame.to_parquet(path)
    else:
        path.write_text(frame.to_csv(), encoding=packed)
    with pytest.raises(EventLogError, match="UTF-16 or a binary format such as Parquet"):
        read(path)


def write_frame(frame, path):
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "log.parquet"])
def test_mutated_files_give_a_sentence_or_rows_that_add_up(tmp_path, name):
    frame = pd.DataFrame(ROWS, columns=NAMES)
    path = tmp_path / name
    write_frame(frame, path)
    whole, draw, sentences = path.read_bytes(), random.Random(0), []
    for _ in range(200):
        data = bytearray(whole)
        kind = draw.choice(["cut", "flip", "swap", "rename"])
        if kind == "rename":
            column, other = draw.choice(NAMES), draw.choice(["other", "Text", "a,b", ""])
            write_frame(frame.rename(columns={column: other}), path)
            # A log without timestamps is in order of appearance; no other column may be missing.
            with (
                contextlib.nullcontext() if column == "timestamp" else pytest.raises(EventLogError)
            ):
                assert len(read(path)) == len(ROWS)
            continue
        if kind == "cut":
            data = data[: draw.randrange(len(data))]
        elif kind == "flip":
            for _ in range(draw.randrange(1, 6)):
                data[draw.randrange(len(data))] = draw.randrange(256)
        else:
            lines = bytes(data).split(b"\n")
            draw.shuffle(lines)
            data = bytearray(b"\n".join(lines))
        path.write_bytes(data)
        try:
            read(path)
        except EventLogError as error:
            sentences.append(str(error))
    assert not any("\n" in sentence for sentence in sentences)
