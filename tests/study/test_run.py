"""A whole small study on real Ray Tune: runs, report, resume, failures as rows."""

import json
import sys
from typing import ClassVar

import pandas as pd
import pytest
from ray import tune

from clue_ray.errors import CorpusError, StudyError
from clue_ray.runs import RUN_COLUMNS
from clue_ray.spec.specs import read_study
from clue_ray.storage.lock import locked
from clue_ray.study.directory import CURVE_COLUMNS
from clue_ray.study.run import plan_study, run_study
from clue_ray.study.tune import tune_results
from tests.study import tracking

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def study(planted_log, write_study):
    return read_study(write_study(planted_log))


@pytest.fixture(scope="module")
def finished(study, output):
    snapshots = []
    runs = run_study(study, output, on_progress=snapshots.append)
    return runs, snapshots


def test_study_runs_reports_and_resumes(finished, study, output, planted_log, write_study):
    runs, snapshots = finished
    assert list(runs.table.columns) == RUN_COLUMNS
    assert len(runs) == 4
    assert (runs.table["status"] == "done").all()
    assert runs.table["run_id"].is_unique
    assert snapshots[-1].finished == 4
    assert sum(len(s.ended) for s in snapshots) == 4
    directory = output / "tiny"
    assert pd.read_csv(directory / "runs.csv")["loss"].tolist() == pytest.approx(
        runs.table["loss"].tolist()
    )
    curves = pd.read_parquet(directory / "curves.parquet")
    assert (curves.groupby("run_id").size() == 2).all()
    assert list(curves.columns) == list(CURVE_COLUMNS)
    assert curves.notna().all(axis=None)
    events = [file.parent.name for file in directory.rglob("events.out.tfevents.*")]
    assert sorted(events) == sorted(runs.table["run_id"])  # one a run, and none of Tune's
    for run_id in runs.table["run_id"]:
        left = {path.name for path in (directory / "runs" / run_id).iterdir()}
        assert {"spec.json", "record.json", "checkpoints", "log.txt"} <= left

    assert (directory / "report" / "index.html").exists()
    assert (directory / "report" / "report.md").exists()
    assert (directory / "fits.json").exists()

    again = run_study(study, output)
    pd.testing.assert_frame_equal(
        again.table, runs.table
    )  # the same seconds: nothing was trained again

    wider = read_study(
        write_study(planted_log, axes={"sequence_length": [2, 4, 8], "encoder.size": ["xxs", "xs"]})
    )
    grown = run_study(wider, output)
    kept = grown.table.set_index("run_id").loc[runs.table["run_id"]]
    assert len(grown) == 6
    assert kept["started_at"].tolist() == runs.table["started_at"].tolist()


def test_plan_before_and_after(study, output, finished):
    plan = plan_study(study, output)
    assert len(plan.runs) == 4
    assert not plan.pending
    assert plan.expected_minutes == 0
    for planned, (_, row) in zip(plan.runs, finished[0].table.iterrows(), strict=True):
        assert planned.run_id == row["run_id"]
        assert planned.steps == row["steps"]
        assert planned.train_flops == pytest.approx(row["train_flops"], rel=0.15)
        assert planned.description.non_embedding_params == row["non_embedding_params"]
    assert (
        json.loads((output / "tiny" / "plan.json").read_text())["runs"][0]["expected_seconds"] > 0
    )


def test_another_study_in_the_folder_is_refused(planted_log, write_study, output, finished):
    other = read_study(write_study(planted_log, evaluation={"candidates": 8}))
    with pytest.raises(
        StudyError, match=r"belongs to another study \(candidates 16 there, 8 here\)"
    ):
        run_study(other, output)


def test_foreign_folder_is_refused(planted_log, write_study, output, finished):
    (output / "foreign").mkdir()
    (output / "foreign" / "thesis.tex").write_text("mine")
    with pytest.raises(StudyError, match="not empty and holds no study"):
        run_study(read_study(write_study(planted_log, name="foreign")), output)
    assert [p.name for p in (output / "foreign").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"base__train": {"steps": 2, "global_batch_size": 4000}},
            "global_batch_size 4000 is larger than",
        ),
        ({"evaluation": {"candidates": 900}}, "evaluation.candidates 900 is larger than"),
    ],
)
def test_what_cannot_train_stops_before_anything(planted_log, write_study, output, changes, words):
    study = read_study(write_study(planted_log, name="hopeless", **changes))
    with pytest.raises(CorpusError, match=words):
        run_study(study, output)
    assert not (output / "hopeless").exists()


@pytest.mark.slow
def test_failed_run_is_a_row_and_tried_again_when_asked(planted_log, write_study, output, finished):
    study = read_study(write_study(planted_log, name="broken", axes={"sequence_length": [2, 3]}))
    unlucky = plan_study(study, output).runs[1].run_id
    run_study(
        read_study(write_study(planted_log, name="broken", axes={"sequence_length": [2]})), output
    )
    in_the_way = output / "broken" / "runs" / unlucky / "log.txt"
    in_the_way.mkdir(parents=True)  # a folder where a file should be

    runs = run_study(study, output)
    assert runs.table["status"].tolist() == ["done", "failed"]
    assert runs.table["error"][0] == ""
    assert runs.table["error"][1].startswith("IsADirectoryError")
    assert "Traceback" in (in_the_way.parent / "error.txt").read_text()
    assert len(runs.done) == 1

    in_the_way.rmdir()
    snapshots = []
    assert run_study(study, output, on_progress=snapshots.append).table["status"].tolist() == [
        "done",
        "failed",
    ]
    assert "Failed before: 1, left as they are; clue-ray run --retry-failed" in " ".join(
        snapshots[0].plan.notes
    )
    assert run_study(study, output, retry_failed=True).table["status"].tolist() == ["done", "done"]


def test_a_second_command_on_the_directory_is_refused(study, output, finished):
    with locked(output / "tiny"), pytest.raises(StudyError, match="is in use by process"):
        run_study(study, output)
    assert len(run_study(study, output)) == 4


@pytest.mark.slow
def test_tune_results_are_reachable_and_callbacks_heard(
    study, output, finished, planted_log, write_study, monkeypatch
):
    class Ends(tune.Callback):
        trials: ClassVar[list[str]] = []

        def on_trial_complete(self, iteration, trials, trial, **info):
            self.trials.append(trial.config["run"]["run_id"])

    wandb = tracking.wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    changes = {"axes": {"sequence_length": [2, 4, 5]}, "trackers": ["wandb"]}
    runs = run_study(read_study(write_study(planted_log, **changes)), output, callbacks=[Ends()])
    assert set(wandb.runs) == {*runs.table["run_id"], "report"}
    ended = list(Ends.trials)  # restoring below sets the class back to what Tune pickled
    (grid,) = tune_results(output / "tiny").values()
    assert [result.config["run"]["run_id"] for result in grid] == ended
    assert len(ended) == 1
    assert grid[0].metrics["status"] == "done"
    with pytest.raises(StudyError, match="no results of Ray Tune"):
        tune_results(output)
