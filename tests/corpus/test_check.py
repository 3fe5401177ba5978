"""`clue-ray prepare --check`: a sample shows how a log will be read, without Ray."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from typer.testing import CliRunner

from clue_ray.cli.main import app
from clue_ray.corpus import check as module
from clue_ray.corpus.check import check_events
from clue_ray.corpus.logs import jsonlines
from clue_ray.corpus.logs.reading import plan_reading
from clue_ray.errors import EventLogError
from clue_ray.spec.specs import CorpusSpec

FRAME = pd.DataFrame(
    {
        "user_id": [f"u{n}" for n in range(40)],
        "service": ["s", "t"] * 20,
        "timestamp": range(1_700_000_000, 1_700_000_040),
        "text": [f"item {n}" for n in range(40)],
        "unused": 1.5,
    }
)


def test_a_clean_log(tmp_path):
    FRAME.to_parquet(tmp_path / "log.parquet")
    check = check_events(CorpusSpec(events=str(tmp_path / "log.parquet")))
    (log,) = check.logs
    assert (log.rows, log.events, log.rejected, check.warnings) == (40, 40, {}, [])
    assert log.services == {"s": 20, "t": 20}
    assert log.first_rows[0] == {
        "user_id": "u0", "service": "s", "timestamp": "2023-11-14T22:13:20.000Z", "text": "item 0",
    }  # fmt: skip
    assert [(row["column"], row["taken_for"], row["holds"]) for row in log.columns] == [
        ("user_id", "user_id", "text"),
        ("service", "service", "text"),
        ("timestamp", "timestamp", "whole numbers"),
        ("text", "text", "text"),
    ]


def test_rejected_rows_are_counted_by_reason_with_the_first_of_each(tmp_path):
    dirty = FRAME.astype(object).copy()
    dirty.loc[[3, 5], "timestamp"] = "soon"
    dirty.loc[7, "user_id"] = None
    path = tmp_path / "[dirty].csv"
    path.write_text(dirty.to_csv(index=False) + "only,two\n")
    check = check_events(CorpusSpec(events=str(path)))
    (log,) = check.logs
    assert {reason: (found["rows"], found["row"]) for reason, found in log.rejected.items()} == {
        "timestamp cannot be read": (2, 3),
        "user_id is null or empty": (1, 7),
        "the line has 2 fields, and the header 5": (1, 40),
    }
    assert "timestamp=soon" in log.rejected["timestamp cannot be read"]["content"]
    assert log.rejected["the line has 2 fields, and the header 5"]["content"] == "only,two"
    assert log.events == 37
    assert "9.8% of the sampled rows" in check.warnings[0]
    printed = CliRunner().invoke(app, ["prepare", "--check", str(path)])
    assert printed.exit_code == 0
    assert "timestamp cannot be read" in printed.output
    assert "warning: 9.8%" in printed.output


def test_a_missing_column_is_one_sentence(tmp_path):
    FRAME.drop(columns="user_id").to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(EventLogError, match="no column 'user_id'"):
        check_events(CorpusSpec(events=str(tmp_path / "log.csv")))


def test_several_services_each_with_its_own_log(tmp_path):
    FRAME.drop(columns=["service", "timestamp"]).to_csv(tmp_path / "a.csv", index=False)
    FRAME.drop(columns="service").to_json(tmp_path / "b.jsonl", orient="records", lines=True)
    spec = CorpusSpec(events={"shop": str(tmp_path / "a.csv"), "ads": str(tmp_path / "b.jsonl")})
    shop, ads = check_events(spec).logs
    assert (shop.services, ads.services) == ({"shop": 40}, {"ads": 40})
    assert {row["taken_for"]: row["holds"] for row in shop.columns if not row["column"]} == {
        "service": "'shop' for all events",
        "timestamp": "order of appearance",
    }
    assert shop.first_rows[0]["timestamp"] is None
    assert ads.first_rows[0]["timestamp"] == "2023-11-14T22:13:20.000Z"


def test_days_of_a_spreadsheet_are_doubted_and_columns_may_be_named_one_by_one(tmp_path):
    days = FRAME.assign(timestamp=FRAME.timestamp / 86_400 + 25_569)
    days.rename(columns={"user_id": "who", "text": "what"}).to_csv(tmp_path / "log.csv")
    names = ["--columns", "user_id=who", "--columns", "text=what"]
    printed = CliRunner().invoke(app, ["prepare", "--check", str(tmp_path / "log.csv"), *names])
    assert printed.exit_code == 0
    assert "too small for times since 1980" in " ".join(printed.output.split())


def test_a_key_after_the_first_block_of_json_is_not_looked_for(tmp_path, monkeypatch):
    lines = FRAME.to_dict("records")
    lines[30]["brand"] = "acme"
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(jsonlines, "SAMPLE", 100)
    monkeypatch.setattr(jsonlines, "BLOCK", 500)
    spec = CorpusSpec(events=str(tmp_path), text="{text}; {brand}")
    with pytest.raises(EventLogError, match="no column 'brand'"):
        check_events(spec)
    assert plan_reading(spec).files


def test_only_the_first_rows_of_some_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_FILES", 3)
    monkeypatch.setattr(module, "MOST_ROWS", 10)
    for n in range(9):
        FRAME.to_csv(tmp_path / f"{n}.csv", index=False)
    (log,) = check_events(CorpusSpec(events=str(tmp_path))).logs
    assert (log.files, log.sampled_files, log.rows) == (9, 3, 30)


def test_the_command_prints_json_starts_no_ray_and_writes_nothing(tmp_path):
    FRAME.to_csv(tmp_path / "log.csv", index=False)
    script = (
        "import sys; from clue_ray.cli.main import app\n"
        "app(['prepare', '--check', 'log.csv', '--json'], standalone_mode=False)\n"
        "assert not {'ray', 'torch'} & set(sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["logs"][0]["events"] == 40
    assert found["separators"] == {"comma": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
