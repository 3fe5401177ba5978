"""Questions to a study: a loss for a compute, a compute for a loss, and refusals."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clue_ray.errors import FitError, RunsError
from clue_ray.report.predict import predict_study
from tests.report.planted import planted, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), planted())


def test_the_two_questions_answer_each_other(study: Path) -> None:
    ahead = predict_study(study, train_flops=1e14)
    back = predict_study(study, loss=ahead.loss)
    assert back.train_flops == pytest.approx(1e14, rel=1e-6)
    assert back.law == ahead.law
    assert ahead.low < ahead.loss < ahead.high
    assert back.low < 1e14 < back.high
    assert ahead.beyond == pytest.approx(back.beyond)
    # One interval read both ways: a budget leaves the answer where its loss's interval leaves the
    # loss asked for.
    assert predict_study(study, loss=ahead.high).high == pytest.approx(1e14, rel=1e-4)
    assert predict_study(study, loss=ahead.low).low == pytest.approx(1e14, rel=1e-4)


def test_sentences_name_the_law_and_the_distance(study: Path) -> None:
    words = predict_study(study, train_flops=1e14).sentence()
    assert words.startswith("1.0e14 FLOP reach ")
    assert "times the compute of the largest run" in words
    assert "\n" not in words
    assert "nats need" in predict_study(study, loss=5.0).sentence()


def test_an_unbounded_end_is_null(study: Path) -> None:
    answer = predict_study(study, loss=predict_study(study, train_flops=1e16).loss)
    assert all(
        value is None or math.isfinite(value)
        for value in answer.to_dict().values()
        if not isinstance(value, str)
    )


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({}, "give one of the two"),
        ({"loss": 3.0, "train_flops": 1e12}, "give one of the two"),
        ({"train_flops": -1.0}, "--train-flops is -1"),
        ({"loss": 0.001}, "ask for"),
        ({"loss": float("nan")}, "positive finite"),
    ],
)
def test_questions_without_an_answer(study: Path, question: dict[str, float], words: str) -> None:
    with pytest.raises(FitError, match=words):
        predict_study(study, **question)


def test_a_study_without_a_preferred_law_is_refused(tmp_path: Path) -> None:
    table = planted()
    done = table["loss"].notna()
    table.loc[done, "loss"] = table.loc[done, "loss"].to_numpy()[::-1]
    with pytest.raises(FitError, match="no answer yet"):
        predict_study(write_study(tmp_path / "s", table), train_flops=1e14)


def test_a_loss_below_the_fitted_floor_is_answered_where_predictions_do_not_exclude_it(
    tmp_path: Path,
) -> None:
    """What `--train-flops` holds in its interval, `--loss` must not exclude."""
    x = np.logspace(10, 13, 9)
    loss = (1.8 + 3 * (x / 1e10) ** -0.2) * np.exp(0.004 * np.random.default_rng(0).normal(size=9))
    table = planted().head(9).assign(train_flops=x, loss=loss)
    study = write_study(tmp_path / "s", table)
    (study / "study.yaml").unlink()
    ahead = predict_study(study, train_flops=1e18)
    answer = predict_study(study, loss=ahead.low)
    assert ahead.law == answer.law == "power_law_plus_constant"
    assert answer.train_flops == math.inf
    assert answer.low == pytest.approx(1e18, rel=1e-2)
    assert answer.to_dict()["train_flops"] is None
    assert "nats need" not in answer.sentence()
    assert "no training compute reaches a loss of" in answer.sentence()
    assert answer.sentence().endswith("not exclude this loss from 1.0e18 FLOP on.")


def test_a_table_of_other_columns_is_refused_by_the_names_it_lacks(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1.0, 2, 4, 8], "loss": [4.0, 3, 2, 1]}).to_csv(
        tmp_path / "good.csv", index=False
    )
    with pytest.raises(
        RunsError, match="has no train_flops and loss_candidates; predict takes a study"
    ):
        predict_study(tmp_path / "good.csv", loss=2.0)
