"""The counts of a fuzzing run, printed at its end (by `pytest tests/fuzz` without workers)."""

from tests.fuzz.hostile import outcomes


def pytest_terminal_summary(terminalreporter):
    """Print how many inputs were read, and how many refused by which error."""
    if outcomes:
        parts = ", ".join(f"{kind} {count:,}" for kind, count in outcomes.most_common())
        terminalreporter.write_line(f"fuzzing: {outcomes.total():,} inputs: {parts}")
