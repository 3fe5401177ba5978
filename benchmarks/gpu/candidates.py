"""Candidates: each faster path of the training step against the one that it replaces."""

from benchmarks.gpu.results import Recorder
from benchmarks.gpu.setting import Setting


def run(record: Recorder, setting: Setting) -> None:
    """Compare the paths that there are."""
