"""Finished runs are evaluated on tasks through Ray Tune, once each."""

import json
import os
import shutil

import pyarrow.fs
import pytest
from typer.testing import CliRunner

from clue_ray.cli.main import app
from clue_ray.errors import ClusterError, SpecError, StudyError
from clue_ray.runs import RunRecord, Runs, read_runs
from clue_ray.spec.specs import EvaluationSpec, RunSpec
from clue_ray.storage.lock import locked
from clue_ray.study import scoring
from clue_ray.study.mirror import StoredDirectory
from clue_ray.study.scoring import score_study
from clue_ray.training.context import LocalContext
from clue_ray.training.loop import train_with
from clue_ray.transfer.encoder_file import export_run
from clue_ray.transfer.tasks.evaluate import run_task
from clue_ray.transfer.tasks.spec import TaskSpec, read_tasks

pytestmark = pytest.mark.ray
RUN = {
    "encoder": {"width": 16, "item_layers": 1, "service_layers": 1, "heads": 2, "output_width": 8},
    "train": {"global_batch_size": 16, "steps": 3},
    "sequence_length": 6,
}


@pytest.fixture(scope="module")
def study(corpus, tmp_path_factory):
    """A study directory of two finished runs, one of which lost its encoder, and one that
    failed."""
    folder = tmp_path_factory.mktemp("studies") / "tiny"
    records = []
    for seed in (0, 1):
        run = RunSpec.parse({**RUN, "train": RUN["train"] | {"seed": seed}}, "run")
        run_id = run.run_id(corpus.digest, 16)
        states = folder / "runs" / run_id / "checkpoints"
        record, _ = train_with(
            run, corpus, EvaluationSpec(candidates=16, every=1), LocalContext(states)
        )
        records.append(record)
        if seed == 0:
            assert export_run(states.parent, states, run, run_id, corpus, record.steps)
        shutil.rmtree(states)
        (states.parent / "record.json").write_text(record.model_dump_json())
        (states.parent / "spec.json").write_text(run.model_dump_json())
    (folder / "owner.json").write_text("{}")
    (folder / "corpus.json").write_text(json.dumps({"path": str(corpus.path)}))
    failed = RunRecord(**records[0].model_dump() | {"run_id": "abcdef", "status": "failed"})
    Runs.from_records([*records, failed]).write(folder)
    return folder


@pytest.fixture
def found(planted_log, corpus):
    """Make a task: find users of one service in another."""

    def make(name="found-again", **changes):
        pair = {"query": corpus.services[1], "target": corpus.services[2], "candidates": 32}
        document = {
            "name": name,
            "events": str(planted_log),
            "split": {"test": 0.25},
            "retrieval": pair | changes,
        }
        return TaskSpec.parse(document, name)

    return make


def test_scores_join_the_table_and_failures_are_sentences(study, found, ray_session, monkeypatch):
    tasks = [found(), found("lost", query="nowhere")]
    results = score_study(study, tasks, {})
    good, lost = results[0], results[1]
    alone = run_task(study / "runs" / good["run_id"], tasks[0])
    assert alone == good  # the same whether in a trial or here; kept, not made again
    assert "neither an encoder nor a checkpoint" in lost["error"]
    assert "names service 'nowhere'" in results[2]["error"]
    assert results[3]["error"] == lost["error"]
    table = read_runs(study).table
    assert table["transfer_found_again_mrr"].notna().tolist() == [True, False, False]
    assert table["transfer_found_again_error"].notna().tolist() == [False, True, False]
    assert table["transfer_lost_error"].notna().tolist() == [True, True, False]
    (good_row,) = [row for row in good["methods"] if row["method"] == "encoder"]
    assert table["transfer_found_again_mrr"][0] == good_row["mrr"]["value"]

    monkeypatch.setattr(
        scoring, "_run_trials", lambda *_: pytest.fail("what is known was scored again")
    )
    assert score_study(study, tasks[:1], {}) == results[:2]
    with pytest.raises(
        StudyError, match=r"No run of .* could be scored: Task lost names service 'nowhere'"
    ):
        score_study(study, tasks[1:], {})


def test_logs_are_read_by_tasks_and_not_here(study, found, ray_session, monkeypatch, caplog):
    def prepare(task, reading, say):
        say(f"{task.name} lacks an id")
        raise SpecError(f"read in a process other than {parent}: {os.getpid() != parent}")

    parent = os.getpid()

    def there(*given):
        from clue_ray.study import scoring as own  # of the process that runs this

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(own, "prepare_examples", prepare)
            return own._prepare_there(*given)

    monkeypatch.setattr(scoring, "_prepare_there", there)
    with pytest.raises(StudyError, match=f"a process other than {parent}: True"):
        score_study(study, [found("elsewhere")], {})
    assert "elsewhere lacks an id" in caplog.text


