"""An exported folder has a card from the run, and a loader that gives the package's vectors."""

import ast
import importlib.util
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models
from typer.testing import CliRunner

from clue_ray.cli.main import app
from clue_ray.corpus.tokenizer import train_tokenizer
from clue_ray.corpus.types import TypeWriter, add_types
from clue_ray.encoder.model import Encoder
from clue_ray.errors import StudyError
from clue_ray.runs import RunRecord, Runs, read_record
from clue_ray.transfer import onnx_file, standalone
from clue_ray.transfer.encode import load_encoder
from clue_ray.transfer.encoder_file import export_encoder, read_encoder
from clue_ray.transfer.export import LOADER, export_model
from clue_ray.transfer.model_card import write_model_card

NEEDED = {"torch", "safetensors", "tokenizers"}


def load_alone(folder: Path):
    """Load an exported folder by the file in it."""
    spec = importlib.util.spec_from_file_location("user_encoder", folder / LOADER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder)


def rows(events: pa.Table) -> list[tuple]:
    names = ["user_id", "service", "timestamp", "text"]
    return list(zip(*(events[name].to_pylist() for name in names), strict=True))


@pytest.fixture(scope="module")
def finished(finished, tmp_path_factory):
    """A copy of the study, without the scores that other tests write into it."""
    study, run = finished
    copy = tmp_path_factory.mktemp("copy") / "study"
    shutil.copytree(study, copy, ignore=shutil.ignore_patterns("transfer"))
    return copy, copy / "runs" / run.name


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    _, run = finished
    folder = tmp_path_factory.mktemp("exported") / "mine"
    export_model(run, folder)
    return folder


def test_the_loader_needs_nothing_of_this_package():
    tree = ast.parse(Path(standalone.__file__).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    roots = {name.partition(".")[0] for name in found}
    assert roots - set(sys.stdlib_module_names) == NEEDED


def test_both_loaders_give_the_same_vectors(exported, events):
    few = events.slice(0, 300)
    there = load_encoder(exported).encode(few)
    alone = load_alone(exported).encode(rows(few))
    assert sorted(alone) == list(there.user_ids)
    found = torch.stack([alone[user] for user in there.user_ids]).numpy()
    assert np.abs(found - there.values).max() < 1e-6


@pytest.mark.parametrize("parts", ["bag+transformer", "bag", "transformer", "transformer+time"])
@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_equal_for_each_part_and_for_doubtful_logs(
    parts, duplicates, run_spec, encoder_folder, corpus, events, tmp_path
):
    shape = run_spec.encoder.model_copy(
        update={name: name in parts for name in ("bag", "transformer", "time")}
        | {"item_layers": 2, "service_layers": 3}
    )
    run = run_spec.model_copy(update={"encoder": shape})
    model = Encoder(shape, corpus.vocabulary(run.sequence_length), 0.1, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.manual_seed(1)))
    export_encoder(tmp_path, model.state_dict(), run, "abc", corpus)
    card = json.loads((tmp_path / "encoder.json").read_text())
    (tmp_path / "encoder.json").write_text(json.dumps(card | {"duplicates": duplicates}))
    odd = [("zoe", "unknown", 5, ""), ("zoe", "unknown", 5, "b a"), ("zoe", "unknown", 5, "a")]
    odd += [("zoe", "unknown", 5, "b a"), ("zoe", corpus.services[0], 1, "é" * 200)]
    log = rows(events.slice(0, 60)) + odd
    table = pa.Table.from_pylist(
        [dict(zip(("user_id", "service", "timestamp", "text"), row, strict=True)) for row in log]
    )
    there = load_encoder(tmp_path).encode(table, per_service=True)
    alone = standalone.load(tmp_path).encode(log, per_service=True)
    keys = list(zip(there.user_ids, there.services, strict=True))
    assert sorted(alone) == keys
    found = torch.stack([alone[key] for key in keys]).numpy()
    assert np.abs(found - there.values).max() < 1e-6
    later = {"per_service": True, "at": corpus.last_time + 1e6}
    moved = load_encoder(tmp_path).encode(table, **later).values
    alone = standalone.load(tmp_path).encode(log, **later)
    assert np.abs(torch.stack([alone[key] for key in keys]).numpy() - moved).max() < 1e-6
    assert np.allclose(moved, there.values, atol=1e-6) == ("time" not in parts)


def test_typed_fields_are_written_as_in_the_package():
    texts = [
        f"⟦kind:category={n % 5}⟧ ⟦price:number={n * 1.5}⟧ ⟦name:codes=[{n} {n % 3} 7]⟧ words"
        for n in range(40)
    ]
    tokenizer = train_tokenizer(texts, 300)
    add_types(tokenizer, Counter(texts))
    odd = ["⟦price:number=1,234.5⟧", "⟦price:number=nan⟧", "⟦price:number= ⟧", "no field"]
    odd += ["⟦kind:category=new⟧", "⟦other:category=x⟧", "⟦other:number=3⟧", "⟦name:codes=⟧"]
    odd += ["⟦price:number=1e999⟧", "⟦name:codes=9,9;9 9⟧", "⟦price:number=.⟧", "⟦torn:number=1"]
    theirs, ours = TypeWriter(tokenizer), standalone.TypedFields(tokenizer)
    assert [ours(text) for text in texts + odd] == [theirs(text) for text in texts + odd]
    plain = standalone.TypedFields(Tokenizer(models.BPE()))
    assert plain(texts[1]) == TypeWriter(Tokenizer(models.BPE()))(texts[1])


