"""Preparation with real Ray Data: exact, the same bytes every time, and refused in one sentence."""

import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clue_ray.corpus import prepare
from clue_ray.corpus.prepare import build_corpus
from clue_ray.corpus.store import open_corpus, ranges, split_of, stable_hash
from clue_ray.errors import CorpusError, EventLogError
from clue_ray.spec import CorpusSpec, SplitSpec
from tests.conftest import SPLIT

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def make_spec(log, **fields):
    return CorpusSpec(events=str(log), **{"vocab_size": 400, "split": SPLIT, **fields})


@pytest.fixture(scope="module")
def prepared(planted_log, ray_session, tmp_path_factory):
    return build_corpus(make_spec(planted_log), tmp_path_factory.mktemp("out") / "corpus")


def test_every_event_is_there_in_order(prepared, planted_log):
    items = pq.read_table(prepared.path / "items.parquet").to_pandas()
    log = pq.read_table(planted_log).to_pandas()
    index = {key: i for i, key in enumerate(zip(items["service"], items["text"], strict=True))}
    log["item"] = [index[key] for key in zip(log["service"], log["text"], strict=True)]
    log = log.sort_values(["timestamp", "item"], ascending=[False, True])
    expected = log.groupby(["user_id", "service"])["item"].apply(list)
    for u, user in enumerate(prepared.user_ids):
        for s, service in enumerate(prepared.services):
            start, stop = prepared.offsets[u * len(prepared.services) + s :][:2]
            assert prepared.events[start:stop].tolist() == expected.get((user, service), [])
    assert len(prepared.events) == len(log) == prepared.manifest["events"]


def test_agrees_with_the_plain_preparation(prepared, corpus):
    assert np.array_equal(prepared.user_ids, corpus.user_ids)
    assert np.array_equal(prepared.events, corpus.events)
    assert np.array_equal(prepared.offsets, corpus.offsets)


def test_same_bytes_whatever_the_files_and_partitions(prepared, planted_log, tmp_path, monkeypatch):
    table = pq.read_table(planted_log)
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    for part, rows in enumerate(np.array_split(np.arange(len(table)), 3)):
        pq.write_table(shuffled.take(rows), tmp_path / f"{part}.parquet")
    monkeypatch.setattr(prepare, "partitions_for", lambda cpus: 7)
    again = build_corpus(make_spec(tmp_path), tmp_path / "corpus")
    assert again.digest == prepared.digest
    assert again.manifest["files"] == prepared.manifest["files"]


def test_opened_again_not_built_again(prepared, planted_log, monkeypatch):
    monkeypatch.setattr(prepare, "_write_corpus", lambda *_: pytest.fail("built again"))
    assert build_corpus(make_spec(planted_log), prepared.path).digest == prepared.digest
    with pytest.raises(CorpusError, match="another log or spec"):
        build_corpus(make_spec(planted_log, vocab_size=500), prepared.path)


def test_text_round_trips_through_the_tokenizer(prepared):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(prepared.path / "tokenizer.json"))
    for text in ["tea a0 model 1", "naïve café ☕ \t\x07", "&amp; 你好"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_tokens_follow_the_guide(prepared):
    items = pq.read_table(prepared.path / "items.parquet").to_pandas()
    first = prepared.manifest["vocab_size"] - len(prepared.services)
    for service, tokens in zip(items["service"], items["tokens"], strict=True):
        assert tokens[0] == first + prepared.services.index(service)
        assert (tokens[1:] < first).all() and len(tokens) <= prepared.manifest["max_item_tokens"]


def test_bad_rows_are_kept_aside_and_counted(planted_log, tmp_path):
    frame = pq.read_table(planted_log).to_pandas().astype({"text": object, "user_id": object})
    frame.loc[[3, 5], "text"] = None
    frame.loc[8, "user_id"] = ""
    frame.to_parquet(tmp_path / "log.parquet")
    made = build_corpus(make_spec(tmp_path / "log.parquet"), tmp_path / "corpus")
    assert made.manifest["rejected"] == {"text is null or empty": 2, "user_id is null or empty": 1}
    assert pq.read_table(made.path / "rejected").num_rows == 3
    assert len(made.events) == len(frame) - 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.iloc[:0], "is empty"),
        (lambda f: f.assign(user_id=pd.array([None] * len(f), "string")), "user_id is null or empty"),
        (lambda f: f.assign(text=[str(i) for i in range(len(f))]), "hold no words"),
        (lambda f: f[f["service"] == "service-a"], "has events in two services"),
        (lambda f: f.assign(timestamp="once"), "timestamp cannot be read"),
    ],
)
def test_hopeless_logs_leave_nothing_behind(planted_log, tmp_path, change, words):
    change(pq.read_table(planted_log).to_pandas()).to_parquet(tmp_path / "log.parquet")
    out = tmp_path / "out"
    with pytest.raises(EventLogError, match=words) as error:
        build_corpus(make_spec(tmp_path / "log.parquet"), out / "corpus")
    assert "\n" not in str(error.value)
    assert list(out.iterdir()) == []


def test_full_disk_is_said_before_anything_is_written(planted_log, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(CorpusError, match="No free disk"):
        build_corpus(make_spec(planted_log), tmp_path / "out" / "corpus")
    assert list((tmp_path / "out").iterdir()) == []


def test_damaged_shard_is_named(prepared, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(prepared.path, copy)
    shard = sorted((copy / "shards").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(CorpusError, match=f"{shard.name} is damaged"):
        open_corpus(copy)


def test_split_is_by_user_and_stable():
    users = pd.Series([f"u{i}" for i in range(4000)])
    split = split_of(users, SplitSpec(validation=0.1, test=0.2))
    shares = pd.Series(split).value_counts(normalize=True)
    assert abs(shares["test"] - 0.2) < 0.03 and abs(shares["validation"] - 0.1) < 0.03
    assert (split_of(users[::-1], SplitSpec(validation=0.1, test=0.2))[::-1] == split).all()
    assert stable_hash(pd.Series(["u1"]), "split")[0] == 0x5523A95A69B2BF34  # frozen: it decides who is held out


def test_ranges_equal_the_loop():
    starts, lengths = np.array([5, 0, 9, 2]), np.array([2, 0, 3, 1])
    expected = [value for start, length in zip(starts, lengths, strict=True) for value in range(start, start + length)]
    assert ranges(starts, lengths).tolist() == expected
    assert ranges(starts[:0], lengths[:0]).tolist() == []


def test_empty_partitions_are_well_typed():
    empty = pa.table({"user_id": pa.array([], pa.string()), "bucket": pa.array([], pa.int32())})
    assert prepare.write_buckets(empty, "nowhere").schema == prepare.SHARDS


def test_csv_ids_are_text_whatever_they_look_like(planted_log, tmp_path):
    frame = pq.read_table(planted_log).to_pandas()
    frame["user_id"] = frame["user_id"].str.replace("u", "1")
    frame.loc[len(frame) - 1, "user_id"] = "guest"
    frame.to_csv(tmp_path / "log.csv", index=False)
    made = build_corpus(make_spec(tmp_path / "log.csv"), tmp_path / "corpus")
    assert "guest" in made.user_ids and len(made.events) == len(frame)
