"""The counts of a fuzzing run, printed at its end (by `pytest tests/fuzz` without workers)."""

import pytest

from clue_ray.corpus import checksums
from tests.fuzz.hostile import outcomes


@pytest.fixture(autouse=True)
def _sums_in_the_folder(monkeypatch):
    """Let nodes remember checksums in the corpus, where the guard lets them write."""
    monkeypatch.setattr(checksums, "_memory", lambda folder: folder / "checksums.json")


def pytest_terminal_summary(terminalreporter):
    """Print how many tests tried how many inputs, and how many were read or refused, and why."""
    if outcomes:
        ended = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
        tests = sum("tests/fuzz/" in report.nodeid for report in ended)
        parts = ", ".join(f"{kind} {count:,}" for kind, count in outcomes.most_common())
        terminalreporter.write_line(
            f"fuzzing: {tests} tests of {outcomes.total():,} inputs: {parts}"
        )
