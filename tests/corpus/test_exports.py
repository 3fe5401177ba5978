"""Logs as trackers, databases and spreadsheets export them: objects in objects, UTF-16, UUIDs."""

import datetime
import gzip
import io
import json
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clue_ray.corpus.check import check_events
from clue_ray.corpus.logs import jsonlines
from clue_ray.corpus.logs.jsonlines import has_key
from clue_ray.corpus.logs.reading import plan_reading
from clue_ray.corpus.profile import _find_doubtful
from clue_ray.errors import EventLogError
from clue_ray.report.profile import _id_sentences
from clue_ray.spec.specs import CorpusSpec
from tests.corpus.test_messy import NAMES, ROWS, read

INSIDE = {
    "user_id": "who.id",
    "service": "place",
    "timestamp": "what.seen.at",
    "text": "what.title",
}


def wrap(user, service, time, text):
    return {"who": {"id": user}, "place": service, "what": {"title": text, "seen": {"at": time}}}


def values(rows):
    return [[row[name] for name in NAMES] for row in rows]


PLAIN = [[user, service, float(time), text] for user, service, time, text in ROWS]


@pytest.mark.parametrize("block", [500, 16_000_000])
@pytest.mark.parametrize("dirty", [False, True], ids=["arrow", "line-by-line"])
def test_paths_into_json_objects(tmp_path, monkeypatch, block, dirty):
    monkeypatch.setattr(jsonlines, "BLOCK", block)
    lines = [wrap(int(u), s, int(t), x) for u, s, t, x in ROWS]
    if dirty:
        lines[7]["extra"] = {"who": {"id": 1}}
        lines[9] = {**lines[9], "who": {"id": str(lines[9]["who"]["id"])}}  # text next to numbers
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert values(read(CorpusSpec(events=str(tmp_path), columns=INSIDE))) == PLAIN


def test_a_missing_object_is_null_and_rejected_alone(tmp_path):
    lines = [wrap(*row) for row in ROWS]
    lines[3]["who"], lines[5]["who"], lines[8]["what"]["title"] = None, "nobody", None
    del lines[11]["who"]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = read(CorpusSpec(events=str(tmp_path), columns=INSIDE))
    assert {row["row"]: row["reason"] for row in rows if row["reason"]} == {
        3: "user_id is null or empty",
        5: "user_id is null or empty",
        8: "text is null or empty",
        11: "user_id is null or empty",
    }


@pytest.mark.parametrize("mixed", [False, True])
def test_a_key_with_a_dot_comes_before_a_path(tmp_path, mixed):
    lines = [dict(zip(["who.id", *NAMES[1:]], row, strict=True)) for row in ROWS]
    if mixed:
        del lines[4]["who.id"]
        lines[4]["who"] = {"id": "1004"}
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = read(CorpusSpec(events=str(tmp_path), columns={"user_id": "who.id"}))
    assert values(rows) == PLAIN


def test_a_field_next_to_its_whole_object(tmp_path):
    lines = [wrap(*row) for row in ROWS]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    columns = {role: name for role, name in INSIDE.items() if role != "text"}
    rows = read(CorpusSpec(events=str(tmp_path), columns=columns, text="{who} {what.title}"))
    assert rows[2]["text"] == '{"id": "1002"} item 2'


@pytest.mark.parametrize("old", [False, True], ids=["64-bit", "INT96"])
def test_paths_into_structs_of_parquet(tmp_path, old):
    lines = [wrap(*row) for row in ROWS]
    for line in lines:
        at = int(line["what"]["seen"]["at"])
        line["what"]["seen"]["at"] = datetime.datetime.fromtimestamp(at, datetime.UTC)
    lines[3]["who"] = None
    lines[5]["what"]["seen"]["at"] = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)
    table = pa.Table.from_pylist(lines)
    pq.write_table(table, tmp_path / "log.parquet", use_deprecated_int96_timestamps=old)
    if old:  # Arrow cannot write a time after 2262 in 96 bits
        lines[5]["what"]["seen"]["at"] = None
    rows = read(CorpusSpec(events=str(tmp_path), columns=INSIDE))
    good = [n for n in range(200) if n not in (3, 5)]
    assert values([rows[n] for n in good]) == [PLAIN[n] for n in good]
    assert rows[3]["reason"] == "user_id is null or empty"
    assert rows[5]["reason"]


def test_an_object_is_refused_with_the_name_of_a_field(tmp_path):
    pq.write_table(pa.Table.from_pylist([wrap(*row) for row in ROWS]), tmp_path / "log.parquet")
    with pytest.raises(EventLogError, match=r"'who' holds struct.* such as who\.id"):
        plan_reading(CorpusSpec(events=str(tmp_path), columns={**INSIDE, "user_id": "who"}))


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ({"data": [{"user_id": 1}]}, "user_id", False),
        ({"text": 'he wrote "user_id": 1'}, "user_id", False),
        ({"a": {"user_id": 1}}, "a.user_id", True),
        ({"a": {"user_id": None}}, "a.user_id", True),
        ({"a.user_id": 1}, "a.user_id", True),
        ({"a": {"user_id": 1}, "user_id": None}, "user_id", True),
    ],
)
def test_a_key_counts_where_it_is_a_key_of_the_line(line, key, expected):
    content = json.dumps({"x": 1}) + "\n" + json.dumps(line)
    assert has_key(io.BytesIO(content.encode()), key) is expected


