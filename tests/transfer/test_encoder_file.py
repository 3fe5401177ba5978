"""A run exports the encoder that it trained; an older run exports it when it is read."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from clue_ray.cli.main import app
from clue_ray.corpus.store import open_corpus
from clue_ray.errors import StudyError
from clue_ray.training.checkpoints import load_state
from clue_ray.transfer import encoder_file
from clue_ray.transfer.encoder_file import export_run, read_encoder


def test_the_exported_weights_are_those_of_the_last_checkpoint(finished, corpus, tmp_path):
    _, folder = finished
    run_id = folder.name
    run = read_encoder(folder).card.run
    states, opened = folder / "checkpoints", open_corpus(corpus.path)
    step = load_state(states)["progress"]["step"]
    assert export_run(tmp_path, states, run, run_id, opened, step)
    exported, state = read_encoder(tmp_path), load_state(folder / "checkpoints")
    assert state["run_id"] == run_id == exported.card.run_id
    assert all(
        torch.equal(exported.weights[name], tensor) for name, tensor in state["model"].items()
    )
    assert read_encoder(folder).card.digest == exported.card.digest  # exported late
    assert not export_run(tmp_path / "other", states, run, "another", opened, step)
    assert not export_run(tmp_path / "other", states, run, run_id, opened, step + 1)
    assert not (tmp_path / "other").exists()


def test_a_study_or_an_unfinished_run_is_no_encoder(finished, tmp_path):
    study, folder = finished
    with pytest.raises(
        StudyError, match=f"is a study; give one of its runs, such as .*{folder.name}"
    ):
        read_encoder(study)
    failed = tmp_path / "runs" / "f"
    shutil.copytree(folder, failed, ignore=shutil.ignore_patterns("encoder", "checkpoints"))
    shutil.copy(study / "corpus.json", tmp_path / "corpus.json")
    with pytest.raises(StudyError, match="neither an encoder nor a checkpoint"):
        read_encoder(failed)
    record = json.loads((failed / "record.json").read_text()) | {"status": "diverged"}
    (failed / "record.json").write_text(json.dumps(record))
    with pytest.raises(StudyError, match="is diverged; give the folder of a finished run"):
        read_encoder(failed)


@pytest.mark.parametrize(
    "path", ["s3://lake/c?endpoint_override=192.0.2.1", "s3://lake/c#x", None, 3]
)
def test_a_study_of_a_stranger_leads_no_credentials_to_another_server(
    finished, tmp_path, path, monkeypatch
):
    """Its corpus.json names the corpus that is read to export an encoder."""
    _, folder = finished
    run = tmp_path / "runs" / folder.name
    shutil.copytree(folder, run, ignore=shutil.ignore_patterns("encoder"))
    (tmp_path / "corpus.json").write_text(json.dumps({"path": path}))
    monkeypatch.setattr(encoder_file, "open_corpus", lambda *_, **__: pytest.fail("it is opened"))
    with pytest.raises(StudyError, match="must be a folder or a URI without a query; copy"):
        read_encoder(run)


def test_the_corpus_that_is_read_for_an_encoder_is_named(finished, corpus, tmp_path, caplog):
    study, folder = finished
    run = tmp_path / "runs" / folder.name
    shutil.copytree(folder, run, ignore=shutil.ignore_patterns("encoder"))
    shutil.copy(study / "corpus.json", tmp_path)
    read_encoder(run)
    place = json.loads((study / "corpus.json").read_text())["path"]
    assert f"the tokenizer of the corpus at {place[:80]}." in caplog.text


def test_the_command_prints_methods_and_test_users(finished, planted_log, corpus, tmp_path):
    _, folder = finished
    task = tmp_path / "task.yaml"
    task.write_text(
        f"name: seen\nevents: {planted_log}\nsplit: {{validation: 0.2, test: 0.25}}\nseeds: "
        f"[0]\nscratch_steps: 0\n"
        f"retrieval: "
        f"{{query: {corpus.services[0]}, target: {corpus.services[1]}, candidates: 32}}\n"
    )
    found = CliRunner().invoke(app, ["transfer", str(folder), str(task)])
    assert found.exit_code == 0, found.output
    assert "TF-IDF, cosine" in found.output
    assert "By MRR the encoder" in found.output
    listed = json.loads(
        CliRunner().invoke(app, ["transfer", str(folder), str(task), "--json"]).stdout
    )
    assert listed[0]["task"] == "seen"
    assert listed[0]["methods"][0]["method"] == "guess"