@pytest.mark.parametrize("unseen", [False, True])
def test_only_a_node_that_does_not_see_the_log_has_it_read_here(
    found, ray_session, monkeypatch, unseen
):
    asked, error = (
        [],
        scoring._UnseenError(SpecError("no file")) if unseen else SpecError("too few users"),
    )

    def prepare_on(task, reading, place, options):
        asked.append(options)
        if len(asked) == 1:
            raise error
        return "examples"

    monkeypatch.setattr(scoring, "_prepare_on", prepare_on)
    headless = [{"CPU": 2.0, "memory": 1e3}, {"CPU": 0.0, "memory": 1e12}]
    monkeypatch.setattr(scoring, "cluster_nodes", lambda: headless)
    task = found()
    reading = scoring.plan_events(task)
    if unseen:
        assert scoring._lay_out(task, reading, "") == "examples"
        assert asked[1]["num_cpus"] == 0
        assert asked[1]["memory"] > 0
    else:
        with pytest.raises(SpecError, match="too few users"):
            scoring._lay_out(task, reading, "")
    assert len(asked) == 1 + unseen
    assert asked[0]["memory"] == 1e3  # what a node with a core can have
    assert scoring._sees(task, reading)
    monkeypatch.setattr(os.path, "exists", lambda path: path != reading.files[0].path)
    assert not scoring._sees(task, reading)


def test_a_study_that_another_command_holds_is_not_scored(study, found):
    with locked(study), pytest.raises(StudyError, match="is in use by process"):
        score_study(study, [found()], {})


@pytest.mark.slow
def test_errors_of_a_trial_are_recorded_and_cleared(study, found, ray_session, corpus):
    run_id = next(study.glob("runs/*/encoder")).parent.name
    weights = study / "runs" / run_id / "encoder" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(
        whole[: len(whole) // 2]
    )  # the card is whole, so it is found out by the trial
    task = found("damaged")
    with pytest.raises(StudyError, match=r"could be scored: Encoder file .* is damaged"):
        score_study(study, [task], {})
    weights.write_bytes(whole)
    results = {result["run_id"]: result for result in score_study(study, [task], {})}
    assert "methods" in results[run_id]
    table = read_runs(study).table.set_index("run_id")
    assert table["transfer_damaged_mrr"].notna()[run_id]
    assert table["transfer_damaged_error"].isna()[run_id]


@pytest.mark.slow
def test_the_table_shows_what_was_asked_last(study, found, ray_session):
    shown = []
    for candidates in (32, 16, 32):
        (result, *_) = score_study(study, [found("again", candidates=candidates)], {})
        (row,) = [row for row in result["methods"] if row["method"] == "encoder"]
        shown.append(row["mrr"]["value"])
        table = read_runs(study).table.set_index("run_id")
        assert table["transfer_again_mrr"][result["run_id"]] == row["mrr"]["value"]
    assert shown[0] == shown[2] != shown[1]


def test_encoders_of_a_trial_are_loaded_on_the_device_that_is_asked(study, found, monkeypatch):
    loaded, said = [], []
    monkeypatch.setattr(scoring, "choose_device", lambda gpus: f"a card for {gpus}")
    monkeypatch.setattr(scoring, "load_encoder", lambda place, device: loaded.append(device))
    monkeypatch.setattr(scoring, "evaluate_task", lambda *_: {})
    monkeypatch.setattr(scoring.ray, "get", lambda held: held)
    monkeypatch.setattr(scoring.tune, "report", said.append)
    asked = {"place": str(study / "runs" / "x"), "run_id": "x", "task": "t", "key": "k"}
    scoring._score_trial({"asked": asked}, {"t": (None, None)}, {"other": "place"}, 0.5)
    assert said == [{"error": ""}]
    assert loaded == ["a card for 0.5"] * 2


def test_missing_gpus_are_an_error_before_trials_wait_for_them(study, found, ray_session):
    with pytest.raises(ClusterError, match="needs 1 GPU, but the Ray cluster has 0; leave"):
        score_study(study, [found("on-a-card")], {}, gpus_per_worker=1)


def test_the_command_scores_a_study(study, found, ray_session, tmp_path):
    file = tmp_path / "task.yaml"
    file.write_text(found().model_dump_json())
    shown = CliRunner().invoke(app, ["transfer", str(study), str(file)])
    assert shown.exit_code == 1
    assert "TF-IDF, cosine" in shown.output
    assert "has no score. Run" in shown.output
    with pytest.raises(SpecError, match="have the same name 'found-again'"):
        read_tasks([file, file])


@pytest.mark.slow
def test_a_study_on_storage_has_its_encoders_there(study, found, ray_session, s3_query, tmp_path):
    store = pyarrow.fs.FileSystem.from_uri(f"s3://team{s3_query}&allow_bucket_creation=true")[0]
    store.create_dir("team")
    run_id = next(study.glob("runs/*/encoder")).parent.name
    pyarrow.fs.copy_files(
        str(study / "runs" / run_id), f"team/tiny/runs/{run_id}", destination_filesystem=store
    )
    directory = StoredDirectory(tmp_path / "tiny", f"s3://team/{s3_query}")
    (result,) = scoring.score_runs(directory, [found()], [run_id])
    assert result == run_task(study / "runs" / run_id, found())
    assert not (directory.run_path(run_id) / "encoder").exists()
    assert (directory.run_path(run_id) / "transfer").is_dir()
