"""MLflow and W&B get every run once, with its curve, and the report; failures lose nothing."""

import math
import sys

import pytest

from clue_ray.errors import SpecError, StudyError
from clue_ray.foreign.table import import_runs
from clue_ray.runs import RunRecord, Runs
from clue_ray.spec.specs import RunSpec, read_study
from clue_ray.study import trackers
from clue_ray.study.checks import check_study
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.trackers import check_trackers, send_study
from tests.described import make_description
from tests.study import tracking

RUN = RunSpec(train={"steps": 4})


def records() -> list[RunRecord]:
    made = [
        make_description(run_id=f"a{number}", width=8 * number + 8).to_record(
            "done",
            steps=4,
            loss=5.0 - number / 4,
            train_flops=10.0 ** (12 + number),
            wall_seconds=2.5,
            started_at="2026-11-28T14:01:28+00:00",
        )
        for number in range(5)
    ]
    failed = make_description(run_id="ffff").to_record("failed", error="the disk is full")
    return [*made, failed]


@pytest.fixture
def directory(tmp_path):
    """The files of a study with five runs, one failure and one run that is missing."""
    found = StudyDirectory(tmp_path / "tiny")
    for record in records():
        ends = record.loss or 0.0
        curve = [{"step": step, "loss": ends + 4 - step, "train_loss": math.nan} for step in (2, 4)]
        found.write_run(RUN, record, curve if record.status == "done" else [])
    (found.path / "report").mkdir()
    (found.path / "report" / "index.html").write_text("<p>")
    return found


@pytest.fixture
def runs(directory):
    table = Runs.from_records([*records(), make_description(run_id="gone").to_record("missing")])
    table.write(directory.path)
    return table


@pytest.fixture(params=["mlflow", "wandb"])
def tracker(request, monkeypatch):
    module = getattr(tracking, request.param)()
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


def test_runs_curves_and_report_arrive(tracker, directory, runs):
    send_study(directory, "tiny", [tracker.__name__], runs)
    assert set(tracker.runs) == {"a0", "a1", "a2", "a3", "a4", "ffff", "report"}
    best = tracker.runs["a4"]
    assert best["settings"]["project"] == "tiny"
    assert int(best["settings"]["width"]) == 40
    assert [(step, value) for step, name, value in best["points"] if name == "loss"] == [
        (2, 6.0),
        (4, 4.0),
        (4, 4.0),  # the result
    ]
    assert (4, "train_flops", 1e16) in best["points"]
    assert all(isinstance(value, int | float) for _, _, value in best["points"])
    assert [tracker.runs[name]["status"] for name in ("a4", "ffff")] == [0, 1]
    assert sorted(tracker.runs["report"]["files"]) == ["report/index.html", "runs.csv"]


def test_nothing_is_sent_twice_and_a_run_that_was_retried_again(tracker, directory, runs):
    send_study(directory, "tiny", [tracker.__name__], runs)
    send_study(directory, "tiny", [tracker.__name__], runs)
    assert {run["sent"] for run in tracker.runs.values()} == {1}
    again = records()[-1].model_copy(update={"status": "done", "started_at": "2026-11-29"})
    directory.write_run(RUN, again, [])
    Runs.from_records([*records()[:-1], again]).write(directory.path)
    send_study(directory, "tiny", [tracker.__name__], runs)
    sent = {name: run["sent"] for name, run in tracker.runs.items()}
    assert sent.pop("ffff") == sent.pop("report") == 2
    assert set(sent.values()) == {1}


def test_what_a_broken_tracker_lacks_is_sent_by_the_next_command(
    tracker, directory, runs, monkeypatch
):
    kept = trackers._TRACKERS[tracker.__name__].send_run

    def breaks(self, record, curve):
        if record.run_id == "a2":
            raise ConnectionError("no route to\nhost")
        kept(self, record, curve)

    with monkeypatch.context() as broken:
        broken.setattr(trackers._TRACKERS[tracker.__name__], "send_run", breaks)
        with pytest.raises(StudyError, match=r"failed \(no route to host\); the runs and the rep"):
            send_study(directory, "tiny", [tracker.__name__], runs)
    assert set(tracker.runs) == {"a0", "a1"}
    send_study(directory, "tiny", [tracker.__name__], runs)
    assert len(tracker.runs) == 7
    assert {run["sent"] for run in tracker.runs.values()} == {1}


def test_a_run_that_was_half_sent_is_in_mlflow_once(directory, runs, monkeypatch):
    module = tracking.mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    kept = module.MlflowClient.log_batch

    def breaks(self, run_id, metrics=(), params=()):
        if metrics and run_id.startswith("a2"):
            raise ConnectionError("no route to host")
        kept(self, run_id, metrics, params)

    with monkeypatch.context() as broken:
        broken.setattr(module.MlflowClient, "log_batch", breaks)
        with pytest.raises(StudyError, match="no route to host"):
            send_study(directory, "tiny", ["mlflow"], runs)
    assert [run for run, status in module.active.items() if status == "RUNNING"] == ["a2/1"]
    send_study(directory, "tiny", ["mlflow"], runs)
    names = sorted(run.partition("/")[0] for run in module.active)
    assert names == ["a0", "a1", "a2", "a3", "a4", "ffff", "report"]
    assert "RUNNING" not in module.active.values()


def test_a_missing_library_is_told_before_anything_trains(planted_log, write_study, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    study = read_study(write_study(planted_log, trackers=["wandb"]))
    with pytest.raises(SpecError, match=r"names wandb, which is not .* 'clue-ray\[wandb\]'"):
        check_study(study)
    check_trackers(())
    with pytest.raises(SpecError, match="trackers"):
        read_study(write_study(planted_log, trackers=["neptune"]))


@pytest.mark.slow
@pytest.mark.parametrize("store", ["mlruns", "sqlite:///mlflow.db"])
def test_mlflow_itself_holds_a_table_that_can_be_read_back(
    store, directory, runs, tmp_path, monkeypatch
):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (clue-ray[mlflow])")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(store)
    send_study(directory, "tiny", ["mlflow"], runs)
    found = import_runs(tmp_path / store.removeprefix("sqlite:///")).runs.finished
    assert sorted(found["train_flops"]) == [10.0**n for n in range(12, 17)]
    assert found["loss"].min() == 4.0
    (experiment,) = mlflow.search_experiments(filter_string="name = 'tiny'")
    (report,) = mlflow.search_runs(
        [experiment.experiment_id], "attributes.run_name = 'report'", output_format="list"
    )
    names = {item.path for item in mlflow.MlflowClient().list_artifacts(report.info.run_id)}
    assert names == {"report", "runs.csv"}


@pytest.mark.slow
def test_wandb_itself_writes_runs_offline(directory, runs, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (clue-ray[wandb])")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    send_study(directory, "tiny", ["wandb"], runs)
    found = import_runs(tmp_path / "wandb").runs
    assert sorted(found.finished["loss"].dropna()) == [4.0, 4.25, 4.5, 4.75, 5.0]
    assert (found.table["status"] == "failed").sum() == 1
