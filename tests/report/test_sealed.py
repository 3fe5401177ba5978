"""Sealed forecasts on the page: hits, misses, the score, and what cannot be verified."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clue_ray.errors import FitError
from clue_ray.report.page import write_report
from clue_ray.report.read import StudyFiles, read_directory
from clue_ray.report.section import Section
from clue_ray.report.sections.sealed import sealed
from clue_ray.runs import Runs, read_runs
from clue_ray.scaling.forecasting import seal as sealing
from clue_ray.scaling.forecasting.forecast import forecast
from clue_ray.scaling.forecasting.seal import FOLDER, judge_seals, seal_forecast, verify_seal
from tests.report.planted import planted, write_study

AXES = {"x": "train_flops", "y": "loss"}


def seal(directory: Path, at: float, runs: int = 9) -> Path:
    """Seal a forecast that is made from the first runs of a study."""
    few = Runs(read_runs(directory).table.head(runs))
    return seal_forecast(few, forecast(few, **AXES, at=at), **AXES, folder=directory)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A study of eight runs with a floor, and a ninth and tenth at 4 and 10 times their compute."""
    spent = np.append(np.geomspace(1e12, 1e14, 8), [4e14, 1e15])
    table = pd.concat([planted(9), planted(9).head(1)]).head(10)
    table = table.iloc[[0] * 10].assign(
        run_id=[f"{number:012x}" for number in range(10)],
        train_flops=spent,
        loss=2 + 3 * (spent / 1e12) ** -0.1,
        width=range(10),
    )
    table.loc[table["run_id"] == f"{9:012x}", "loss"] = 4.5  # a run that went wrong: a miss
    return write_study(tmp_path, table)


def shown(directory: Path) -> Section:
    section = sealed(read_directory(directory))
    assert section is not None
    return section


def test_a_study_without_seals_has_no_section(study: Path) -> None:
    assert sealed(read_directory(study)) is None


def test_outcomes_and_the_score_are_shown(directory: Path) -> None:
    for at in (4e14, 1e15, 1e16):
        seal(directory, at, runs=8)
    section = shown(directory)
    rows = [[cell.text for cell in row] for row in section.tables[0].rows]
    assert [row[0] for row in rows] == ["hit", "miss", "open"]
    assert rows[1][4] == "4.50"
    assert rows[2][4:] == ["–", "–"]  # noqa: RUF001  (the page's sign for "no value")
    assert "3 verified; 1 of 2 tested forecasts inside" in section.words[1]
    assert "1 not tested yet" in section.words[1]
    assert section.points == ()


def test_a_seal_that_fails_is_shown_with_the_reason(directory: Path) -> None:
    kept, changed, forged = (seal(directory, at, runs=8) for at in (4e14, 1e15, 1e16))
    changed.write_text(changed.read_text().replace('"value": 3', '"value": 2'))
    document = json.loads(forged.read_text())
    document |= {"value": 2.5, "intervals": {"0.8": [2.0, 3.0]}}
    del document["sha256"]
    forged.write_text(json.dumps({**document, "sha256": sealing._hash(document)}))
    (directory / FOLDER / "cut.json").write_text("{")
    (directory / FOLDER / "nan.json").write_text('{"value": NaN, "sha256": ""}')
    (directory / FOLDER / "folder.json").mkdir()
    empty = {"sha256": sealing._hash({})}
    (directory / FOLDER / "empty.json").write_text(json.dumps(empty))
    html = write_report(directory).read_text(encoding="utf-8")
    assert "1 verified; 1 of 1 tested forecasts inside their 80 % interval" in html
    assert "6 not verified, and so not in the score" in html
    for name, reason in (
        (changed.name, "was changed after it was sealed"),
        (forged.name, "says 2.5, but the engine that it names"),
        ("cut.json", "is damaged"),
        ("nan.json", "was changed after it was sealed"),
        ("folder.json", ""),
        ("empty.json", "is not a sealed forecast: at is missing or invalid"),
    ):
        assert f"Not verified: forecasts/{name} {reason}" in html
    assert str(directory) not in "".join(shown(directory).points)
    assert kept.name not in "".join(shown(directory).points)


