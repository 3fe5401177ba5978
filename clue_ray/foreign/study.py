"""Tell the directory of a study from the folders of other tools, without a slow import."""

from pathlib import Path

STUDY_FILES = ("runs.parquet", "plan.json")


def is_study(path: Path) -> bool:
    """Return whether a folder is a study's directory, or a page's of another tool's runs."""
    return any((path / name).is_file() for name in STUDY_FILES)