def test_another_format_is_refused(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "old")
    card = json.loads((exported / "encoder.json").read_text()) | {"format": 1}
    (tmp_path / "old" / "encoder.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="has format 1; 2 is read here"):
        load_alone(tmp_path / "old")


def test_the_card_is_filled_from_the_run(finished, corpus, tmp_path):
    study, run = shutil.copytree(finished[0], tmp_path / "study"), finished[1].name
    record = json.loads((study / "runs" / run / "record.json").read_text())
    seeds = [record | {"run_id": f"{n}", "seed": n, "loss": 2 + n} for n in range(2)]
    Runs.from_records([RunRecord(**row) for row in [*seeds, record | {"seed": 9}]]).write(study)
    summary = {**corpus.summary(), "events": 123_456}
    (study / "corpus.json").write_text(json.dumps(summary))
    rival = {"name": "a rival", "loss": 0.125, "loss_candidates": record["loss_candidates"]}
    (study / "baselines.json").write_text(json.dumps({"baselines": [rival]}))
    folder = study / "runs" / run / "transfer"
    folder.mkdir()
    score = {"value": 0.4, "low": 0.3, "high": 0.5}
    methods = [
        {"method": "encoder", "mrr": score},
        {"method": "popularity", "mrr": score, "mrr_lead": score},
    ]
    result = {"task": "meat", "run_id": run, "users": {}, "left_out": {}, "methods": methods}
    (folder / "meat-1.json").write_text(json.dumps(result))
    export_model(study / "runs" / run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"**{record['loss']:.3f} nats**" in card
    assert "| events | 123,456 |" in card
    assert "| a rival | 0.125 |" in card
    assert card.index("| a rival |") < card.index("| **this encoder** |")
    assert "interval of the mean over seeds" in card
    assert "By MRR the encoder is better than popularity" in card
    assert "| popularity | 0.400 [0.300, 0.500] | +0.400 [+0.300, +0.500] |" in card
    assert "license: unknown  # to fill in" in card


def test_code_of_the_card_has_the_names_of_the_log(finished, tmp_path):
    service, text = "R&D <\"a\"> 'b'", '{brand} & <i>{title}</i> ``"x"'
    named = {"services": (service, "other"), "text": text}
    encoder = read_encoder(finished[1]).card.model_copy(update=named)
    record = read_record(finished[1] / "record.json")
    write_model_card(tmp_path / "README.md", encoder, record, finished[1], "none")
    card = (tmp_path / "README.md").read_text()
    (line,) = [line for line in card.splitlines() if line.startswith("vectors = encoder.encode")]
    (call,) = (node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call))
    assert ast.literal_eval(call.args[0])[0][1] == service
    assert f"by ```{text!r}```." in card
    assert "<i>" not in card.replace(repr(text), "")


def test_a_run_without_its_study_says_what_is_unknown(exported):
    card = (exported / "README.md").read_text()
    assert "without the directory of its study" in card
    assert "Not evaluated; `clue-ray transfer" in card


def test_the_command_says_what_it_wrote(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    folder = tmp_path / "new" / "mine"
    done = CliRunner().invoke(app, ["export", str(finished[1]), "--output", str(folder)])
    assert done.exit_code == 0, done.output
    assert "README.md, encoder.json, tokenizer.json, user_encoder.py, weights" in done.output
    assert "ONNX file: none, because onnx is not installed (pip install" in done.output
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]


def test_what_cannot_be_exported_is_told_in_one_sentence(finished, exported, tmp_path):
    study, run = finished
    failed = tmp_path / "runs" / "f"
    shutil.copytree(run, failed)
    record = json.loads((run / "record.json").read_text())
    (failed / "record.json").write_text(json.dumps(record | {"status": "failed"}))
    bare = tmp_path / "runs" / "b"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("encoder", "checkpoints"))
    shutil.copy(study / "corpus.json", tmp_path / "corpus.json")
    file = tmp_path / "file"
    file.touch()
    wrong = {
        "is failed and has no trained encoder": (failed, tmp_path / "out"),
        "neither an encoder nor a checkpoint": (bare, tmp_path / "out"),
        "mine has files; give a new or empty folder": (run, exported),
        "is a file; give a new or empty folder": (run, file),
        "no record.json, from which the model card": (exported, tmp_path / "out"),
        "is a study; give one of its runs": (study, tmp_path / "out"),
        "is a URI; export from and to local folders": (run, "s3://bucket/mine"),
    }
    for sentence, (source, target) in wrong.items():
        with pytest.raises(StudyError, match=sentence):
            export_model(source, target)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_onnx_file_is_equal_to_the_model(exported, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed (clue-ray[onnx])")
    encoder = standalone.load(exported)
    assert "equal to the model within" in onnx_file.write_onnx(encoder, tmp_path)
    with torch.no_grad():  # a model that the file is not of
        encoder.tower.bag.table.weight.add_(1.0)
    with pytest.raises(ValueError, match="differ from the model's"):
        onnx_file._compare(encoder, tmp_path / onnx_file.ONNX_FILE, 6)
