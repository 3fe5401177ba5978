"""Build corpora with Ray Data: exact, byte-identical, and with one-sentence errors."""

import errno
import json
import os
import shutil
import socket
import time
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.exceptions import OutOfMemoryError, RayTaskError
from tokenizers import Tokenizer

from clue_ray.corpus import build
from clue_ray.corpus.build import build_corpus
from clue_ray.corpus.cache import find_damage
from clue_ray.corpus.layout import building
from clue_ray.corpus.layout.arrays import DTYPES, read_layout
from clue_ray.corpus.layout.on_nodes import run_on_nodes
from clue_ray.corpus.logs.reading import plan_reading
from clue_ray.corpus.planted import PlantedSpec
from clue_ray.corpus.store import open_corpus
from clue_ray.errors import ClusterError, CorpusError, EventLogError
from clue_ray.spec.specs import CorpusSpec
from clue_ray.storage.files import write_json
from tests.conftest import SPLIT

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module", autouse=True)
def few_partitions():
    """Shuffle into three partitions: shards do not depend on it, and each one takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "partitions_for", lambda buckets: 3)
        yield


def make_spec(log, **fields):
    return CorpusSpec(events=str(log), **{"vocab_size": 400, "split": SPLIT, **fields})


@pytest.fixture(scope="module")
def prepared(planted_log, ray_session, tmp_path_factory):
    return build_corpus(make_spec(planted_log), tmp_path_factory.mktemp("out") / "corpus")


def sequences(corpus):
    """Read the shards of a corpus as (user, service) -> texts and times, most recent first."""
    found = {}
    for file in sorted((corpus.path / "shards").iterdir()):
        texts = pq.read_table(corpus.path / "items" / file.name)["text"].to_pylist()
        for row in pq.read_table(file).to_pylist():
            found[row["user_id"], row["service"]] = (
                [texts[item] for item in row["items"]],
                row["timestamps"],
            )
    return found


def test_every_event_is_there_in_order(prepared, planted_log):
    log = (
        pq.read_table(planted_log)
        .to_pandas()
        .sort_values(["timestamp", "text"], ascending=[False, True])
    )
    groups = log.groupby(["user_id", "service"])
    expected = {key: (group["text"].tolist(), group["timestamp"].tolist()) for key, group in groups}
    assert sequences(prepared) == expected
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
    monkeypatch.setattr(build, "partitions_for", lambda cpus: 7)
    again = build_corpus(make_spec(tmp_path), tmp_path / "corpus")
    assert again.digest == prepared.digest
    assert again.manifest["files"] == prepared.manifest["files"]


def fetch_all(corpus):
    """Use every array; return the layout as it is on disk then."""
    assert all(len(getattr(corpus, name)) for name in ("user_ids", "times", "train_users"))
    for name in DTYPES:
        corpus.layout.array(name)
    return read_layout(corpus.path / "train", corpus.digest)


def test_on_storage_each_node_assembles_the_same_layout(
    prepared, planted_log, tmp_path, monkeypatch
):
    for name in ("disk", "lake"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "disk"))
    place = f"file://{tmp_path}/lake"
    made = build_corpus(make_spec(planted_log), place)
    assert sorted(path.name for path in (made.path / "train").iterdir()) == [
        *("layout.json", "recipe.json")
    ]
    assert fetch_all(made).facts == prepared.layout.facts
    assert not find_damage(made.path, made.manifest, whole=False)
    assert {path.name for path in made.path.iterdir()} == {
        *("corpus.json", "profile.json", "tokenizer.json", "train")
    }
    assert not (tmp_path / "lake" / "build").exists()
    shutil.rmtree(made.path)
    recipe = tmp_path / "lake" / "train" / "recipe.json"
    written = json.loads(recipe.read_text())
    recipe.write_text(json.dumps(written | {"facts": {"version": 0}}))  # by another version
    assert fetch_all(open_corpus(place)).facts == prepared.layout.facts
    recipe.write_text(json.dumps(written))
    shutil.rmtree(made.path)
    part = next((tmp_path / "lake" / "train" / "parts").glob("events-*"))
    part.write_bytes(part.read_bytes()[::-1])
    corpus = open_corpus(place)
    assert len(corpus.offsets)
    with pytest.raises(CorpusError, match=f"train/parts/{part.name} is damaged .* at file:"):
        len(corpus.events)


def test_opened_again_not_built_again(prepared, planted_log, monkeypatch):
    monkeypatch.setattr(build, "_write_corpus", lambda *_: pytest.fail("built again"))
    assert build_corpus(make_spec(planted_log), prepared.path).digest == prepared.digest
    with pytest.raises(CorpusError, match="another log or spec"):
        build_corpus(make_spec(planted_log, vocab_size=500), prepared.path)


def test_tokens_follow_the_guide(prepared):
    tokenizer = Tokenizer.from_file(str(prepared.path / "tokenizer.json"))
    items = pd.concat(
        [pq.read_table(file).to_pandas() for file in sorted((prepared.path / "items").iterdir())]
    )
    first = prepared.manifest["vocab_size"] - len(prepared.services)
    assert first == tokenizer.get_vocab_size()
    for row in items.itertuples():
        ids = tokenizer.encode(row.text).ids
        assert row.tokens.tolist() == [first + prepared.services.index(row.service), *ids[:24]]
        assert row.text_tokens == len(ids)


def test_unusable_rows_are_written_and_counted(planted_log, tmp_path):
    frame = pq.read_table(planted_log).to_pandas().astype({"text": object, "user_id": object})
    frame.loc[[3, 5], "text"] = None
    frame.loc[8, "user_id"] = ""
    frame.to_parquet(tmp_path / "log.parquet")
    made = build_corpus(make_spec(tmp_path / "log.parquet"), tmp_path / "corpus")
    assert made.manifest["rejected"] == {"text is null or empty": 2, "user_id is null or empty": 1}
    aside = pq.read_table(made.path / "rejected").to_pandas()
    assert aside["row"].tolist() == [3, 5, 8]
    assert set(aside["file"]) == {str(tmp_path / "log.parquet")}
    assert aside["log.user_id"].tolist() == frame.loc[[3, 5, 8], "user_id"].tolist()
    assert aside["log.text"].tolist()[2] == frame.loc[8, "text"]
    assert aside["log.text"].isna().tolist()[:2] == [
        True,
        True,
    ]
    assert len(made.events) == len(frame) - 3


def test_a_dirty_log_stops_with_reasons_and_samples(planted_log, tmp_path):
    frame = pq.read_table(planted_log).to_pandas().astype({"text": object, "timestamp": object})
    frame["timestamp"] = frame["timestamp"].astype(str)
    frame.loc[::10, "timestamp"] = "soon"
    frame.loc[1::20, "text"] = "?" * 20000
    frame.to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(EventLogError) as error:
        build_corpus(make_spec(tmp_path / "log.csv"), tmp_path / "out" / "corpus")
    few, many = (f"{-(-len(frame) // 20):,}", f"{-(-len(frame) // 10):,}")
    assert f"timestamp cannot be read: {many}; text is longer than 10,000 characters: " in str(
        error.value
    )
    assert "more than the 5% allowed" in str(error.value)
    assert few[:2] in str(error.value)
    assert str(error.value).count("row ") == 3
    assert "'timestamp': 'soon'" in str(error.value)
    assert len(str(error.value)) < 1500
    assert list((tmp_path / "out").iterdir()) == []


def test_events_after_the_cut_are_kept_apart(planted_log, tmp_path):
    log = pq.read_table(planted_log).to_pandas()
    cut = int(log["timestamp"].quantile(0.7))
    log.loc[log["timestamp"] >= cut, "text"] += " unseen"
    log.loc[0, "timestamp"] = cut  # the cut itself is later
    log.to_parquet(tmp_path / "log.parquet")
    split = {**SPLIT, "time": datetime.fromtimestamp(cut, UTC).isoformat()}
    made = build_corpus(make_spec(tmp_path / "log.parquet", split=split), tmp_path / "corpus")
    before, later = log[log["timestamp"] < cut], log[log["timestamp"] >= cut]
    assert len(made.events) == len(before)
    assert made.profile()["events_after_cut"] == len(later)
    order = ["user_id", "service", "timestamp", "text"]
    found = made.later_events().to_pandas()[order].sort_values(order).reset_index(drop=True)
    expected = later[order].sort_values(order).reset_index(drop=True).astype({"timestamp": float})
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert "unseen" not in "".join(
        Tokenizer.from_file(str(made.path / "tokenizer.json")).get_vocab()
    )


def test_users_of_one_service_are_kept_and_marked(planted_log, tmp_path):
    log = pq.read_table(planted_log).to_pandas()
    log = log[(log["user_id"] >= "u00000100") | (log["service"] == "service-a")]
    log.to_parquet(tmp_path / "log.parquet")
    made = build_corpus(make_spec(tmp_path / "log.parquet"), tmp_path / "corpus")
    rows = pq.read_table(made.path / "shards").to_pandas()
    expected = log.groupby("user_id")["service"].nunique()
    assert (rows.set_index("user_id")["num_services"] == expected.loc[rows["user_id"]]).all()
    assert (
        made.profile()["users_by_services"]["1"]
        == 100
        == (made.counts > 0).sum(axis=1).tolist().count(1)
    )
    assert all(
        made.user_ids[user] >= "u00000100"
        for user in made.train_users[made.training_pool((0, 1), None)]
    )


def test_a_given_tokenizer_is_used(prepared, planted_log, tmp_path):
    given = CorpusSpec(
        events=str(planted_log), split=SPLIT, tokenizer=str(prepared.path / "tokenizer.json")
    )
    made = build_corpus(given, tmp_path / "corpus")
    assert made.digest == prepared.digest
    with pytest.raises(CorpusError, match="does not exist"):
        build_corpus(given.model_copy(update={"tokenizer": "nowhere.json"}), tmp_path / "other")


def test_profile_equals_the_plain_calculation(prepared, planted_log):
    log = pq.read_table(planted_log).to_pandas()
    profile, lengths = prepared.profile(), log.groupby(["user_id", "service"]).size()
    tokenizer = Tokenizer.from_file(str(prepared.path / "tokenizer.json"))
    tokens = log["text"].map({text: len(tokenizer.encode(text).ids) for text in set(log["text"])})
    items = log.drop_duplicates(["service", "text"])
    assert profile["users"] == 240
    assert profile["events"] == len(log)
    assert profile["distinct_items"] == len(items)
    assert profile["tokens"] == (tokens + 1).sum() == prepared.summary()["tokens"]
    for name, values in [("events_per_user_and_service", lengths), ("tokens_per_event", tokens)]:
        expected = {
            f"p{p}": np.percentile(values, p, method="inverted_cdf") for p in (10, 50, 90, 99, 100)
        }
        assert profile[name] == expected
    assert profile["tokens_per_item"]["p50"] == np.percentile(
        tokens[items.index], 50, method="inverted_cdf"
    )
    fits = profile["fits_sequence_length"]["16"]
    assert fits["events"] == pytest.approx(lengths.clip(upper=16).sum() / len(log))
    assert fits["histories"] == pytest.approx((lengths <= 16).mean())
    users = log.groupby("service")["user_id"].agg(set)
    assert all(
        profile["overlap"][a][b] == len(users[a] & users[b])
        for a in users.index
        for b in users.index
    )
    assert profile["users_by_split"] == {
        "train": len(prepared.train_users),
        "validation": len(prepared.validation_users),
        "test": len(prepared.test_users),
    }
    assert profile["time"] == [log["timestamp"].min(), log["timestamp"].max()]
    assert profile["time_reads_as_order"] is False
    assert profile["timestamps_read_as"] == {"seconds": len(log)}
    assert profile["rejected"] == {}


def test_a_planted_log_is_recognised(prepared):
    assert PlantedSpec.model_validate_json(prepared.manifest["planted"]).users == 240


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.iloc[:0], "is empty"),
        (
            lambda f: f.assign(user_id=pd.array([None] * len(f), "string")),
            "user_id is null or empty",
        ),
        (lambda f: f.assign(text=[str(i) for i in range(len(f))]), "hold no words"),
        (lambda f: f[f["service"] == "service-a"], "has events in two services"),
        (lambda f: f.assign(timestamp="once"), "timestamp cannot be read"),
    ],
)
def test_unusable_logs_leave_nothing_behind(planted_log, tmp_path, change, words):
    change(pq.read_table(planted_log).to_pandas()).to_parquet(tmp_path / "log.parquet")
    out = tmp_path / "out"
    with pytest.raises(EventLogError, match=words) as error:
        build_corpus(make_spec(tmp_path / "log.parquet"), out / "corpus")
    assert "\n" not in str(error.value)
    assert list(out.iterdir()) == []


def test_a_full_disk_is_reported_before_anything_is_written(planted_log, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(CorpusError, match="Not enough free disk"):
        build_corpus(make_spec(planted_log), tmp_path / "out" / "corpus")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), CorpusError, "No free disk at"),
        (
            OSError(errno.EIO, "Input/output error"),
            EventLogError,
            "cannot be prepared .*Input/output error",
        ),
        (OutOfMemoryError("node is short"), ClusterError, "ran out of memory"),
    ],
)
def test_errors_while_a_worker_writes(planted_log, tmp_path, monkeypatch, error, kind, words):
    def fail(events, plan, place):
        raise error

    monkeypatch.setattr(build, "write_partition", fail)
    with pytest.raises(kind, match=words) as raised:
        build_corpus(make_spec(planted_log), tmp_path / "out" / "corpus")
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_while_the_layout_is_written(prepared, planted_log, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def write(reading, partial, key):
        shutil.copytree(prepared.path, partial, dirs_exist_ok=True)
        build._build_layout(prepared.manifest, partial, str(partial))

    monkeypatch.setattr(building, "split_users", fail)
    monkeypatch.setattr(build, "_write_corpus", write)
    with pytest.raises(CorpusError, match=r"^No free disk at .*; free some space or choose"):
        build_corpus(make_spec(planted_log), tmp_path / "out" / "corpus")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_is_too_small_for_the_layout_is_reported_before_it_is_built(
    planted_log, tmp_path, monkeypatch
):
    free = iter([10**12])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(free, 10_000)))
    monkeypatch.setattr(build, "build_parts", lambda *_: pytest.fail("the layout was begun"))
    with pytest.raises(CorpusError, match=r"Not enough free disk at .*: 10,000 bytes free, about"):
        build_corpus(make_spec(planted_log), tmp_path / "out" / "corpus")
    assert list((tmp_path / "out").iterdir()) == []


def test_remains_of_a_killed_preparation_with_our_process_id(planted_log, tmp_path, prepared):
    out = tmp_path / "out"
    remains = out / f".corpus.{socket.gethostname()}.{os.getpid()}.partial" / "build"
    remains.mkdir(parents=True)
    assert build_corpus(make_spec(planted_log), out / "corpus").digest == prepared.digest
    assert [path.name for path in out.iterdir()] == ["corpus"]


def test_tasks_of_a_failed_round_have_ended_before_its_error_is_raised(tmp_path):
    folder, begun = tmp_path / "build", tmp_path / "begun"

    def work(plan, number):
        if number == 0:
            while not begun.exists():
                time.sleep(0.01)
            raise CorpusError("the shards are damaged")
        begun.touch()
        for _ in range(200):
            folder.mkdir(exist_ok=True)
            time.sleep(0.05)

    with pytest.raises(RayTaskError, match="the shards are damaged"):
        run_on_nodes(work, None, [(), (), ()])
    shutil.rmtree(folder)
    time.sleep(0.5)
    assert not folder.exists()


def test_a_log_that_changes_meanwhile_is_an_error(planted_log, tmp_path, monkeypatch):
    survey = build._survey

    def miscount(*arguments):
        found = survey(*arguments)
        found.services["service-a"] -= 1
        return found

    monkeypatch.setattr(build, "_survey", miscount)
    with pytest.raises(EventLogError, match="changed while it was read"):
        build_corpus(make_spec(planted_log), tmp_path / "corpus")


@pytest.mark.parametrize("name", ["shards/shard-00000.parquet", "tokenizer.json"])
def test_damaged_file_is_named(prepared, tmp_path, name):
    copy = tmp_path / "corpus"
    shutil.copytree(prepared.path, copy)
    (copy / name).write_bytes((copy / name).read_bytes()[:-9])
    with pytest.raises(CorpusError, match=f"{name} is damaged"):
        open_corpus(copy)


def copy_prepared(prepared, *more):
    """Replace the passes over a log: copy a finished corpus, with the right key, to some places."""

    def write(reading, partial, key):
        for folder in (partial, *more):
            shutil.copytree(prepared.path, folder, dirs_exist_ok=True)
            write_json(folder / "corpus.json", {**prepared.manifest, "key": key})

    return write


def test_without_an_output_the_key_names_the_folder(prepared, planted_log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "_write_corpus", copy_prepared(prepared))
    made = [build_corpus(make_spec(planted_log, max_item_tokens=n)).path for n in (5, 6, 5)]
    key = build.source_key(plan_reading(make_spec(planted_log, max_item_tokens=5)))
    assert made[0] == made[2] == tmp_path / "corpora" / key != made[1]


def test_another_process_may_finish_first(prepared, planted_log, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_write_corpus", copy_prepared(prepared, tmp_path / "corpus"))
    assert build_corpus(make_spec(planted_log), tmp_path / "corpus").digest == prepared.digest
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_repeated_rows_are_dropped_on_demand(prepared, planted_log, tmp_path):
    table = pq.read_table(planted_log)
    pq.write_table(
        pa.concat_tables([table, table.slice(0, 100), table.slice(0, 20)]), tmp_path / "log.parquet"
    )
    dropped = build_corpus(
        make_spec(tmp_path / "log.parquet", duplicates="drop"), tmp_path / "dropped"
    )
    assert dropped.profile()["duplicate_rows"] == 120
    assert sequences(dropped) == sequences(prepared)
