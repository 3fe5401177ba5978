"""A run may die as often as it likes while it progresses, and three times where it does not."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from ray import tune
from ray.exceptions import RayActorError
from ray.train import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
)
from ray.tune.experiment.trial import _TrainingRunMetadata

from clue_ray.spec.specs import EvaluationSpec, ResourcesSpec, RunSpec, TrainSpec
from clue_ray.study import trial
from clue_ray.study.patience import ForgivingProgress, PatientCsv, PatientJson
from clue_ray.training import ray_train
from clue_ray.training.counters import describe_run


def live(steps_of_lives):
    """Play lives of a trial, each with the steps that it reports; return the deaths counted."""
    trial = SimpleNamespace(trial_id="t", run_metadata=_TrainingRunMetadata())
    callback, counted = ForgivingProgress(), []
    for steps in steps_of_lives:
        for step in steps:
            callback.on_trial_result(0, [], trial, {"step": step})
        trial.run_metadata.num_failures += 1
        callback.on_trial_recover(0, [], trial)
        counted.append(trial.run_metadata.num_failures)
    return counted


def test_deaths_count_only_where_nothing_is_gained():
    assert live([[], [], []]) == [1, 2, 3]  # dies before it says anything
    assert live([[5, 10], [5, 10], [10]]) == [1, 2, 3]  # dies again and again at step 10
    assert live([[5], [10], [15], [20]]) == [1, 1, 1, 1]
    assert live([[5], [5], [5, 10], [10]]) == [1, 2, 1, 2]


@pytest.mark.parametrize("kind", [PatientCsv, PatientJson])
def test_a_full_disk_costs_lines_of_a_log_and_not_the_study(tmp_path, monkeypatch, kind):
    one = MagicMock(local_path=str(tmp_path), checkpoint=None, config={}, evaluated_params={})
    log, result, real = kind(), {"step": 1, "training_iteration": 1}, open
    full = [True]

    def opened(file, mode="r", **how):
        return real("/dev/full" if full[0] else file, mode.replace("+", ""), **how)

    monkeypatch.setattr("builtins.open", opened)
    log.on_trial_start(0, [], one)
    for _ in range(3):
        log.on_trial_result(0, [], one, result)
    log.on_trial_start(0, [], one)  # a restart closes the file, which is refused too
    full[0] = False
    log.on_trial_start(0, [], one)
    log.on_trial_result(0, [], one, result)
    log.on_trial_complete(0, [], one)
    names = {PatientCsv: "progress.csv", PatientJson: "result.json"}
    assert "1" in (tmp_path / names[kind]).read_text()


@pytest.mark.parametrize(
    ("error", "again"), [(OSError(28, "full"), True), (PermissionError("no"), False)]
)
def test_trouble_of_a_disk_is_given_back_to_tune_and_a_user_s_mistake_is_a_row(
    tmp_path, corpus, monkeypatch, error, again
):
    waits, reports = [], []
    monkeypatch.setattr(trial.time, "sleep", waits.append)
    monkeypatch.setattr(tune, "report", reports.append)

    def fail(*_):
        raise error

    monkeypatch.setattr(trial, "_train_here", fail)
    run = RunSpec(encoder={"size": "xxs"}, train={"steps": 1}, sequence_length=4)
    config = {
        "run": {
            "spec": run.model_dump(mode="json"),
            "description": describe_run(run, corpus, EvaluationSpec()).model_dump(),
        },
        "evaluation": {},
        "corpus": str(corpus.path),
        "directory": str(tmp_path),
    }
    if again:
        with pytest.raises(OSError, match="full"):
            trial.run_trial(config)
        assert waits == [trial.TROUBLE_SECONDS]
        assert not reports
    else:
        trial.run_trial(config)
        assert reports[0]["status"] == "failed"


LOSSES = [
    RayActorError(error_msg="gone"),
    PreemptionError(SimpleNamespace(preempted_ranks=[0])),
    WorkerGroupError("gone", {}),
    ControllerError(WorkerGroupStartupFailedError("gone while it started")),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize(("kept", "lives"), [([-1] * 9, 4), ([0, 1, 2, 3, 4, 4, 4, 4, 4], 7)])
def test_lost_workers_count_only_without_a_new_checkpoint(monkeypatch, kept, lives, loss):
    steps, tries = iter(kept), []

    def lose(*_):
        tries.append(1)
        raise loss

    monkeypatch.setattr(ray_train, "_kept_step", lambda _: next(steps))
    monkeypatch.setattr(ray_train, "make_trainer", lambda *_: SimpleNamespace(fit=lose))
    reports, run = [], RunSpec(train={"steps": 1})
    monkeypatch.setattr(tune, "report", reports.append)
    with pytest.raises(type(getattr(loss, "controller_failure", loss))):
        ray_train.train_on_workers(run, "c", ray_train.EvaluationSpec(), "f", "p", "s")
    assert len(tries) == lives
    assert len(reports) == lives - 1  # each loss that is tried again is told to the study


def fit_with(monkeypatch, errors):
    """Train where Ray Train raises the errors in turn; return what the study was told."""
    left, reports = iter(errors), []

    def fit():
        raise next(left)

    monkeypatch.setattr(ray_train, "_kept_step", lambda _: 3)
    monkeypatch.setattr(ray_train, "make_trainer", lambda *_: SimpleNamespace(fit=fit))
    monkeypatch.setattr(tune, "report", reports.append)
    run = RunSpec(train={"steps": 1})
    with pytest.raises(type(errors[-1].controller_failure)):
        ray_train.train_on_workers(run, "c", ray_train.EvaluationSpec(), "f", "p", "s")
    return reports


def test_a_run_waits_for_room_however_long_it_takes(monkeypatch):
    no_room = [ControllerError(WorkerGroupStartupTimeoutError(2))] * 50
    full = ControllerError(OSError(28, "full"))  # what `run_trial` gives back to Tune
    told = fit_with(monkeypatch, [*no_room, full])
    assert told == [{ray_train.WAITING: "the cluster has no room for 2 workers"}] * 50


def test_workers_that_no_node_can_hold_end_the_run_at_once(monkeypatch):
    never = ControllerError(InsufficientClusterResourcesError("at most 1 GPU"))
    assert fit_with(monkeypatch, [never]) == []


def test_a_worker_whose_cuda_is_lost_is_no_error_of_the_run(monkeypatch):
    def fail(error):
        def share(job):
            raise error

        monkeypatch.setattr(ray_train, "_train_share", share)
        ray_train._run_worker({})

    with pytest.raises(RuntimeError, match="CUDA error"):
        fail(RuntimeError("CUDA error: uncorrectable ECC error encountered"))
    with pytest.raises(ray_train.LoopError):
        fail(RuntimeError("shapes differ"))


def test_workers_on_gpus_have_the_allocator_set_before_ray_calls_cuda(monkeypatch):
    monkeypatch.setattr(ray_train, "TorchTrainer", lambda *_, run_config, **__: run_config)
    monkeypatch.setattr(ray_train, "RunConfig", SimpleNamespace)
    monkeypatch.setattr(ray_train, "TuneReportCallback", MagicMock)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    environments = [
        ray_train.make_trainer(
            RunSpec(train=TrainSpec(steps=4), resources=ResourcesSpec(gpus_per_worker=gpus)),
            {"folder": "/f"},
        ).worker_runtime_env
        for gpus in (0, 1)
    ]
    setting = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert environments == [{}, {"env_vars": setting}]
