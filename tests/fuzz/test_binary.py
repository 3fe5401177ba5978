"""Binary files by strangers: runs tables, checkpoints, shards, tokenizers, exported encoders."""

import gzip
import io
import json
import pickle
import shutil
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given

from clue_ray.corpus.hashes import sha256
from clue_ray.corpus.store import open_corpus
from clue_ray.corpus.tokenizer import read_tokenizer
from clue_ray.encoder.model import Encoder
from clue_ray.errors import CorpusError, RunsError, StudyError
from clue_ray.runs import read_runs
from clue_ray.spec.specs import RunSpec
from clue_ray.storage.tables import MOST_ROWS
from clue_ray.training.checkpoints import load_state, save_state
from clue_ray.transfer.encoder_file import export_encoder, read_encoder
from tests.fuzz.hostile import CANARY, EXAMPLES, as_json, attack, changed, garbled, reads_or_refuses
from tests.fuzz.test_documents import write

RUN = RunSpec(
    encoder={"width": 16, "item_layers": 1, "service_layers": 1, "heads": 2, "output_width": 8},
    train={"global_batch_size": 16, "steps": 3},
    sequence_length=4,
)


def table_bytes(kind: str) -> bytes:
    frame = pd.DataFrame({"run_id": ["a", "b"], "status": ["done", "failed"], "loss": [2.5, None]})
    stream = io.BytesIO()
    if kind == "parquet":
        frame.to_parquet(stream)
        return stream.getvalue()
    if kind == "json":
        return frame.to_json(orient="records", lines=True).encode()
    text = frame.to_csv(index=False).encode()
    return gzip.compress(text) if kind == "gz" else text


@EXAMPLES
@pytest.mark.parametrize("name", ["runs.parquet", "runs.csv", "runs.csv.gz", "runs.json"])
def test_runs_tables(tmp_path, name, examples):
    file = tmp_path / "in" / name

    @attack(examples)
    @given(garbled(table_bytes(name.rsplit(".", 1)[-1])))
    def damaged(content):
        write(file, content)
        reads_or_refuses(file.parent, lambda: read_runs(file))

    damaged()


@pytest.mark.parametrize("pack", ["gz", "zip"])
def test_a_packed_bomb_is_refused_before_it_fills_memory(tmp_path, pack):
    plain = b"loss\n" + b"\n" * 80_000_000
    file = tmp_path / f"runs.csv.{pack}"
    if pack == "gz":
        file.write_bytes(gzip.compress(plain))
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("runs.csv", plain)
    assert file.stat().st_size < 200_000
    with pytest.raises(RunsError, match=r"unpacks to more than 64,000,000 bytes"):
        read_runs(file)


