"""Embeddings of a log: every user once, resumed by parts, only new events, nobody lost."""

import json
import shutil
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from clue_ray.corpus.logs.catalogue import load_catalogues
from clue_ray.corpus.logs.reading import plan_reading
from clue_ray.errors import ClusterError, EventLogError, StudyError
from clue_ray.spec.specs import CorpusSpec
from clue_ray.transfer import encode
from clue_ray.transfer.embed import embed, items, pipeline
from clue_ray.transfer.embed.embed import embed_users
from clue_ray.transfer.embed.items import ItemVectors, open_items
from clue_ray.transfer.embed.pipeline import make_parts
from clue_ray.transfer.embed.writing import (
    NOTHING_NEW,
    OTHER_SERVICES,
    gather_buckets,
    read_user_rows,
)
from clue_ray.transfer.encode import load_encoder


@pytest.fixture(scope="module")
def ray_session(s3_query, ray_folder):
    """A session of two cores that claims a GPU, started after S3 credentials are set, because
    workers inherit them."""
    import ray

    ray.shutdown()  # the session that other modules share
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    where = {"_temp_dir": ray_folder, "object_store_memory": 200_000_000}
    ray.init(num_cpus=2, num_gpus=1, **where, **quiet)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def log(events, tmp_path_factory):
    """The planted log with a user of bad rows only, a row without user, and an unknown service."""
    path = tmp_path_factory.mktemp("embed") / "log.parquet"
    odd = {"user_id": ["broken", None, "stranger"], "service": ["shop", "shop", "elsewhere"]}
    rows = pa.table({**odd, "timestamp": [1, 2, 3], "text": [None, "x", "tea"]})
    pq.write_table(pa.concat_tables([events, rows.cast(events.schema)]), path)
    return path


@pytest.fixture(scope="module")
def embedded(encoder_folder, log, tmp_path_factory, ray_session):
    output = tmp_path_factory.mktemp("embedded") / "out"
    return embed_users(encoder_folder, str(log), str(output)), output


def read(output, kind="vectors"):
    return pa.concat_tables(
        [pq.read_table(file) for file in sorted((output / kind).glob("*.parquet"))]
    )


@pytest.mark.ray
def test_every_user_is_in_the_output_or_listed_with_the_reason(embedded, encoder_folder, events):
    manifest, output = embedded
    vectors, left_out = read(output), read(output, "left_out")
    expected = load_encoder(encoder_folder).encode(events)
    found = dict(zip(vectors["user_id"].to_pylist(), vectors["vector"].to_pylist(), strict=True))
    assert set(found) == {*expected.user_ids, "stranger"}
    assert vectors["vector"].type == pa.list_(pa.float32(), 8)
    assert np.allclose([found[user] for user in expected.user_ids], expected.values, atol=1e-6)
    assert left_out.to_pylist() == [{"user_id": "broken", "reason": "text is null or empty"}]
    assert manifest["users"] == manifest["vectors"] == len(found)
    assert manifest["rows_without_user"] == 1
    assert manifest["unknown_services"] == {"elsewhere": 1}
    assert manifest["left_out"] == {"text is null or empty": 1}
    assert json.loads((output / "manifest.json").read_text()) == manifest
    card = load_encoder(encoder_folder).card
    assert manifest["encoder_digest"] == card.digest
    assert manifest["corpus_digest"] == card.corpus_digest


@pytest.mark.ray
def test_an_interrupted_embedding_resumes_by_parts(embedded, encoder_folder, log, in_this_process):
    manifest, output = embedded
    assert embed_users(encoder_folder, str(log), str(output)) == manifest  # finished: nothing runs
    files = sorted((output / "vectors").glob("*.parquet"))
    times = {file: file.stat().st_mtime_ns for file in files}
    lost, kept = files[0], files[1:]
    (output / "vectors" / "copy.parquet").write_text("a person's")
    lost.unlink()
    assert embed_users(encoder_folder, str(log), str(output)) == manifest
    assert lost.exists()
    (output / "vectors" / "copy.parquet").unlink()
    lost.unlink()
    (output / "manifest.json").unlink()
    assert embed_users(encoder_folder, str(log), str(output)) == manifest
    assert all(file.stat().st_mtime_ns == times[file] for file in kept)
    assert lost.exists()


@pytest.mark.ray
def test_another_request_does_not_mix_in(embedded, encoder_folder, log, tmp_path):
    _, output = embedded
    with pytest.raises(StudyError, match="other settings"):
        embed_users(encoder_folder, str(log), str(output), per_service=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StudyError, match="files other than an embedding"):
        embed_users(encoder_folder, str(log), str(tmp_path))


