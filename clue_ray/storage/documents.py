"""Parse JSON that a stranger may have written: one kind of error, and a bounded size.

Python's parser raises three kinds of errors for bad documents, one of them for deep nesting.
"""

import json
import re
from pathlib import Path
from typing import Any

MOST_BYTES = 256_000_000
"""Largest document that is read; Python needs about ten times as much memory for one."""
FILE_NAME = re.compile(r"\w[\w.-]*")
"""Names that documents may give to files and folders: within one folder, never above it."""


def parse_json(content: bytes | str) -> Any:
    """Parse a JSON document.

    Raises:
        ValueError: it is not JSON, or it is too large or too deeply nested to be read safely.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_document(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: as `parse_json`.
    """
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return parse_json(file.read_bytes())


def is_file_name(name: Any) -> bool:
    """Return whether a value can name a file in a folder, and nothing outside it."""
    return isinstance(name, str) and len(name) < 200 and FILE_NAME.fullmatch(name) is not None
