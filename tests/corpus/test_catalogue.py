"""Catalogues: the words of items whose ids a log has."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clue_ray.corpus import build
from clue_ray.corpus.build import build_corpus
from clue_ray.corpus.check import check_events
from clue_ray.corpus.logs.catalogue import load_catalogues
from clue_ray.corpus.logs.reading import plan_reading, read_part
from clue_ray.corpus.logs.schema import normalise
from clue_ray.errors import EventLogError, SpecError
from clue_ray.report.profile import profile_tables
from clue_ray.spec.specs import CorpusSpec
from tests.conftest import SPLIT

WORDS = ["red shoe", "blue shoe", "green hat", "old map", "new map", "tea"]


def write(folder, log: dict, table: dict, name="products.parquet"):
    pq.write_table(pa.table(log), folder / "log.parquet")
    frame = pd.DataFrame(table)
    if name.endswith(".csv"):
        frame.to_csv(folder / name, index=False)
    else:
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), folder / name)
    return folder


def spec_of(folder, name="products.parquet", items=None, key="events.sku", **fields):
    catalogue = {"table": str(folder / name), "key": "sku", "text": "{name}", **(items or {})}
    log = {"events": str(folder / "log.parquet"), "items": {key: catalogue}}
    return CorpusSpec.parse({**log, "split": SPLIT, "vocab_size": 300, **fields}, "corpus")


def texts_of(spec):
    reading = load_catalogues(plan_reading(spec))
    rows, joined = [], []
    for part in reading.parts:
        log = reading.logs[part.log]
        for batch in read_part(part, log):
            rows += normalise(batch.table, log, spec, first_row=batch.first_row).to_pylist()
            joined += batch.joined
    return [row["text"] for row in rows], [row["reason"] for row in rows], joined


@pytest.mark.parametrize("name", ["products.parquet", "products.csv"])
@pytest.mark.parametrize("ids", [[7, 8, 9], [7.0, 8.0, 9.0], ["7", "8.0", "9"]])
def test_ids_match_whatever_their_type(tmp_path, name, ids):
    log = {"user_id": ["a", "b", "c"], "service": ["s"] * 3, "sku": ids}
    write(tmp_path, log, {"sku": [9, 8, 1], "name": ["nine", "eight", "one"]}, name)
    texts, reasons, joined = texts_of(spec_of(tmp_path, name))
    assert texts == ["7", "eight", "nine"]
    assert reasons == [None] * 3
    assert [tuple(found) for found in joined] == [("events.sku", 2, 1, ("7",))]


def test_the_join_equals_that_of_pandas(tmp_path):
    rng = np.random.default_rng(0)
    skus = rng.permutation(100_000)[:3_000]
    table = pd.DataFrame({"sku": skus, "name": [f"item {n % 97}" for n in skus]})
    asked = np.r_[rng.choice(skus, 5_000), rng.integers(0, 100_000, 1_000)]
    log = {"user_id": asked.astype(str), "service": ["s"] * len(asked), "sku": asked}
    write(tmp_path, log, table)
    expected = pd.DataFrame({"sku": asked}).merge(table, how="left", on="sku")
    expected["name"] = expected["name"].fillna(expected["sku"].astype(str))
    assert texts_of(spec_of(tmp_path))[0] == expected["name"].tolist()


def test_templates_services_and_rejection(tmp_path):
    log = {"user_id": list("abcd"), "service": ["x", "x", "y", "y"], "sku": [1, 2, 1, None]}
    write(tmp_path, log | {"shop": list("pqrs")}, {"sku": [1], "name": ["one"], "price": [-2.5]})
    items = {"text": "{name} {price}", "unmatched": "reject"}
    spec = spec_of(tmp_path, items=items, key="x.sku", text="{shop}: {sku}")
    texts, reasons, joined = texts_of(spec)
    assert texts == ["p: one -2.5", "q: 2", "r: 1", "s:"]
    assert reasons == [None, "sku is not in the catalogue", None, None]
    assert joined[0][:3] == ("x.sku", 1, 1)


def test_bad_catalogues_are_one_sentence(tmp_path):
    log = {"user_id": ["a"], "service": ["s"], "sku": [1]}

    def message(table, error=EventLogError, read=texts_of, **fields):
        write(tmp_path, log, table)
        with pytest.raises(error) as caught:
            read(spec_of(tmp_path, **fields))
        assert str(caught.value).count("\n") == 0
        return str(caught.value)

    good = {"sku": [1], "name": ["one"]}
    twice = {"sku": [1, 2, 1, 2], "name": list("abcd")}
    assert "has key '1' more than once (2 of its 4 rows" in message(twice)
    assert "has no column 'id'; columns found are 'sku', 'name'" in message(
        good, items={"key": "id"}
    )
    assert "no column 'colour'" in message(good, items={"text": "{colour}"})
    assert "has no row with a key and a text" in message({"sku": [None], "name": ["one"]})
    assert "holds list" in message({"sku": [[1]], "name": ["one"]})
    assert "no log has that service" in message(good, text="{user_id}")
    assert "write it as events.COLUMN" in message(good, SpecError, key="sku")
    assert "unmatched" in message(good, SpecError, items={"unmatched": "drop"})
    nowhere = {"table": str(tmp_path / "no.parquet")}
    assert "no.parquet" in message(good, items=nowhere)


def test_check_shows_joined_texts(tmp_path):
    write(tmp_path, {"user_id": ["a"], "service": ["s"], "sku": [1]}, {"sku": [1], "name": ["one"]})
    assert check_events(spec_of(tmp_path)).logs[0].first_rows[0]["text"] == "one"


def test_keys_of_corpora_follow_the_catalogue(tmp_path):
    log = {"user_id": ["a"], "service": ["s"], "sku": [1]}
    write(tmp_path, log, {"sku": [1], "name": ["one"]})
    keys = {build.source_key(plan_reading(spec_of(tmp_path)))}
    keys.add(build.source_key(plan_reading(spec_of(tmp_path, items={"unmatched": "reject"}))))
    write(tmp_path, log, {"sku": [1], "name": ["uno!"]})
    keys.add(build.source_key(plan_reading(spec_of(tmp_path))))
    assert len(keys) == 3


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_corpus_with_a_catalogue_equals_one_of_the_joined_log(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "partitions_for", lambda buckets: 2)
    rng = np.random.default_rng(1)
    skus = rng.integers(0, 8, 400)  # 6 and 7 are not in the catalogue
    log = {
        "user_id": (np.arange(400) % 40).astype(str),
        "service": np.where(np.arange(400) % 3, "shop", "news"),
        "timestamp": np.arange(400.0),
        "sku": skus,
    }
    write(tmp_path, log, {"sku": range(6), "name": WORDS})
    joined = build_corpus(spec_of(tmp_path), tmp_path / "joined")
    texts = [WORDS[n] if n < 6 else str(n) for n in skus]
    plain = {name: values for name, values in log.items() if name != "sku"}
    pq.write_table(pa.table({**plain, "text": texts}), tmp_path / "plain.parquet")
    flat = {"events": str(tmp_path / "plain.parquet"), "split": SPLIT, "vocab_size": 300}
    assert joined.digest == build_corpus(CorpusSpec(**flat), tmp_path / "flat").digest
    found = json.loads((tmp_path / "joined" / "profile.json").read_text())["catalogues"]
    unmatched = int((skus >= 6).sum())
    assert found["events.sku"]["unmatched"] == unmatched
    assert found["events.sku"]["matched"] == 400 - unmatched
    assert found["events.sku"]["ids"] == ["6", "7"]
    (row,) = profile_tables(joined.profile())["Catalogues"].rows
    assert row[4].text == str(unmatched)
    write(tmp_path, log, {"sku": [f"A{n}" for n in range(6)], "name": WORDS})
    with pytest.raises(EventLogError, match=r"None of the 400 ids of events\.sku is a key"):
        build_corpus(spec_of(tmp_path), tmp_path / "none")
    with pytest.raises(EventLogError, match=r"'bank.sku' has no row; services found are news, sh"):
        build_corpus(spec_of(tmp_path, key="bank.sku"), tmp_path / "absent")
    write(tmp_path, log, {"sku": [1, 1], "name": WORDS[:2]})
    with pytest.raises(EventLogError, match="more than once"):
        build_corpus(spec_of(tmp_path), tmp_path / "twice")


def test_a_catalogue_without_row_groups_is_one_sentence(tmp_path):
    write(tmp_path, {"user_id": ["a"], "service": ["s"], "sku": [7]}, {"sku": [7], "name": ["x"]})
    schema = pa.schema([("sku", pa.int64()), ("name", pa.string())])
    with pq.ParquetWriter(tmp_path / "products.parquet", schema):
        pass
    with pytest.raises(EventLogError, match="has no row with a key and a text"):
        texts_of(spec_of(tmp_path))