@pytest.mark.ray
def test_only_users_with_new_events_are_embedded_again(
    embedded, encoder_folder, log, tmp_path, in_this_process
):
    _, output = embedded
    before = pq.read_table(log)
    user = before["user_id"][0].as_py()
    row = {
        "user_id": [user, "newcomer"],
        "service": before["service"][:2].to_pylist(),
        "text": ["tea", "tea"],
    }
    latest = pc.max(before["timestamp"]).as_py() + 1
    more = (
        pa.table({**row, "timestamp": [latest, latest]})
        .select(before.column_names)
        .cast(before.schema)
    )
    later = tmp_path / "later.parquet"
    pq.write_table(pa.concat_tables([before, more]), later)
    manifest = embed_users(
        encoder_folder, str(later), str(tmp_path / "new"), since=str(output / "manifest.json")
    )
    assert sorted(read(tmp_path / "new")["user_id"].to_pylist()) == sorted([user, "newcomer"])
    assert manifest["left_out"][NOTHING_NEW] == embedded[0]["users"] - 1
    whole = load_encoder(encoder_folder).encode(
        pa.concat_tables([before, more]).filter(pc.field("user_id") == user)
    )
    (row,) = read(tmp_path / "new").filter(pc.field("user_id") == user).to_pylist()
    assert np.allclose(row["vector"], whole.values[0], atol=1e-6)


def test_vectors_per_service_and_requested_services(
    encoder_folder, log, corpus, tmp_path, in_this_process
):
    first = corpus.services[0]
    spec = CorpusSpec(events=str(log), services=(first,))
    manifest = embed_users(
        encoder_folder, spec, str(tmp_path / "o"), per_service=True, precision="float16"
    )
    vectors = read(tmp_path / "o")
    assert set(vectors["service"].to_pylist()) == {first}
    assert vectors["vector"].type == pa.list_(pa.float16(), 8)
    assert manifest["left_out"][OTHER_SERVICES] >= 1
    named = set(pq.read_table(log)["user_id"].to_pylist()) - {None}
    assert {
        *vectors["user_id"].to_pylist(),
        *read(tmp_path / "o", "left_out")["user_id"].to_pylist(),
    } == named


def test_an_embedding_that_cannot_be_resumed_is_refused(
    encoder_folder, log, corpus, tmp_path, in_this_process
):
    services = (corpus.services[0], "nowhere")
    place = tmp_path / "o"
    manifest = embed_users(
        encoder_folder, CorpusSpec(events=str(log), services=services), str(place)
    )
    assert manifest["absent_services"] == ["nowhere"]
    with pytest.raises(StudyError, match="has per_service False, not True"):
        embed_users(
            encoder_folder, str(log), str(tmp_path / "n"), per_service=True, since=str(place)
        )
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "manifest.json").write_text("{}")
    with pytest.raises(StudyError, match="is not a manifest of an embedding"):
        embed_users(encoder_folder, str(log), str(tmp_path / "n"), since=str(tmp_path / "f"))
    (place / "manifest.json").unlink()
    next((place / "vectors").glob("*")).write_bytes(b"cut short")
    with pytest.raises(StudyError, match=r"part-\d+.parquet at .* is damaged .* delete it"):
        embed_users(encoder_folder, CorpusSpec(events=str(log), services=services), str(place))


def test_an_actor_does_the_work_of_each_packed_row(
    encoder_folder, log, tmp_path, monkeypatch, in_this_process
):
    """The calls that actors receive, one row per call, without Ray."""
    monkeypatch.setattr(pipeline.ray, "get", lambda held: held)

    def make_parts(reading, exported, plan, gpus_per_worker):
        rows = pa.concat_tables(
            [table for part in reading.parts for table in read_user_rows(part, reading, plan)]
        )
        packed = gather_buckets(rows, exported, plan)
        users = pipeline.EncodingActor(exported, plan, pipeline.encode_users)
        done = [users(packed.slice(row, 1))["number"][0].as_py() for row in range(len(packed))]
        assert sorted(done) == list(range(plan.buckets))
        assert users(packed[:0]).num_rows == 0

    monkeypatch.setattr(embed, "make_parts", make_parts)
    manifest = embed_users(encoder_folder, str(log), str(tmp_path / "o"), gpus_per_worker=1)
    expected = load_encoder(encoder_folder).encode(
        pq.read_table(log).filter(pc.field("user_id") == "stranger")
    )
    (row,) = read(tmp_path / "o").filter(pc.field("user_id") == "stranger").to_pylist()
    assert manifest["vectors"] == manifest["users"]
    assert np.allclose(row["vector"], expected.values[0], atol=1e-5)


