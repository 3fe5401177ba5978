"""The dial of a page: numbers of the forecast, a target and a price, by keyboard."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clue_ray.cli.foreign import write_directory
from clue_ray.report.dial import Dial, build_dial
from clue_ray.report.figures.headline import forecast_band
from clue_ray.report.page import write_report
from clue_ray.report.read import read_directory
from clue_ray.report.sections.downstream import over_compute
from clue_ray.runs import Runs
from clue_ray.scaling.answering.analysis import Analysis, analyse
from tests.foreign.written import RUNS
from tests.report.planted import planted, write_study

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), "")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dial")
    table, draw = planted(), np.random.default_rng(5)
    spent = table["train_flops"] / table["train_flops"].min()
    error = 0.4 * spent**-0.12 * np.exp(0.003 * draw.standard_normal(len(table)))
    write_study(folder, table.assign(transfer_kids_auc=(1 - error).where(table["loss"].notna())))
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


def test_a_page_gives_one_forecast_of_a_score(dial: Dial, study: Path) -> None:
    """At its last place the dial says what the section on downstream tasks says."""
    words = over_compute("transfer_kids_auc", read_directory(study).done)
    told = re.search(r"give AUC ([\d.]+) \[([\d.]+), ([\d.]+)\]", words)
    assert told is not None
    (curve,) = dial.scores
    assert curve.name == "kids AUC"
    ends = [1 - values[-1] for values in (curve.value, curve.high, curve.low)]
    assert ends == pytest.approx([float(value) for value in told.groups()], abs=6e-4)


def test_a_score_that_has_no_law_is_not_offered(analysis: Analysis, study: Path) -> None:
    done = read_directory(study).done.assign(transfer_kids_auc=0.7)
    made = build_dial(analysis, forecast_band(analysis), done)
    assert made is not None
    assert made.scores == []


@pytest.fixture
def open_page() -> Iterator[Callable[[Path], Any]]:
    """Open a file in a browser; afterwards check that it reported no error."""
    driver = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no chromium is installed; apt-get install chromium")
    said: list[str] = []
    with driver.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text))

        def open_file(file: Path) -> Any:
            page.goto(file.as_uri())
            page.locator("form.dial input[name=compute]").focus()
            return page

        yield open_file
        browser.close()
    assert said == []


def tab_to(page: Any, name: str) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == name


def said_of(page: Any, what: str) -> str:
    return str(page.locator(f"form.dial [data-said={what}]").inner_text())


def numbers_in(words: str) -> list[float]:
    """Read the numbers of a sentence; from a million on they have two digits."""
    found = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", words)
    return [float(number.rstrip(",").replace(",", "")) for number in found]


def reached(curve: Any, name: str, wanted: float) -> float:
    """Interpolate where a curve takes a value, as straight lines between logarithms."""
    values, compute = (np.log(getattr(curve, key))[::-1] for key in (name, "compute"))
    return float(np.exp(np.interp(np.log(wanted), values, compute)))


def test_the_dial_works_by_keyboard_alone(
    study: Path, dial: Dial, open_page: Callable[[Path], Any]
) -> None:
    page = open_page(write_report(study))
    before = said_of(page, "forecast")
    page.keyboard.press("Home")
    assert said_of(page, "forecast") != before
    told = page.evaluate("document.activeElement.getAttribute('aria-valuetext')")
    expected = [dial.compute[0], dial.value[0], 80, dial.low[0], dial.high[0]]
    assert numbers_in(told) == pytest.approx(expected, rel=0.05)
    assert numbers_in(told)[1] == pytest.approx(dial.value[0], rel=1e-3)
    wanted = float(np.sqrt(dial.value[0] * dial.value[-1]))
    tab_to(page, "target")
    page.keyboard.type(f"{wanted:.6f}")
    answer = said_of(page, "target")
    assert answer.startswith("Train ")
    assert numbers_in(answer)[0] == pytest.approx(reached(dial, "value", wanted), rel=0.05)
    early = max(dial.compute[0], reached(dial, "low", wanted))
    assert numbers_in(answer.partition("interval from")[2])[0] == pytest.approx(early, rel=0.05)
    tab_to(page, "of")
    page.keyboard.press("ArrowDown")
    assert "kids AUC" in said_of(page, "target")
    page.keyboard.press("ArrowUp")
    tab_to(page, "speed")
    page.keyboard.press("Control+A")
    page.keyboard.type("1e6")
    hours = dial.compute[0] / 1e6 / 3600
    assert numbers_in(said_of(page, "price")) == pytest.approx([hours], rel=1e-3)
    tab_to(page, "price")
    page.keyboard.type("3")
    assert numbers_in(said_of(page, "price")) == pytest.approx([hours, 3 * hours], rel=1e-3)
    assert "in your currency" in said_of(page, "target")


def test_a_score_is_answered_from_its_own_forecast(
    study: Path, dial: Dial, open_page: Callable[[Path], Any]
) -> None:
    page = open_page(write_report(study))
    (curve,) = dial.scores
    told = numbers_in(said_of(page, "scores"))
    assert told == pytest.approx(
        [1 - curve.value[-1], 80, 1 - curve.high[-1], 1 - curve.low[-1]], rel=1e-3
    )
    tab_to(page, "target")
    tab_to(page, "of")
    page.keyboard.press("ArrowDown")
    error = float(np.sqrt(curve.value[0] * curve.value[-1]))
    for wanted, words in (
        (1 - error, "Train "),
        (1.2, "kids AUC is between 0 and 1; give such a number."),
        (0.1, f"A run has it already (kids AUC {1 - curve.best:.4g}"),
        (1, "The forecast does not reach it within ten times the largest run"),
    ):
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Control+A")
        page.keyboard.type(f"{wanted:.6g}")
        assert said_of(page, "target").startswith(words)
        if words == "Train ":
            place, *_ = numbers_in(said_of(page, "target"))
            assert place == pytest.approx(reached(curve, "value", error), rel=0.06)
        tab_to(page, "of")


def test_the_dial_of_another_tools_runs(tmp_path: Path, open_page: Callable[[Path], Any]) -> None:
    """Compute without a unit has no price, and its loss no nats."""
    table = RUNS[["train_flops", "val_loss"]].set_axis(["C", "L"], axis=1)
    table.to_csv(tmp_path / "stranger.csv", index=False)
    home = write_directory(tmp_path / "stranger.csv", None, None, None, tmp_path)
    page = open_page(write_report(home))
    fields = page.evaluate("[...document.querySelectorAll('form.dial [name]')].map((f) => f.name)")
    assert fields == ["compute", "target"]
    assert "nats" not in said_of(page, "forecast")
    tab_to(page, "target")
    wanted = 1.5 + 3 * (3 * RUNS["train_flops"].max() / 1e12) ** -0.15  # of three times the largest
    page.keyboard.type(f"{wanted:.6f}")
    answer = said_of(page, "target")
    assert "FLOP" not in answer
    assert numbers_in(answer)[0] == pytest.approx(3 * RUNS["train_flops"].max(), rel=0.2)
