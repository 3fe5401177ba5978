"""Runs beyond the grid: continued axes, candidates, and rounds with a planted law for training."""

import numpy as np
import pandas as pd
import pytest

from clue_ray.errors import StudyError
from clue_ray.runs import WHOLE, Runs
from clue_ray.scaling.forecasting.forecast import Forecaster
from clue_ray.spec.specs import StudySpec
from clue_ray.study import add_runs
from clue_ray.study.add_runs import (
    AddedRuns,
    AddRunsRequest,
    add_in_rounds,
    continue_axis,
    list_candidates,
)

AXES = {"encoder.size": ["xxs", "xs", "s", "m"], "sequence_length": [2, 4, 8]}


@pytest.fixture(scope="module")
def study():
    base = {
        "encoder": {"size": "xxs", "output_width": 16},
        "train": {"global_batch_size": 16, "steps": 6},
    }
    fit = {"laws": ["power_law_plus_constant", "power_law"]}
    return StudySpec(
        name="g", corpus="c", base=base, axes=AXES, fit=fit, evaluation={"candidates": 16}
    )


@pytest.fixture(scope="module")
def candidates(study, corpus):
    return list_candidates(study, corpus)


def loss_of(row):
    """A planted law over both axes, below ln 16."""
    return 1.0 + 2.0 * row["non_embedding_params"] ** -0.25 + 0.6 * row["sequence_length"] ** -0.5


def trainer(directory, candidates, rise=0.0, fails=lambda row: False, asked=None):
    """Return a stand-in for training: the planted law's losses of the grid and of added runs.

    `asked` collects whether failed runs were to be retried."""

    def train(retry_failed):
        if asked is not None:
            asked.append(retry_failed)
        grid = candidates["encoder_size"].isin(AXES["encoder.size"]) & candidates[
            "sequence_length"
        ].isin([2, 4, 8])
        added = candidates["point"].isin(AddedRuns.read(directory).points)
        table = candidates[grid | added].drop(columns="point")
        loss = table.apply(loss_of, axis=1) + rise * pd.Series(range(len(table)), table.index)
        failed = table.apply(fails, axis=1)
        return Runs(
            table.assign(status=failed.map({True: "failed", False: "done"}), loss=loss.mask(failed))
        ), 8

    return train


def test_axes_of_scale_go_on_by_their_last_ratio():
    assert continue_axis("sequence_length", [4, 8, 16]) == [4, 8, 16, 32, 64]
    assert continue_axis("encoder.size", ["xs", "s"]) == ["xs", "s", "m", "l"]
    assert continue_axis("encoder.size", ["4xl"]) == ["4xl"]
    assert continue_axis("budgets", [1e12, 4e12]) == [1e12, 4e12, 1.6e13, 6.4e13]
    assert continue_axis("train.seed", [0, 1]) == [0, 1]
    assert continue_axis("encoder.size", ["clue-65m", "clue-110m"])[2:] == [
        "clue-160m",
        "clue-725m",
    ]
    assert continue_axis("encoder.width", [16, 24, 36]) == [16, 24, 36, 56, 80]  # heads may be 4
    assert continue_axis("corpus_users", [500, 1000, None]) == [500, 1000, None]
    assert continue_axis("encoder.size, train.learning_rate", [["xs", 0.1], ["s", 0.2]]) == [
        ["xs", 0.1],
        ["s", 0.2],
    ]


def test_candidates_are_the_continued_grid(candidates):
    assert len(candidates) == 6 * 5
    assert candidates["train_flops"].gt(0).all()
    assert candidates["run_id"].is_unique


def test_an_axis_ends_where_the_log_does(study, corpus):
    axes = {"corpus_users": [60, 120]}  # 180 train, so that 240 and 480 do not exist
    table = list_candidates(study.model_copy(update={"axes": axes}), corpus)
    assert sorted(table["corpus_users"]) == [60, 120]


@pytest.mark.slow
def test_added_runs_stay_within_its_budget_and_narrows(study, corpus, candidates, tmp_path):
    budget = 0.7 * float(candidates["train_flops"].max())
    runs = add_in_rounds(
        study, corpus, tmp_path, AddRunsRequest(budget), trainer(tmp_path, candidates)
    )
    added = AddedRuns.read(tmp_path)
    assert 0 < added.spent <= budget
    assert len(runs) == 12 + len(added.runs)
    (low, high), (new_low, new_high) = added.intervals[0], added.intervals[-1]
    assert new_high - new_low < high - low
    assert f"Added {len(added.runs)} runs" in added.sentence()
    again = add_in_rounds(
        study, corpus, tmp_path, AddRunsRequest(budget), trainer(tmp_path, candidates)
    )
    assert len(again) == len(runs)  # the budget is for all commands together


def test_a_run_that_fails_is_paid_for_once(study, corpus, candidates, tmp_path):
    largest = candidates["train_flops"].max()
    asked, fails = [], lambda row: row["encoder_size"] == "l"
    budget = AddRunsRequest(3 * float(largest))
    add_in_rounds(
        study,
        corpus,
        tmp_path,
        budget,
        trainer(tmp_path, candidates, fails=fails, asked=asked),
        retry_failed=True,
    )
    points = [str(point) for point in AddedRuns.read(tmp_path).points]
    assert any("'l'" in point for point in points)
    assert len(points) == len(set(points))
    assert asked[0]
    assert len(asked) > 1
    assert not any(asked[1:])


def test_intervals_at_another_compute_are_not_compared(study, corpus, candidates, tmp_path):
    for predict_at in (1e12, 1e13, 1e13):
        add_in_rounds(
            study, corpus, tmp_path, AddRunsRequest(1.0, predict_at), trainer(tmp_path, candidates)
        )
        assert AddedRuns.read(tmp_path).predict_at == predict_at
        assert len(AddedRuns.read(tmp_path).intervals) == 1


def test_only_runs_of_the_whole_encoder_are_added(study, corpus, candidates, tmp_path, monkeypatch):
    bags = {"encoder.transformer": [False], "sequence_length": [2, 4, 8]}
    both = list_candidates(study.model_copy(update={"axes": [AXES, bags]}), corpus)
    assert set(both["encoder_parts"]) == {WHOLE, "bag"}
    offered = []
    monkeypatch.setattr(add_runs, "list_candidates", lambda *_: both)
    monkeypatch.setattr(
        add_runs, "next_runs", lambda points, law, left, *_: offered.append(left) or []
    )
    add_in_rounds(study, corpus, tmp_path, AddRunsRequest(1e12), trainer(tmp_path, candidates))
    assert set(offered[0]["encoder_parts"]) == {WHOLE}


def test_adding_runs_needs_a_prediction(study, corpus, candidates, tmp_path):
    with pytest.raises(StudyError, match="no forecast to narrow"):
        add_in_rounds(
            study, corpus, tmp_path, AddRunsRequest(1e12), trainer(tmp_path, candidates, rise=0.2)
        )


def test_the_told_interval_is_the_forecast_of_80_percent():
    compute = 10.0 ** np.arange(10, 16)
    table = {"train_flops": compute, "loss": 1 + 3 * (compute / 1e10) ** -0.2}
    forecaster, added = Forecaster.build(table, x="train_flops", y="loss"), AddedRuns()
    added.add_interval(forecaster, 1e17)
    assert added.intervals == [list(forecaster.at(1e17).interval(0.8))]
    added.add_interval(forecaster, 1e15)  # it was measured, so nothing is forecast there
    assert added.intervals == []
