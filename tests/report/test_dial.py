"""The dial of a page: numbers of the forecast, a target and a price, by keyboard."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clue_ray.report.dial import Dial, build_dial
from clue_ray.report.figures.headline import forecast_band
from clue_ray.report.page import write_report
from clue_ray.report.read import read_directory
from clue_ray.runs import Runs
from clue_ray.scaling.answering.analysis import Analysis, analyse
from tests.report.planted import planted, write_study

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), "")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dial")
    write_study(folder, planted())
    return folder


@pytest.fixture(scope="module")
def analysis(study: Path) -> Analysis:
    return analyse(Runs(read_directory(study).table), ["power_law_plus_constant"])


@pytest.fixture(scope="module")
def dial(analysis: Analysis, study: Path) -> Dial:
    made = build_dial(analysis, forecast_band(analysis), read_directory(study).done)
    assert made is not None
    return made


def test_the_dial_holds_the_forecast(dial: Dial, analysis: Analysis) -> None:
    assert analysis.forecaster is not None
    for place in (0, -1):
        made = analysis.forecaster.at(dial.compute[place])
        assert dial.value[place] == pytest.approx(made.value)
        assert (dial.low[place], dial.high[place]) == pytest.approx(made.interval(0.8))
    assert dial.compute[-1] == pytest.approx(10 * dial.largest)
    assert len(dial.table.rows) >= 3


def test_the_speed_is_that_of_the_larger_runs(dial: Dial, analysis: Analysis) -> None:
    timed = analysis.points[analysis.points["wall_seconds"] > 0]
    if timed.empty:
        assert dial.flop_per_second is None
        return
    larger = timed[timed["train_flops"] >= timed["train_flops"].median()]
    each = larger["train_flops"] / larger["wall_seconds"] / larger["num_workers"]
    assert dial.flop_per_second == pytest.approx(each.median())


def test_the_speed_of_runs_on_unknown_devices_is_unknown(analysis: Analysis, study: Path) -> None:
    points = analysis.points.assign(wall_seconds=60.0)
    for unknown in (points.drop(columns="num_workers"), points.assign(num_workers=np.nan)):
        foreign = replace(analysis, points=unknown)
        made = build_dial(foreign, forecast_band(analysis), read_directory(study).done)
        assert made is not None
        assert made.flop_per_second is None


def test_why_a_task_failed_is_no_score(analysis: Analysis, study: Path) -> None:
    done = read_directory(study).done.assign(transfer_kids_error="Task kids leaks: toys")
    assert build_dial(analysis, forecast_band(analysis), done) is not None


def test_nothing_is_dialled_without_a_forecast(analysis: Analysis, study: Path) -> None:
    silent = replace(analysis, forecaster=None)
    assert build_dial(silent, forecast_band(silent), read_directory(study).done) is None


@pytest.mark.skipif(not CHROMIUM, reason="no chromium is installed; apt-get install chromium")
def test_the_slider_and_the_target_work_by_keyboard(study: Path, dial: Dial) -> None:
    driver = pytest.importorskip("playwright.sync_api")
    page_file = write_report(study)
    said: list[str] = []
    with driver.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text))
        page.goto(page_file.as_uri())
        slider = page.locator("form.dial input[name=compute]")
        slider.focus()
        before = slider.get_attribute("aria-valuetext")
        page.keyboard.press("Home")
        after = slider.get_attribute("aria-valuetext")
        assert before != after
        assert f"{dial.value[0]:.4g}" in after
        target = float(np.sqrt(dial.value[0] * dial.value[-1]))
        page.keyboard.press("Tab")
        page.keyboard.type(f"{target:.4f}")
        answer = page.locator("form.dial [data-said=target]").inner_text()
        assert answer.startswith("Train ") or "best run has it already" in answer
        assert "80% interval" in answer or "already" in answer
        page.locator("form.dial input[name=speed]").fill("1e12")
        page.locator("form.dial input[name=price]").fill("3")
        hours = dial.compute[0] / 1e12 / 3600
        priced = page.locator("form.dial [data-said=price]").inner_text()
        assert "device-hours" in priced
        assert "currency" in priced
        assert hours > 0
        browser.close()
    assert said == []
