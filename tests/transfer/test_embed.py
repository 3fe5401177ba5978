"""Embedding a log on real Ray Data: every user once, resumed by parts, only what is new, nobody lost."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from clue_ray.errors import StudyError
from clue_ray.spec import CorpusSpec
from clue_ray.transfer import embed
from clue_ray.transfer.embed import embed_users
from clue_ray.transfer.inference import UserEncoder, load_encoder
from clue_ray.transfer.writing import NOTHING_NEW, OTHER_SERVICES, rows_of_part, write_parts


@pytest.fixture
def in_this_process(monkeypatch):
    """Do what Ray Data's tasks do one after the other, for tests of what they do."""

    def make_parts(reading, exported, plan, gpus_per_worker):
        rows = [table for part in reading.parts for table in rows_of_part(part, reading, plan)]
        write_parts(pa.concat_tables(rows), UserEncoder(exported), plan)

    monkeypatch.setattr(embed, "make_parts", make_parts)


@pytest.fixture(scope="module")
def log(events, tmp_path_factory):
    """The planted log with a user of bad rows only, a nameless row, and a user of an unknown service."""
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
    return pa.concat_tables([pq.read_table(file) for file in sorted((output / kind).glob("*.parquet"))])


@pytest.mark.ray
def test_every_user_is_in_the_output_or_listed_with_the_reason(embedded, encoder_folder, events):
    manifest, output = embedded
    vectors, left_out = read(output), read(output, "left_out")
    expected = load_encoder(encoder_folder).encode(events)
    found = dict(zip(vectors["user_id"].to_pylist(), vectors["vector"].to_pylist(), strict=True))
    assert set(found) == {*expected.user_ids, "stranger"} and vectors["vector"].type == pa.list_(pa.float32(), 8)
    assert np.allclose([found[user] for user in expected.user_ids], expected.values, atol=1e-6)
    assert left_out.to_pylist() == [{"user_id": "broken", "reason": "text is null or empty"}]
    assert manifest["users"] == manifest["vectors"] == len(found) and manifest["rows_without_user"] == 1
    assert manifest["unknown_services"] == {"elsewhere": 1} and manifest["left_out"] == {"text is null or empty": 1}
    assert json.loads((output / "manifest.json").read_text()) == manifest
    card = load_encoder(encoder_folder).card
    assert manifest["encoder_digest"] == card.digest and manifest["corpus_digest"] == card.corpus_digest


@pytest.mark.ray
def test_an_interrupted_embedding_goes_on_by_parts(embedded, encoder_folder, log, in_this_process):
    manifest, output = embedded
    assert embed_users(encoder_folder, str(log), str(output)) == manifest  # finished: nothing runs
    files = sorted((output / "vectors").glob("*.parquet"))
    times = {file: file.stat().st_mtime_ns for file in files}
    lost, kept = files[0], files[1:]
    lost.unlink()
    (output / "manifest.json").unlink()
    assert embed_users(encoder_folder, str(log), str(output)) == manifest
    assert all(file.stat().st_mtime_ns == times[file] for file in kept) and lost.exists()


@pytest.mark.ray
def test_another_request_does_not_mix_in(embedded, encoder_folder, log, tmp_path):
    _, output = embedded
    with pytest.raises(StudyError, match="other settings"):
        embed_users(encoder_folder, str(log), str(output), per_service=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StudyError, match="other files than an embedding"):
        embed_users(encoder_folder, str(log), str(tmp_path))


@pytest.mark.ray
def test_only_users_with_new_events_are_embedded_again(embedded, encoder_folder, log, tmp_path, in_this_process):
    _, output = embedded
    before = pq.read_table(log)
    user = before["user_id"][0].as_py()
    row = {"user_id": [user, "newcomer"], "service": before["service"][:2].to_pylist(), "text": ["tea", "tea"]}
    latest = pc.max(before["timestamp"]).as_py() + 1
    more = pa.table({**row, "timestamp": [latest, latest]}).select(before.column_names).cast(before.schema)
    later = tmp_path / "later.parquet"
    pq.write_table(pa.concat_tables([before, more]), later)
    manifest = embed_users(encoder_folder, str(later), str(tmp_path / "new"), since=str(output / "manifest.json"))
    assert sorted(read(tmp_path / "new")["user_id"].to_pylist()) == sorted([user, "newcomer"])
    assert manifest["left_out"][NOTHING_NEW] == embedded[0]["users"] - 1
    whole = load_encoder(encoder_folder).encode(pa.concat_tables([before, more]).filter(pc.field("user_id") == user))
    (row,) = read(tmp_path / "new").filter(pc.field("user_id") == user).to_pylist()
    assert np.allclose(row["vector"], whole.values[0], atol=1e-6)


def test_a_vector_a_service_and_services_asked_for(encoder_folder, log, corpus, tmp_path, in_this_process):
    first = corpus.services[0]
    spec = CorpusSpec(events=str(log), services=(first,))
    manifest = embed_users(encoder_folder, spec, str(tmp_path / "o"), per_service=True, precision="float16")
    vectors = read(tmp_path / "o")
    assert set(vectors["service"].to_pylist()) == {first} and vectors["vector"].type == pa.list_(pa.float16(), 8)
    assert manifest["left_out"][OTHER_SERVICES] >= 1
    named = set(pq.read_table(log)["user_id"].to_pylist()) - {None}
    assert {*vectors["user_id"].to_pylist(), *read(tmp_path / "o", "left_out")["user_id"].to_pylist()} == named


@pytest.mark.ray
def test_an_earlier_embedding_by_another_encoder_does_not_count(embedded, encoder_folder, log, tmp_path):
    _, output = embedded
    other = tmp_path / "encoder"
    shutil.copytree(encoder_folder, other)
    card = json.loads((other / "encoder.json").read_text())
    (other / "encoder.json").write_text(json.dumps(card | {"max_item_tokens": 3}))
    with pytest.raises(StudyError, match="leave --since out"):
        embed_users(other, str(log), str(tmp_path / "o"), since=str(output))
    with pytest.raises(StudyError, match="is no finished embedding"):
        embed_users(other, str(log), str(tmp_path / "o"), since=str(tmp_path))
