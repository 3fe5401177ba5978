"""The documentation holds: links, the README, the examples in docstrings."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_command

import clue_ray
from clue_ray.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for places in ("*.md", "docs/**/*.md", "cluster/*.md", "studies/**/*.md")
    for page in ROOT.glob(places)
)
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s#]*)(?:#([^)\s]+))?\)")
INCLUDED = ROOT / "studies" / "open-clue" / "claims"
"""Texts of docs/notes/open-clue-study.md, where their links lead from."""
EXAMPLES = [
    "Runs",
    "RunSpec",
    "StudySpec",
    "allocate",
    "analyse",
    "backtest",
    "budget_for_loss",
    "fit_law",
    "identifiability",
    "influence",
    "marginal_returns",
    "read_runs",
    "read_study",
    "read_task",
    "sensitivity",
    "steps_to_loss",
]
"""Public names that run in about a second without Ray: each has an example."""


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    home = ROOT / "docs" / "notes" if page.parent == INCLUDED else page.parent
    for path, anchor in LINK.findall(page.read_text()):
        target = (home / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {path}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {path}#{anchor}"


def test_the_readme_is_short_and_narrow():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 96


@pytest.mark.parametrize("page", ["README.md", "docs/guide/commands.md"])
def test_every_command_is_documented(page):
    named = re.findall(r"^\| `clue-ray ([a-z]+)", (ROOT / page).read_text(), flags=re.M)
    assert set(named) == set(get_command(app).commands)


def test_options_of_the_command_page_exist():
    options = {
        option
        for command in get_command(app).commands.values()
        for parameter in command.params
        for option in parameter.opts
    }
    named = re.findall(r"`(?:[^`]* )?(--[a-z-]+)", (ROOT / "docs/guide/commands.md").read_text())
    assert set(named) <= options | {
        "--install-completion",
        "--show-completion",
        "--logdir",
        "--head",
        "--resources",
        "--help",
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings_run(name):
    module = import_module(clue_ray._HOMES[name])
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder().find(getattr(clue_ray, name), name, module):
        runner.run(example)
    assert runner.tries > 0
    assert runner.failures == 0