def test_each_distinct_item_is_encoded_once_over_the_whole_log(
    encoder_folder, events, log, tmp_path, monkeypatch, in_this_process
):
    found, encoded, plain = [], [], encode.encode_items

    def count(transformer, histories, items):
        encoded.extend(histories.item_keys[items].tolist())
        return plain(transformer, histories, items)

    find = ItemVectors.find

    def keep(self, keys):
        known, vectors = find(self, keys)
        found.append((keys[known], vectors))
        return known, vectors

    monkeypatch.setattr(encode, "encode_items", count)
    monkeypatch.setattr(ItemVectors, "find", keep)
    embed_users(encoder_folder, str(log), str(tmp_path / "o"))
    recent = events.to_pandas().sort_values("timestamp").groupby(["user_id", "service"]).tail(6)
    items = len(recent[["service", "text"]].drop_duplicates()) + 1  # and the stranger's
    assert len(encoded) == len(set(encoded)) == items
    assert sum(len(keys) for keys, _ in found) > items  # most buckets share most items
    assert not (tmp_path / "o" / "items").exists()


def test_ranges_of_items_that_are_written_are_not_encoded_again(
    encoder_folder, log, tmp_path, monkeypatch, in_this_process
):
    """A run that was killed leaves vectors of items; what they lack is encoded with its users."""
    monkeypatch.setattr(embed.Parts, "remove_items", lambda self: None)
    place = tmp_path / "o"
    manifest = embed_users(encoder_folder, str(log), str(place))
    expected = read(place)
    files = sorted((place / "items").iterdir())
    times = {file: file.stat().st_mtime_ns for file in files[1:]}
    files[0].write_bytes(b"")  # knows no item
    shutil.rmtree(place / "vectors")
    (place / "manifest.json").unlink()
    assert embed_users(encoder_folder, str(log), str(place)) == manifest
    assert {file: file.stat().st_mtime_ns for file in files[1:]} == times
    assert np.allclose(read(place)["vector"].to_pylist(), expected["vector"].to_pylist(), atol=1e-6)


def test_vectors_of_items_at_a_uri_are_fetched_once_per_node(
    encoder_folder, log, tmp_path, monkeypatch, in_this_process
):
    cache = tmp_path / "cache"
    monkeypatch.setattr(items, "node_folder", lambda name: cache)
    fetched, fetch = [], items.fetch_files

    def count(place, names, folder):
        fetched.extend(names)
        fetch(place, names, folder)

    monkeypatch.setattr(items, "fetch_files", count)
    place = f"file://{tmp_path}/lake"
    (cache / "an earlier attempt").mkdir(parents=True)
    manifest = embed_users(encoder_folder, str(log), place)
    assert len(fetched) == len(set(fetched)) > 1
    found, expected = (
        read(tmp_path / "lake"),
        load_encoder(encoder_folder).encode(
            pq.read_table(log).filter(pc.field("text").is_valid() & pc.field("user_id").is_valid())
        ),
    )
    vectors = dict(zip(found["user_id"].to_pylist(), found["vector"].to_pylist(), strict=True))
    assert np.allclose([vectors[u] for u in expected.user_ids], expected.values, atol=1e-6)
    assert manifest["vectors"] == len(vectors)
    assert not (tmp_path / "lake" / "items").exists()
    assert not (cache / "an earlier attempt").exists()


