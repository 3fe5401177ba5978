"""An exported encoder gives the vectors of its model, without ray and for any service."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from clue_ray.encoder.model import Encoder
from clue_ray.errors import EventLogError, StudyError
from clue_ray.spec.specs import EncoderSpec
from clue_ray.training.evaluate import embed
from clue_ray.transfer import encode
from clue_ray.transfer.embed.embed import embed_users
from clue_ray.transfer.embed.packed import pack, unpack
from clue_ray.transfer.encode import Histories, load_encoder
from clue_ray.transfer.encoder_file import export_encoder, read_encoder
from clue_ray.transfer.events import as_events
from tests.plain import plain_embedding


def test_vectors_of_a_log_are_those_of_the_corpus(encoder_folder, corpus, events):
    encoder = load_encoder(encoder_folder)
    found = encoder.encode(events, per_service=True)
    users = np.arange(len(corpus.user_ids))
    row = {key: i for i, key in enumerate(zip(found.user_ids, found.services, strict=True))}
    for service, name in enumerate(corpus.services):
        (present,) = np.nonzero(corpus.counts[:, service])
        rows = [row[corpus.user_ids[user], name] for user in present]
        expected = embed(encoder.model, corpus, users[present], service, 6)
        assert np.allclose(found.values[rows], expected, atol=1e-6)
    first = corpus.events[corpus.offsets[0] :][:6][: corpus.counts[0, 0]]
    plain = plain_embedding(encoder.model, corpus, first).detach().numpy()
    assert np.allclose(found.values[row[corpus.user_ids[0], corpus.services[0]]], plain, atol=1e-5)


def test_an_encoder_of_times_looks_at_the_end_of_its_corpus(run_spec, corpus, events, tmp_path):
    run = run_spec.model_copy(update={"encoder": EncoderSpec(size="xs", time=True, bag=False)})
    model = Encoder(run.encoder, corpus.vocabulary(run.sequence_length), 0.1, 0).eval()
    with torch.no_grad():
        model.transformer.event_time.weight.normal_(generator=torch.manual_seed(1))
    export_encoder(tmp_path, model.state_dict(), run, "abc", corpus)
    encoder = load_encoder(tmp_path)
    whole = encoder.encode(events, per_service=True)
    rows = {key: i for i, key in enumerate(zip(whole.user_ids, whole.services, strict=True))}
    for service, name in enumerate(corpus.services):
        (present,) = np.nonzero(corpus.counts[:, service])
        expected = embed(model, corpus, present, service, run.sequence_length)
        places = [rows[corpus.user_ids[user], name] for user in present]
        assert np.allclose(whole.values[places], expected, atol=1e-6)
    later = encoder.encode(events, per_service=True, at=corpus.last_time + 1e7)
    assert not np.allclose(later.values, whole.values, atol=1e-3)
    histories = Histories(as_events(events), encoder.exported)
    travelled = unpack(pack(0, histories.recent(run.sequence_length)))
    assert np.array_equal(encoder.encode_histories(travelled).values, encoder.encode(events).values)
    plain, moved = (
        Histories(as_events(events), encoder.exported, at) for at in (None, corpus.last_time + 9)
    )
    assert not (plain.fingerprints(6) == moved.fingerprints(6)).any()


def test_a_time_to_look_at_is_refused_where_it_would_change_nothing(
    encoder_folder, planted_log, tmp_path
):
    with pytest.raises(StudyError, match="does not read times, so --at would change nothing"):
        embed_users(encoder_folder, str(planted_log), str(tmp_path / "out"), at=1.0)


def test_a_user_is_the_mean_of_the_services_whatever_their_sizes(encoder_folder, events):
    encoder = load_encoder(encoder_folder)
    each, one = encoder.encode(events, per_service=True), encoder.encode(events)
    assert one.services is None
    assert list(one.user_ids) == sorted(set(events["user_id"].to_pylist()))
    for index, user in enumerate(one.user_ids[:20]):
        mean = each.values[each.user_ids == user].mean(0)
        assert np.allclose(one.values[index], mean / np.linalg.norm(mean), atol=1e-6)


def test_chunks_do_not_change_the_vectors(encoder_folder, events, monkeypatch):
    encoder = load_encoder(encoder_folder)
    whole = encoder.encode(events, per_service=True).values
    monkeypatch.setattr(encode, "EVENTS_PER_PASS", 50)
    monkeypatch.setattr(encode, "ITEMS_PER_PASS", 7)
    assert np.allclose(encoder.encode(events, per_service=True).values, whole, atol=1e-6)


def test_each_distinct_item_is_encoded_once_per_block(encoder_folder, events, monkeypatch):
    encoder, encoded = load_encoder(encoder_folder), []
    plain = encoder.model.transformer.encode_items
    monkeypatch.setattr(encode, "EVENTS_PER_PASS", 50)

    def count(items):
        encoded.append(items.layout.sequences)
        return plain(items)

    monkeypatch.setattr(encoder.model.transformer, "encode_items", count)
    encoder.encode(events)
    recent = events.to_pandas().sort_values("timestamp").groupby(["user_id", "service"]).tail(6)
    assert sum(encoded) == len(recent[["service", "text"]].drop_duplicates())


def test_an_unknown_service_is_read_under_the_shared_guide(encoder_folder, corpus, events):
    encoder = load_encoder(encoder_folder)
    renamed = events.set_column(1, "service", pa.repeat("another", len(events)))
    histories = Histories(as_events(renamed), encoder.exported)
    assert histories.services[-1] == "another"
    assert set(histories.item_tokens[histories.item_offsets[:-1]]) == {corpus.shared_guide}
    assert np.allclose(np.linalg.norm(encoder.encode(renamed).values, axis=1), 1, atol=1e-6)


def test_order_of_rows_counts_where_there_are_no_times(encoder_folder, events):
    encoder = load_encoder(encoder_folder)
    by_time = events.take(
        pc.sort_indices(events, sort_keys=[("user_id", "ascending"), ("timestamp", "ascending")])
    )
    user = by_time.filter(pc.equal(by_time["user_id"], by_time["user_id"][0]))
    timed, ordered = encoder.encode(user), encoder.encode(user.drop_columns(["timestamp"]))
    ties = user["timestamp"].to_pylist()
    assert len(set(ties)) == len(ties)
    assert np.allclose(timed.values, ordered.values, atol=1e-6)
    backwards = user.drop_columns(["timestamp"]).take(pa.array(range(len(user) - 1, -1, -1)))
    assert not np.allclose(encoder.encode(backwards).values, ordered.values, atol=1e-3)


def test_times_are_read_as_a_log_s_are(encoder_folder, events):
    encoder = load_encoder(encoder_folder)
    plain = encoder.encode(events).values
    seconds = events["timestamp"].cast("float64").to_numpy()
    for times in (pd.to_datetime(seconds, unit="s"), pd.to_datetime(seconds, unit="s").astype(str)):
        assert np.array_equal(
            encoder.encode(events.to_pandas().assign(timestamp=times)).values, plain
        )
    with pytest.raises(EventLogError, match=r"nulls in 'timestamp'|cannot be read"):
        encoder.encode(events.to_pandas().assign(timestamp="soon"))


def test_the_encoder_comes_back_as_it_was(encoder_folder, run_spec, corpus):
    exported = read_encoder(encoder_folder.parent)  # the run's folder is accepted, too
    assert exported.card.run.encoder == run_spec.encoder
    assert exported.card.services == corpus.services
    assert exported.card.digest == read_encoder(encoder_folder).card.digest
    untrained = exported.card.build().state_dict()
    assert set(untrained) == set(exported.weights)
    assert not torch.equal(untrained["bag.table.weight"], exported.weights["bag.table.weight"])


def test_loading_needs_no_ray(encoder_folder):
    load = f"clue_ray.load_encoder({str(encoder_folder)!r})"
    code = f"import sys, clue_ray; {load}; print('ray' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.stdout.strip() == "False"


def test_a_folder_without_a_valid_encoder_is_refused(encoder_folder, events, tmp_path):
    with pytest.raises(StudyError, match="holds no encoder"):
        load_encoder(tmp_path)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in encoder_folder.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    (damaged / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(StudyError, match="damaged"):
        load_encoder(damaged)
    (damaged / "weights.safetensors").write_bytes(
        (encoder_folder / "weights.safetensors").read_bytes()
    )
    card = json.loads((damaged / "encoder.json").read_text())
    card["run"]["encoder"]["width"] = 32
    (damaged / "encoder.json").write_text(json.dumps(card))
    with pytest.raises(
        StudyError,
        match=r"do not fit its encoder.json .19,074 weights, and its encoder has 49,234",
    ):
        load_encoder(damaged)
    (damaged / "encoder.json").write_text(json.dumps({**card, "format": 1}))
    with pytest.raises(StudyError, match=r"has format 1, and this version .* reads format 2; load"):
        load_encoder(damaged)
    with pytest.raises(EventLogError, match="no column 'text'"):
        load_encoder(encoder_folder).encode(events.drop_columns(["text"]))
    with pytest.raises(EventLogError, match="1 nulls in 'service'"):
        load_encoder(encoder_folder).encode(
            pa.table({"user_id": ["a"], "service": pa.array([None], pa.string()), "text": ["x"]})
        )
