"""Read and parse what a stranger may have written: a bounded size, and one kind of error of JSON.

Python's parser raises three kinds of errors for bad documents, one of them for deep nesting.
"""

import json
import re
from pathlib import Path
from typing import Any

MOST_BYTES = 256_000_000
"""Largest file that is read whole; Python needs about ten times as much memory for JSON."""
FILE_NAME = re.compile(r"\w[\w.-]*")
"""Names that documents may give to files and folders: within one folder, never above it."""


class TooLargeError(OSError):
    """A file is larger than its reader takes."""


def check_size(size: int, most: float = MOST_BYTES) -> None:
    """Raise TooLargeError for a file that could fill the memory."""
    if size > most:
        raise TooLargeError(f"it has {size:,} bytes, more than {most:,}")


def read_bounded(file: Path, most: int = MOST_BYTES) -> bytes:
    """Read a file whole, but none that could fill the memory.

    Raises:
        OSError: it cannot be read, or has more than `most` bytes.
    """
    check_size(file.stat().st_size, most)
    return file.read_bytes()


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
        OSError: it cannot be read, or is too large.
        ValueError: as `parse_json`.
    """
    return parse_json(read_bounded(file))


def is_file_name(name: Any) -> bool:
    """Return whether a value can name a file in a folder, and nothing outside it."""
    return isinstance(name, str) and len(name) < 200 and FILE_NAME.fullmatch(name) is not None
