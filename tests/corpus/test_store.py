"""Splits, keys and folders of a corpus, without Ray."""

import os
import shutil
import socket
import subprocess
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clue_ray.corpus import build
from clue_ray.corpus.checks import check_cut
from clue_ray.corpus.hashes import split_of, stable_hash
from clue_ray.corpus.logs.reading import plan_reading
from clue_ray.corpus.profile import ShardTotals
from clue_ray.corpus.ranges import ranges
from clue_ray.corpus.rows import SHARD_COUNTS
from clue_ray.corpus.shards import BUCKETED, ShardPlan, number_of_shards, write_shards
from clue_ray.corpus.tokenizer import train_tokenizer
from clue_ray.errors import EventLogError
from clue_ray.spec.specs import CorpusSpec, SplitSpec


def test_a_changed_log_or_spec_has_another_key(planted_log, tmp_path):
    log = tmp_path / "log.parquet"
    shutil.copy2(planted_log, log)
    spec = CorpusSpec(events=str(log))

    def key(**changes):
        return build.source_key(plan_reading(spec.model_copy(update=changes)))

    first = key()
    assert first == key() == key(events=str(tmp_path / "*.parquet"))
    assert (
        len(
            {
                first,
                key(text="{text}!"),
                key(vocab_size=500),
                key(duplicates="drop"),
                key(max_item_tokens=3),
            }
        )
        == 5
    )
    table = pq.read_table(log)
    pq.write_table(table.slice(1), log)
    assert key() != first


def test_debris_of_a_killed_preparation_is_removed(planted_log, tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    target = tmp_path / "corpus"
    dead, alive = (
        tmp_path / f".corpus.{socket.gethostname()}.{pid}.partial"
        for pid in (ended.pid, os.getppid())
    )
    elsewhere = tmp_path / f".corpus.another-host.{ended.pid}.partial"
    for folder in (dead, alive, elsewhere):
        (folder / "shards").mkdir(parents=True)
    build.remove_debris(target)
    assert not dead.exists()
    assert alive.exists()
    assert elsewhere.exists()


def test_split_is_by_user_and_stable():
    users = pd.Series([f"u{i}" for i in range(4000)])
    split = split_of(users, SplitSpec(validation=0.1, test=0.2))
    shares = pd.Series(split).value_counts(normalize=True)
    assert abs(shares["test"] - 0.2) < 0.03
    assert abs(shares["validation"] - 0.1) < 0.03
    assert (split_of(users[::-1], SplitSpec(validation=0.1, test=0.2))[::-1] == split).all()
    assert (
        stable_hash(pd.Series(["u1"]), "split")[0] == 0x5523A95A69B2BF34
    )  # frozen: it decides who is held out


def test_ranges_equal_the_loop():
    starts, lengths = np.array([5, 0, 9, 2]), np.array([2, 0, 3, 1])
    expected = [
        value
        for start, length in zip(starts, lengths, strict=True)
        for value in range(start, start + length)
    ]
    assert ranges(starts, lengths).tolist() == expected
    assert ranges(starts[:0], lengths[:0]).tolist() == []


def test_empty_partitions_are_well_typed():
    assert write_shards(BUCKETED.empty_table(), None).schema == SHARD_COUNTS


def test_shards_grow_in_number_and_not_in_size():
    assert [number_of_shards(events) for events in (1, 4_000_000, 5_000_001, 10**10)] == [
        16,
        16,
        21,
        4096,
    ]


@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_repeated_rows_are_counted_and_kept_or_dropped(tmp_path, duplicates):
    rows = [
        ("u", 0, 5.0, "a"),
        ("u", 0, 5.0, "a"),
        ("u", 0, 5.0, "b"),
        ("u", 1, 5.0, "a"),
        ("u", 0, 4.0, "a"),
    ] * 2
    events = pa.table([*map(list, zip(*rows, strict=True)), [3] * len(rows)], schema=BUCKETED)
    tokenizer = train_tokenizer(["a", "b"], 257).to_str()
    spec = CorpusSpec(events="x", duplicates=duplicates)
    counts = write_shards(events, ShardPlan(spec, tmp_path, ("s", "t"), tokenizer, 4)).to_pylist()[
        0
    ]
    assert (counts["rows"], counts["duplicates"]) == (10, 6)
    lengths = pq.read_table(tmp_path / "shards" / "shard-00003.parquet")["items"].to_pylist()
    assert lengths == (
        [[0] * 4 + [1] * 2 + [0] * 2, [2] * 2] if duplicates == "keep" else [[0, 1, 0], [2]]
    )


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("u", 0, 2e9, "a"), ("u", 1, 2e9, "a")], "No event lies before split.time 2020-01-01"),
        (
            [("u", 0, 20240131.0, "a"), ("u", 1, 20240201.0, "a")],
            r"end at 2.02402e\+07 seconds, in 1970",
        ),
        ([("u", 0, 1.5e9, "a"), ("u", 1, 2e9, "a")], None),
    ],
)
def test_a_cut_in_time_must_cut(tmp_path, rows, words):
    events = pa.table([*map(list, zip(*rows, strict=True)), [3] * len(rows)], schema=BUCKETED)
    spec = CorpusSpec(events="x", split={"time": "2020-01-01"})
    totals = ShardTotals()
    plan = ShardPlan(spec, tmp_path, ("s", "t"), train_tokenizer(["a"], 257).to_str(), 4)
    totals.add(write_shards(events, plan).to_pylist())
    with pytest.raises(EventLogError, match=words) if words else nullcontext():
        check_cut(totals, spec)
    assert totals.totals["later"] == sum(time >= 1_577_836_800 for _, _, time, _ in rows)
