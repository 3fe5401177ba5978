"""One reported study for all tests that only read it."""

from pathlib import Path

import pytest

from clue_ray.report.page import write_report
from tests.report.planted import planted, write_study


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted study directory with its report."""
    directory = write_study(tmp_path_factory.mktemp("study"), planted())
    assert write_report(directory) == directory / "report" / "index.html"
    return directory