def test_names_of_a_log_that_wraps_its_rows_are_those_that_it_has(tmp_path):
    (tmp_path / "log.json").write_text(json.dumps({"data": [dict.fromkeys(NAMES, 1)]}))
    with pytest.raises(EventLogError, match="no column 'user_id'; columns found are 'data';"):
        plan_reading(CorpusSpec(events=str(tmp_path)))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be-mark"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_utf_16_with_a_mark(tmp_path, encoding, packed, ending):
    rows = [[*row[:3], f"caf\u00e9 \U0001f600 {row[3]}"] for row in ROWS]
    frame = pd.DataFrame(rows, columns=NAMES)
    text = (
        frame.to_csv(index=False, sep="\t", lineterminator="\r\n")
        if ending == "csv"
        else frame.to_json(orient="records", lines=True, force_ascii=False)
    )
    data = text.encode("utf-16") if encoding == "utf-16" else ("\ufeff" + text).encode("utf-16-be")
    path = tmp_path / (f"log.{ending}" + ".gz" * packed)
    path.write_bytes(gzip.compress(data) if packed else data)
    assert [row["text"] for row in read(path)] == [row[3] for row in rows]


def test_a_cut_character_of_utf_16_loses_no_row(tmp_path):
    text = pd.DataFrame(ROWS, columns=NAMES).to_csv(index=False)
    (tmp_path / "log.csv").write_bytes(text.encode("utf-16")[:-3])
    assert len(read(tmp_path)) == len(ROWS)


@pytest.mark.parametrize("extension", [False, True])
def test_a_check_shows_uuids_and_unread_times(tmp_path, extension):
    users = [uuid.UUID(int=n) for n in range(200)]
    frame = pd.DataFrame(ROWS, columns=NAMES).assign(user_id=[user.bytes for user in users])
    frame.loc[3, "timestamp"] = "03/04/2023"
    type_ = pa.uuid() if extension else pa.binary(16)
    ids = pa.array([user.bytes for user in users], type_)
    table = pa.Table.from_pandas(frame.drop(columns="user_id")).append_column("user_id", ids)
    pq.write_table(table, tmp_path / "log.parquet")
    check = check_events(CorpusSpec(events=str(tmp_path)))
    assert check.logs[0].columns[0]["examples"][1] == str(users[1])
    assert "user_id=00000000-0000-0000-0000-000000000003" in str(check.logs[0].rejected)
    assert "timestamps such as '03/04/2023' cannot be read; read are seconds" in check.warnings[0]


def test_a_check_tells_of_quotes_and_encodings_and_of_numbers_as_numbers(tmp_path):
    lines = [dict(zip(NAMES, [int(u), s, int(t), x], strict=True)) for u, s, t, x in ROWS]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    log = ",".join(NAMES) + '\n1,a,1700000000,"open\n2,a,1700000000,caf\xe9\n'
    (tmp_path / "b.csv").write_bytes(log.encode("latin-1"))
    check = check_events(CorpusSpec(events=str(tmp_path / "a.jsonl"))).logs[0]
    assert [row["holds"] for row in check.columns] == [
        "whole numbers", "text", "whole numbers", "text",
    ]  # fmt: skip
    check = check_events(CorpusSpec(events=str(tmp_path / "b.csv"))).logs[0]
    assert (check.events, check.literal, check.recoded) == (2, 1, 1)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("log.csv", "1,a,1700000000,x\n2,a,1700000000,y\n", "the names of the columns must come"),
        ("log.csv", "USER_ID,service,text\n1,a,x\n", "as in user_id=USER_ID"),
        ("log.jsonl", '{"p": {"userId": 1}, "service": 1, "text": ""}', "as in user_id=p.userId"),
        ("log.json", '[{"user_id": 1}]', "jq -c"),
        ("000000_0", "1\x01a\n", "no event files .000000_0 is none"),
    ],
)
def test_what_is_missing_is_named_with_the_remedy(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(EventLogError, match=words):
        plan_reading(CorpusSpec(events=str(tmp_path)))


def test_ids_that_a_spreadsheet_rounded_are_one_warning():
    (sentence,) = _id_sentences({"doubtful_ids": {"1,23457E+11": 30, "2.5E+15": 10}})
    assert "'1,23457E+11', '2.5E+15' are numbers that a spreadsheet rounded" in sentence
    assert "40 events" in sentence


def test_rounded_ids_are_found_next_to_placeholders():
    users = pa.array(["1,23457E+11", "1.2E+15", "null", "1e5", "12E+3", "1.2345678E+11", "a"])
    found = _find_doubtful(users, np.arange(7))
    assert found == [["1,23457E+11", "0"], ["1.2E+15", "1"], ["null", "2"]]