def test_two_embeddings_of_one_node_keep_their_items(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(items, "node_folder", lambda name: tmp_path / "cache")
    for name in "ab":
        (tmp_path / name / "items").mkdir(parents=True)
        keys, vectors = np.array([8 + ord(name)], "<u8"), np.ones((1, 2), "<f4")
        file = tmp_path / name / "items" / "range-00000"
        file.write_bytes(keys.tobytes() + vectors.tobytes())
    one, two = (open_items(f"file://{tmp_path}/{name}", name, 1, 2) for name in "ab")
    for found, name in ((one, "a"), (two, "b")):  # a file is mapped when it is first used
        known, _ = found.find(np.array([8 + ord("a"), 8 + ord("b")], np.uint64))
        assert known.tolist() == [name == "a", name == "b"]
    del one, two, found
    open_items.cache_clear()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(items.shutil, "disk_usage", lambda _: usage._replace(free=15))
    with pytest.raises(StudyError, match=r"items of file:.*: 15 bytes free, 16 needed; free some"):
        open_items(f"file://{tmp_path}/a", "c", 1, 2)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


@pytest.mark.ray
def test_missing_gpus_are_an_error_at_once(embedded, encoder_folder, log, tmp_path):
    with pytest.raises(
        ClusterError,
        match="needs 2 GPU, but the Ray cluster has 1; leave --gpus-per-worker out",
    ):
        embed_users(encoder_folder, str(log), str(tmp_path / "o"), gpus_per_worker=2)


@pytest.mark.parametrize("rows", [0, 3])
def test_a_log_that_names_nobody_is_refused(
    rows, encoder_folder, events, tmp_path, in_this_process
):
    nameless = events[:rows].set_column(0, "user_id", pa.nulls(rows, pa.string()))
    nameless.to_pandas().to_parquet(tmp_path / "log.parquet")
    for _ in range(2):  # and is not finished the second time
        with pytest.raises(EventLogError, match=f"names no user in its {rows} rows"):
            embed_users(encoder_folder, str(tmp_path / "log.parquet"), str(tmp_path / "o"))


@pytest.mark.ray
def test_an_earlier_embedding_by_another_encoder_does_not_count(
    embedded, encoder_folder, log, tmp_path
):
    _, output = embedded
    other = tmp_path / "encoder"
    shutil.copytree(encoder_folder, other)
    card = json.loads((other / "encoder.json").read_text())
    (other / "encoder.json").write_text(json.dumps(card | {"max_item_tokens": 3}))
    with pytest.raises(StudyError, match="leave --since out"):
        embed_users(other, str(log), str(tmp_path / "o"), since=str(output))
    with pytest.raises(StudyError, match="is not a finished embedding"):
        embed_users(other, str(log), str(tmp_path / "o"), since=str(tmp_path))


@pytest.mark.slow
@pytest.mark.ray
def test_actors_that_hold_a_gpu_write_to_a_bucket(
    embedded, encoder_folder, log, s3_query, tmp_path, in_this_process
):
    manifest, output = embedded
    store = pyarrow.fs.FileSystem.from_uri(f"s3://lake{s3_query}&allow_bucket_creation=true")[0]
    store.create_dir("lake")
    place = f"s3://lake/vectors{s3_query}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "make_parts", make_parts)
        found = embed_users(encoder_folder, str(log), place, gpus_per_worker=1)
    assert sum(found["devices"].values()) == 16
    assert found | {"devices": {}} == manifest | {"devices": {}}
    pyarrow.fs.copy_files("lake/vectors", str(tmp_path / "b"), source_filesystem=store)
    for kind, column in (("vectors", "user_id"), ("left_out", "reason"), ("histories", "history")):
        assert read(tmp_path / "b", kind)[column].equals(read(output, kind)[column])
    vectors = (read(where)["vector"].to_pylist() for where in (tmp_path / "b", output))
    assert np.allclose(*vectors, atol=1e-5)
    since = f"s3://lake/vectors/manifest.json{s3_query}"
    again = embed_users(encoder_folder, str(log), f"s3://lake/later{s3_query}", since=since)
    assert again["vectors"] == 0
    assert again["left_out"][NOTHING_NEW] == manifest["users"]
    with pytest.raises(StudyError, match="vanished"):
        embed_users(encoder_folder, str(log), f"s3://vanished/vectors{s3_query}")


def test_a_catalogue_of_other_keys_is_refused_before_the_log_is_read(tmp_path, monkeypatch):
    frame = pd.DataFrame({"user_id": ["a", "b"], "service": "s", "timestamp": [1, 2]})
    frame.assign(sku=["SKU-7", "SKU-8"]).to_parquet(tmp_path / "log.parquet")
    items = {"events.sku": {"table": str(tmp_path / "items.parquet"), "key": "k", "text": "{t}"}}
    for keys, refused in ((["7", "8"], True), (["7", "SKU-8"], False)):
        pd.DataFrame({"k": keys, "t": ["tea", "cups"]}).to_parquet(tmp_path / "items.parquet")
        spec = CorpusSpec(events=str(tmp_path / "log.parquet"), text="{sku}", items=items)
        reading = load_catalogues(plan_reading(spec))
        (told,) = pipeline._check_catalogues(reading)  # of two rows, none need be known
        assert told.startswith(f"{1 + refused} of 2 rows have an id of events.sku that catalogue")
        monkeypatch.setattr(pipeline, "ENOUGH_ROWS", 2)
        with pytest.raises(EventLogError, match="None of the 2 ids") if refused else nullcontext():
            pipeline._check_catalogues(reading)
        monkeypatch.undo()
