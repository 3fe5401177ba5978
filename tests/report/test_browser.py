"""The page in a browser: no requests, sorting, filters, tooltips, and no injected scripts."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clue_ray.report.page import write_report
from clue_ray.runs import Runs
from tests.report.planted import planted, write_study

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'"
)

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    "",
)
WIDTHS = (1280, 390)
SHOWN = "table.sortable tbody tr:not([hidden])"
HACK = "<img src=x onerror='hacked=1'><script>hacked=1</script>\"'`${hacked=1}</style></title>"

pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no chromium is installed; apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a file at a width; afterwards check that there were no errors and no other requests."""
    said: list[str] = []
    asked: list[str] = []

    def open_file(path: Path, width: int = 1280, view: str = "") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{path.as_uri()}{view}")
        return page

    yield open_file
    assert said == []
    assert all(url.startswith("file:") and "/index.html" in url for url in asked)


def runs_of(page: Any) -> list[str]:
    return [row.get_attribute("data-run") for row in page.query_selector_all(SHOWN)]


@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_its_window_and_shows_its_figures(
    study: Path, open_page: Any, width: int
) -> None:
    page = open_page(study / "report" / "index.html", width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    seen = [svg for svg in page.query_selector_all("figure svg") if svg.is_visible()]
    assert len(seen) == len(page.query_selector_all("figure"))
    assert page.is_visible("text=What to double next")


@pytest.mark.parametrize("width", WIDTHS)
def test_runs_are_sorted_and_those_without_a_loss_stay_last(
    study: Path, open_page: Any, width: int
) -> None:
    page = open_page(study / "report" / "index.html", width)
    table = planted()
    rising = table.dropna(subset=["loss"]).sort_values("loss")["run_id"].tolist()
    page.click("th[data-column=loss] button")
    assert runs_of(page)[:9] == rising
    page.click("th[data-column=loss] button")
    assert runs_of(page)[:9] == rising[::-1]
    assert set(runs_of(page)[9:]) == {"lost0", "lost1"}
    page.click("th[data-column=encoder_size] button")
    sizes = [table.set_index("run_id")["encoder_size"][run] for run in runs_of(page)]
    assert list(dict.fromkeys(sizes)) == ["xxs", "xs", "s"]  # by parameters, not by the alphabet


@pytest.mark.parametrize("width", WIDTHS)
def test_filters_narrow_table_and_figures_and_the_url_keeps_them(
    study: Path, open_page: Any, width: int
) -> None:
    page = open_page(study / "report" / "index.html", width)
    page.click(".values[aria-label='encoder size'] button:text-is('xs')")
    page.fill("input[type=search]", "done")
    assert len(runs_of(page)) == 3
    dimmed = {mark.get_attribute("data-run") for mark in page.query_selector_all("svg .dim")}
    assert dimmed
    assert not dimmed & set(runs_of(page))
    again = open_page(study / "report" / "index.html", width, page.evaluate("location.hash"))
    assert runs_of(again) == runs_of(page)
    assert again.input_value("input[type=search]") == "done"
    again.click("text=Show all")
    assert len(runs_of(again)) == 11
    assert not again.query_selector_all("svg .dim")


def test_a_link_to_a_section_keeps_the_view_and_the_url_keeps_both(
    study: Path, open_page: Any
) -> None:
    fresh = open_page(study / "report" / "index.html", view="#runs")
    assert fresh.inner_text("[role=status]").startswith("11 of 11 runs shown")
    assert not fresh.is_visible("text=Show all")
    assert fresh.evaluate("location.hash") == "#runs"
    fresh.click(".values[aria-label='encoder size'] button:text-is('xs')")
    picked = runs_of(fresh)
    fresh.click("nav a[href='#cost']")
    fresh.wait_for_url(
        "**#section=cost&encoder_size=xs"
    )  # not wait_for_function: the page forbids eval
    assert runs_of(fresh) == picked
    assert len(picked) < 11
    again = open_page(study / "report" / "index.html", view="#section=cost&encoder_size=xs")
    assert runs_of(again) == picked
    assert abs(again.evaluate("document.getElementById('cost').offsetTop - scrollY")) < 60


def test_paper_shows_what_the_page_folds(study: Path, open_page: Any) -> None:
    page = open_page(study / "report" / "index.html")
    folded = "document.querySelectorAll('details:not([open])').length"
    before = page.evaluate(folded)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert before
    assert page.evaluate(folded) == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(folded) == before


@pytest.mark.parametrize("width", WIDTHS)
def test_a_mark_says_what_run_it_is_and_a_click_picks_it(
    study: Path, open_page: Any, width: int
) -> None:
    page = open_page(study / "report" / "index.html", width)
    run = planted()["run_id"].iloc[0]
    mark = page.locator(f"[id^='loss-against-compute'][data-run='{run}']:visible use").first
    mark.hover()
    assert page.inner_text(".tip").startswith("size xxs, length 2")
    assert page.is_visible(".tip")
    assert "lit" in page.get_attribute(f"tr[data-run='{run}']", "class")
    mark.click()
    assert runs_of(page) == [run]
    assert f"run={run}" in page.evaluate("location.hash")
    page.mouse.move(0, 0)
    assert not page.is_visible(".tip")


def test_names_that_are_markup_stay_words(tmp_path: Path, open_page: Any) -> None:
    table = planted(runs=3)
    hostile = table.assign(
        study=HACK,
        run_id=[f"{place}{HACK}" for place in range(len(table))],
        encoder_size=HACK,
        device=HACK,
        clue_ray_version=HACK,
        error=HACK,
    )
    Runs(hostile).write(tmp_path)
    page = open_page(write_report(tmp_path))
    page.wait_for_timeout(100)
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.inner_text("h1") == HACK
    assert len(runs_of(page)) == 5
    page.click("tr[data-run] td")
    assert page.evaluate("typeof hacked") == "undefined"
    assert len(runs_of(page)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_a_name_of_dollars_and_four_hundred_letters_fits(
    tmp_path: Path, open_page: Any, width: int
) -> None:
    table = planted()
    names = {"xxs": "$x_{$", "xs": "W" * 400, "s": "$" + "w" * 399}
    write_study(tmp_path, table.assign(encoder_size=table["encoder_size"].replace(names)))
    page = open_page(write_report(tmp_path), width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert "$x_{$" in page.inner_html("figure svg >> nth=0")
    page.click("tr[data-run] td")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_study_in_which_all_runs_failed_lists_them(tmp_path: Path, open_page: Any) -> None:
    Runs(planted().tail(2)).write(tmp_path)
    page = open_page(write_report(tmp_path), 390)
    assert page.inner_text(".answer").startswith("There is no answer yet.")
    assert len(runs_of(page)) == 2
    assert page.evaluate("document.documentElement.scrollWidth") == 390
