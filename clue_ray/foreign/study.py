"""Tell the directory of a study from the folders of other tools, without a slow import."""

from pathlib import Path
from typing import Any

STUDY_FILES = ("runs.parquet", "plan.json")


def is_study(path: Path) -> bool:
    """Return whether a folder is a study's directory, or a page's of another tool's runs."""
    return any((path / name).is_file() for name in STUDY_FILES)


def usable_source(document: dict[str, Any]) -> dict[str, Any]:
    """Return the usable part of source.json, which says how the runs of another tool were read."""
    if not document:
        return {}
    names = document.get("names")
    named = names.items() if isinstance(names, dict) else ()
    texts = {key: document[key] for key in ("name", "path") if isinstance(document.get(key), str)}
    lists = {key: document.get(key) for key in ("notes", "warnings")}
    return {
        **texts,
        **{key: list(map(str, said)) for key, said in lists.items() if isinstance(said, list)},
        "names": {column: words for column, words in named if _is_naming(words)},
    }


def _is_naming(words: Any) -> bool:
    """Return whether a value says what a column is called."""
    return isinstance(words, dict) and all(
        isinstance(words.get(key), str) for key in ("label", "unit")
    )
