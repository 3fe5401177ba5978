"""Ray Train trains the same run as one process, with one worker or two; a user's error ends it at
once."""

import pytest
import ray
from ray import tune
from ray.util import placement_group, remove_placement_group

from clue_ray.spec.grid import expand
from clue_ray.spec.specs import EvaluationSpec, ResourcesSpec, read_study
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.run import run_study
from clue_ray.training import ray_train as distributed
from clue_ray.training.loop import train_run
from clue_ray.training.ray_train import WAITING, LoopError, train_on_workers

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

EXECUTION = {
    "executed_flops",
    "wall_seconds",
    "tokens_per_second",
    "num_workers",
    "started_at",
    "study",
}
EVALUATION = EvaluationSpec(candidates=16)


def assert_same(found, expected):
    for column in expected.keys() - EXECUTION:
        a, b = found[column], expected[column]
        assert a == pytest.approx(b, abs=1e-5) if isinstance(b, float) else a == b, column


def test_two_workers_equal_one(planted_log, write_study, tmp_path):
    one = {"sequence_length": [4], "resources.workers": [1]}
    two = {"sequence_length": [4], "resources.workers": [2]}
    records = []
    for name, grid in (("one", one), ("two", two)):
        study = read_study(
            write_study(planted_log, name=name, axes=grid, evaluation={"candidates": 16})
        )
        records.append(run_study(study, tmp_path / "out").table.iloc[0].to_dict())
    assert [record["status"] for record in records] == ["done", "done"]
    assert [record["num_workers"] for record in records] == [1, 2]
    assert_same(*records)
    run = StudyDirectory(tmp_path / "out" / "two").run_path(records[1]["run_id"])
    assert {"log.txt", "record.json", "curve.json"} < {path.name for path in run.iterdir()}
    assert list(run.glob("events.out.tfevents.*"))
    assert "starts, 6 steps on 2 workers" in (run / "log.txt").read_text()


def under_ray_train(run, corpus_path, folder):
    """Train a run through Ray Train, however few its workers, inside a Tune trial as the study
    does."""

    def trial(config):
        tries, make_trainer = [], distributed.make_trainer
        distributed.make_trainer = lambda *how: tries.append(how) or make_trainer(*how)
        try:
            record, _ = train_on_workers(
                run, corpus_path, EVALUATION, folder, str(folder), str(folder / "checkpoints")
            )
            tune.report({**record.model_dump(), "tries": len(tries)})
        except LoopError as error:
            tune.report({"reason": error.reason, "trace": error.trace, "tries": len(tries)})

    folder.mkdir()
    return tune.Tuner(
        tune.with_resources(trial, {"trial_slot": 1}),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0),
    ).fit()[0]


@pytest.fixture
def run(planted_log, write_study):
    return expand(read_study(write_study(planted_log, axes={"sequence_length": [4]})))[0]


@pytest.mark.slow
def test_one_worker_under_ray_train_equals_none(corpus, run, tmp_path):
    found = under_ray_train(run, corpus.path, tmp_path / "run").metrics
    assert_same(found, train_run(run, corpus, EVALUATION).model_dump())


@pytest.mark.slow
def test_ray_data_feeds_ray_train_without_losing_a_digit(corpus, run, tmp_path):
    streamed = run.model_copy(update={"resources": ResourcesSpec(feed="ray_data")})
    found = under_ray_train(streamed, str(corpus.path), tmp_path / "run").metrics
    expected = train_run(run, corpus, EVALUATION).model_dump()
    for column in ("loss", "train_loss", "train_flops", "calibrated_temperature", "steps"):
        assert found[column] == expected[column], column


@pytest.mark.slow
def test_a_user_s_error_is_not_tried_again(corpus, run, tmp_path):
    found = under_ray_train(run, tmp_path / "no corpus", tmp_path / "run")
    assert found.metrics["reason"].startswith("CorpusError: ")
    assert "open_corpus" in found.metrics["trace"]
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert found.metrics["tries"] == 1


@pytest.mark.slow
def test_a_run_without_room_waits_until_it_has_some(corpus, run, tmp_path):
    taken = placement_group([{"CPU": 1}])  # one of the two cores
    ray.get(taken.ready())
    folder = tmp_path / "run"
    folder.mkdir()

    def trial(config):
        told = []

        def report(metrics):
            told.append(metrics[WAITING])
            remove_placement_group(taken)

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
            patch.setattr(distributed, "CONTROLLER_FAILURES", 0)
            patch.setattr(distributed.tune, "report", report)
            wide = run.model_copy(update={"resources": ResourcesSpec(workers=2)})
            record, _ = train_on_workers(
                wide, str(corpus.path), EVALUATION, folder, str(folder), str(folder / "checkpoints")
            )
        tune.report({"status": record.status, "told": told})

    found = tune.Tuner(
        tune.with_resources(trial, {"trial_slot": 1}),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0),
    ).fit()[0]
    assert found.metrics["told"] == ["the cluster has no room for 2 workers"]
    assert found.metrics["status"] == "done"
