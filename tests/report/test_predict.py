"""Questions to a study: a loss for a compute, a compute for a loss, and refusals."""

import math
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from clue_ray.errors import FitError, RunsError
from clue_ray.report import predict
from clue_ray.report.predict import predict_study
from tests.report.planted import planted, write_study

_analyse_once = cache(predict._forecaster)


@pytest.fixture(autouse=True)
def analysed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Analyse each study once for all questions, which takes a second or two."""
    monkeypatch.setattr(predict, "_forecaster", _analyse_once)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), planted())


def test_the_two_questions_answer_each_other(study: Path) -> None:
    ahead = predict_study(study, train_flops=1e14)
    back = predict_study(study, loss=ahead.loss)
    assert back.train_flops == pytest.approx(1e14, rel=1e-6)
    assert ahead.low < ahead.loss < ahead.high
    assert back.low < 1e14 < back.high
    assert ahead.beyond == pytest.approx(back.beyond)
    # One interval read both ways: a budget leaves the answer where its loss's interval leaves the
    # loss asked for.
    assert predict_study(study, loss=ahead.high).high == pytest.approx(1e14, rel=1e-4)
    assert predict_study(study, loss=ahead.low).low == pytest.approx(1e14, rel=1e-4)


def test_sentences_state_the_distance_and_the_record(study: Path) -> None:
    words = predict_study(study, train_flops=1e14).sentence()
    assert words.startswith("1.0e14 FLOP reach ")
    assert "times the compute of the largest run" in words
    assert "\n" not in words
    assert "times further were inside their 80 % interval" in words
    assert "nats need" in predict_study(study, loss=5.0).sentence()


def test_an_unbounded_end_is_null(study: Path) -> None:
    answer = predict_study(study, loss=predict_study(study, train_flops=1e16).loss)
    assert answer.high == math.inf
    assert answer.to_dict()["high"] is None
    assert "to unbounded" in answer.sentence()


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({}, "give one of the two"),
        ({"loss": 3.0, "train_flops": 1e12}, "give one of the two"),
        ({"train_flops": -1.0}, "--train-flops is -1"),
        ({"loss": 0.001}, "does not reach loss 0.001"),
        ({"loss": 9.0}, "is not below the best run's"),
        ({"train_flops": 1e6}, "not beyond the best run"),
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


def test_a_table_of_other_columns_is_refused_by_the_names_it_lacks(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1.0, 2, 4, 8], "loss": [4.0, 3, 2, 1]}).to_csv(
        tmp_path / "good.csv", index=False
    )
    with pytest.raises(
        RunsError, match="has no train_flops and loss_candidates; predict takes a study"
    ):
        predict_study(tmp_path / "good.csv", loss=2.0)
