"""An exported encoder of the planted corpus, and embedding without Ray."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clue_ray.corpus.tokenizer import train_tokenizer
from clue_ray.encoder.model import Encoder
from clue_ray.spec.compute import Vocabulary
from clue_ray.spec.specs import EncoderSpec, EvaluationSpec, RunSpec, TrainSpec
from clue_ray.training.context import LocalContext
from clue_ray.training.loop import train_with
from clue_ray.transfer.embed import embed
from clue_ray.transfer.embed.items import list_items, share_items, write_items
from clue_ray.transfer.embed.pipeline import encode_users
from clue_ray.transfer.embed.writing import USER_ROWS, gather_buckets, read_user_rows
from clue_ray.transfer.encode import UserEncoder
from clue_ray.transfer.encoder_file import export_encoder

SHAPE = EncoderSpec(width=16, item_layers=1, service_layers=1, heads=2, output_width=8)


@pytest.fixture(scope="session")
def run_spec():
    return RunSpec(
        encoder=SHAPE, train=TrainSpec(global_batch_size=16, steps=30, seed=3), sequence_length=6
    )


@pytest.fixture(scope="session")
def events(planted_log):
    return pq.read_table(planted_log, columns=["user_id", "service", "timestamp", "text"])


@pytest.fixture(scope="session")
def encoder_folder(run_spec, corpus, events, tmp_path_factory):
    """An exported encoder for the planted corpus, with random weights, including positions."""
    texts = sorted(set(events["text"].to_pylist()))
    train_tokenizer(texts, corpus.manifest["spec"]["vocab_size"]).save(
        str(corpus.path / "tokenizer.json")
    )
    vocabulary: Vocabulary = corpus.vocabulary(run_spec.sequence_length)
    model = Encoder(run_spec.encoder, vocabulary, 0.1, 0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("run") / "encoder"
    export_encoder(folder, model.state_dict(), run_spec, "abc123", corpus)
    return folder


@pytest.fixture(scope="session")
def finished(run_spec, encoder_folder, corpus, tmp_path_factory):
    """A study and its run, as an earlier version left them."""
    assert encoder_folder.exists()  # its fixture gives the corpus its tokenizer
    study = tmp_path_factory.mktemp("study")
    run = run_spec.model_copy(update={"train": run_spec.train.model_copy(update={"steps": 3})})
    evaluation = EvaluationSpec(candidates=16, every=1)
    run_id = run.run_id(corpus.digest, 16)
    folder = study / "runs" / run_id
    record, _ = train_with(run, corpus, evaluation, LocalContext(folder / "checkpoints"))
    (folder / "spec.json").write_text(run.model_dump_json())
    (folder / "record.json").write_text(record.model_dump_json())
    (study / "corpus.json").write_text(json.dumps({"path": str(corpus.path)}))
    (study / "owner.json").write_text("{}")
    return study, folder


@pytest.fixture
def in_this_process(monkeypatch):
    """Do the work of the Ray Data tasks sequentially in this process."""

    def make_parts(reading, exported, plan, gpus_per_worker):
        rows = [table for part in reading.parts for table in read_user_rows(part, reading, plan)]
        encoder = UserEncoder(exported)
        packed = gather_buckets(pa.concat_tables([USER_ROWS.empty_table(), *rows]), exported, plan)
        for items in share_items(list_items(packed, plan)):
            if items.num_rows:
                write_items(items, encoder, plan)
        for row in range(packed.num_rows):
            encode_users(packed.slice(row, 1), encoder, plan)

    monkeypatch.setattr(embed, "make_parts", make_parts)