def test_a_parquet_file_of_endless_equal_rows_is_refused(tmp_path):
    file = tmp_path / "runs.parquet"
    batch = pa.record_batch({"loss": np.full(MOST_ROWS // 8 + 1, 2.5)})
    with pq.ParquetWriter(file, batch.schema) as writer:
        for _ in range(8):
            writer.write_batch(batch)
    assert file.stat().st_size < 200_000
    with pytest.raises(RunsError, match=r"10,000,008 rows, at most 10,000,000 are read"):
        read_runs(file)


STATE = {"run_id": "me", "progress": {"step": 3}, "model": {"w": torch.zeros(4)}}


@EXAMPLES
def test_checkpoints(tmp_path, examples):
    folder = tmp_path / "in"
    save_state(folder, STATE)
    file = folder / "step_00000003.pt"
    whole = file.read_bytes()

    @attack(examples)
    @given(garbled(whole))
    def damaged(content):
        file.write_bytes(content)
        reads_or_refuses(folder, lambda: load_state(folder))

    damaged()


class Attack:
    """What unpickles to a call."""

    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/owned",)


@pytest.mark.parametrize("state", [Attack(), {"progress": {"step": Attack()}}, [], {"progress": 3}])
def test_a_checkpoint_runs_nothing_and_must_be_a_state(tmp_path, state):
    folder = tmp_path / "in"
    folder.mkdir()
    torch.save(state, folder / "step_00000003.pt")
    assert reads_or_refuses(folder, lambda: load_state(folder)) is None
    (folder / "step_00000003.pt").write_bytes(pickle.dumps(state))
    assert reads_or_refuses(folder, lambda: load_state(folder)) is None


def test_a_packed_checkpoint_is_damaged(tmp_path):
    save_state(tmp_path, STATE)
    file = tmp_path / "step_00000003.pt"
    parts = zipfile.ZipFile(io.BytesIO(file.read_bytes()))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in parts.namelist():
            archive.writestr(name, parts.read(name))
        archive.writestr("archive/data/9", b"\0" * 50_000_000)
    assert load_state(tmp_path) is None


@EXAMPLES
def test_tokenizers(tmp_path, corpus, examples):
    folder = tmp_path / "in"
    valid = (corpus.path / "tokenizer.json").read_bytes()
    document = json.loads(valid)
    document["model"]["vocab"] = dict(list(document["model"]["vocab"].items())[:40])
    document["model"]["merges"] = document["model"]["merges"][:3]

    def reads(content):
        write(folder / "tokenizer.json", content)
        reads_or_refuses(folder, lambda: read_tokenizer(str(folder / "tokenizer.json")))

    @attack(examples)
    @given(changed(document))
    def mistyped(changed_document):
        reads(as_json(changed_document))

    @attack(examples)
    @given(garbled(as_json(document)))
    def damaged(content):
        reads(content)

    mistyped()
    damaged()


@pytest.fixture
def copied(corpus, tmp_path):
    """A corpus of one's own, with a way to sign it again after a change."""
    folder = tmp_path / "in"
    shutil.copytree(corpus.path, folder)
    manifest = json.loads((folder / "corpus.json").read_text())

    def sign():
        files = [*folder.glob("shards/*"), *folder.glob("items/*")]
        manifest["files"] = {str(file.relative_to(folder)): sha256(file) for file in files}
        (folder / "corpus.json").write_text(json.dumps(manifest))
        shutil.rmtree(folder / "train", ignore_errors=True)  # or nothing would read the shards

    return folder, sign


@EXAMPLES
@pytest.mark.parametrize("part", ["shards", "items"])
def test_shards_with_matching_sums(copied, part, examples):
    folder, sign = copied
    file = folder / part / "shard-00000.parquet"
    whole = file.read_bytes()

    @attack(examples)
    @given(garbled(whole))
    def damaged(content):
        file.write_bytes(content)
        sign()
        reads_or_refuses(folder, lambda: open_corpus(folder).summary())

    damaged()


def test_a_damaged_shard_is_refused_at_once(copied, monkeypatch):
    folder, sign = copied
    file = folder / "shards" / "shard-00000.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:4] + bytes(byte ^ 255 for byte in whole[4:40]) + whole[40:])
    sign()
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("a damaged file is read again"))
    with pytest.raises(CorpusError, match=r"cannot be read \(shards/shard-00000.parquet: .*again"):
        open_corpus(folder).summary()


def with_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("shards", lambda t: t.drop_columns(["items"])),
        ("shards", lambda t: t.drop_columns(["user_id"])),
        ("shards", lambda t: with_column(t, "items", pa.array([[10**9]] * len(t)))),
        ("shards", lambda t: with_column(t, "items", pa.array(["x"] * len(t)))),
        ("shards", lambda t: with_column(t, "service", pa.array(["?"] * len(t)))),
        ("shards", lambda t: t.slice(0, 0)),
        ("items", lambda t: t.drop_columns(["tokens"])),
        ("items", lambda t: with_column(t, "tokens", pa.array([[10**9]] * len(t)))),
        ("items", lambda t: with_column(t, "text", pa.array(range(len(t))))),
        ("items", lambda t: t.slice(0, 1)),
    ],
)
def test_shards_that_lie(copied, part, change):
    folder, sign = copied
    file = folder / part / "shard-00000.parquet"
    pq.write_table(change(pq.read_table(file)), file)
    sign()
    reads_or_refuses(folder, lambda: open_corpus(folder).summary())


@pytest.fixture
def encoder(corpus, tmp_path):
    """An exported encoder with its initial weights, and a way to sign it again."""
    folder = tmp_path / "in" / "encoder"
    model = Encoder(RUN.encoder, corpus.vocabulary(RUN.sequence_length), 0.1, 0)
    export_encoder(folder, model.state_dict(), RUN, "abc123", corpus)

    def sign(card=None):
        card = json.loads((folder / "encoder.json").read_text()) if card is None else card
        if isinstance(card, dict):
            card["tokenizer_sha256"] = sha256(folder / "tokenizer.json")
            card["weights_sha256"] = sha256(folder / "weights.safetensors")
        (folder / "encoder.json").write_bytes(as_json(card))

    return folder, sign


@EXAMPLES
@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json", "encoder.json"])
def test_exported_encoders_with_matching_sums(encoder, name, examples):
    folder, sign = encoder
    whole = (folder / name).read_bytes()
    card = json.loads((folder / "encoder.json").read_text())

    def reads():
        reads_or_refuses(folder, lambda: read_encoder(folder).model())

    @attack(examples)
    @given(garbled(whole))
    def damaged(content):
        (folder / name).write_bytes(content)
        if name != "encoder.json":
            sign(dict(card))
        reads()

    @attack(examples)
    @given(changed(card))
    def mistyped(document):
        sign(document)
        reads()

    damaged()
    (folder / name).write_bytes(whole)
    mistyped()


def test_an_encoder_larger_than_its_weights_takes_no_memory(encoder):
    folder, sign = encoder
    card = json.loads((folder / "encoder.json").read_text())
    assert read_encoder(folder).model() is not None
    card["run"]["encoder"]["width"] = 65_536
    card["run"]["sequence_length"] = 10**6
    sign(card)
    with pytest.raises(StudyError, match=r"do not fit its encoder\.json"):
        read_encoder(folder).model()
    assert CANARY not in str(folder)