@pytest.mark.parametrize("level", ["0.5", "0.8", "0.95"])
def test_an_interval_that_was_hashed_again_is_noticed(directory: Path, level: str) -> None:
    file = seal(directory, 1e16, runs=8)
    document = json.loads(file.read_text())
    del document["sha256"]
    document["intervals"][level][1] *= 1.5
    file.write_text(json.dumps({**document, "sha256": sealing._hash(document)}))
    ((_, card, problem),) = judge_seals(directory, read_runs(directory))
    assert card is None
    assert "or another interval; the card was not written by --seal" in problem


def test_a_seal_is_tested_in_a_table_without_compute(directory: Path) -> None:
    table = read_runs(directory).table.drop(columns="loss_candidates")
    other = table.rename(columns={"train_flops": "C", "loss": "L"}).assign(seed=0)
    few = Runs(other.head(8))
    made = forecast(few, x="C", y="L", at=4e14)
    seal_forecast(few, made, x="C", y="L", folder=directory)
    ((_, card, _),) = judge_seals(directory, Runs(other))
    assert card is not None
    assert card.outcome == "hit"


def test_a_seal_of_another_engine_counts_with_a_note(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, runs = seal(directory, 4e14, runs=8), read_runs(directory)
    monkeypatch.setattr(sealing, "engine_fingerprint", lambda: "f" * 64)
    assert verify_seal(file, json.loads(file.read_text()), runs) == ""  # it forecasts the same
    again = sealing.forecast
    monkeypatch.setattr(
        sealing,
        "forecast",
        lambda *a, **k: replace(again(*a, **k), value=3.0),
    )
    ((_, card, problem),) = judge_seals(directory, runs)
    assert problem == ""
    assert card is not None
    assert "the engine here, ffffffff of version" in card.note
    assert "forecasts 3 from the same runs" in card.note
    assert shown(directory).tables[0].rows[0][0].detail == card.note


def test_a_seal_counts_where_another_engine_makes_no_forecast(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal(directory, 4e14, runs=8)

    def refuse(*_: object, **__: object) -> None:
        raise FitError("Too few runs.")

    monkeypatch.setattr(sealing, "forecast", refuse)
    ((_, card, problem),) = judge_seals(directory, read_runs(directory))
    assert card is None  # the engine that sealed it must be able to repeat it
    assert "Too few runs." in problem
    monkeypatch.setattr(sealing, "engine_fingerprint", lambda: "f" * 64)
    ((_, card, problem),) = judge_seals(directory, read_runs(directory))
    assert card is not None
    assert "makes no forecast from the same runs: Too few runs." in card.note


def test_a_score_is_not_forecast_as_if_it_were_a_loss(directory: Path) -> None:
    runs = read_runs(directory)
    for y in ("recall_at_10", "mrr", "transfer_kids_auc"):
        with pytest.raises(FitError, match="is a score, of which higher is better"):
            forecast(runs, x="train_flops", y=y, at=1e16)


def test_a_seal_is_written_below_the_folder_whatever_its_column_is_called(directory: Path) -> None:
    runs = read_runs(directory)
    odd = Runs(runs.table.head(8).rename(columns={"loss": "../../loss"}))
    made = forecast(odd, x="train_flops", y="../../loss", at=1e16)
    file = seal_forecast(odd, made, x="train_flops", y="../../loss", folder=directory)
    assert file.parent == directory / FOLDER
    assert file.name.startswith("loss-at-1e+16-")
    ((_, card, problem),) = judge_seals(directory, runs)
    assert card is None
    assert "needs column '../../loss', which the table does not hold" in problem


def test_the_page_of_a_running_study_shows_seals(directory: Path) -> None:
    (directory / "plan.json").unlink()
    seal(directory, 4e14, runs=8)
    files: StudyFiles = read_directory(directory, running=True)
    assert [judged.problem for judged in files.seals] == [""]
