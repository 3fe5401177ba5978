"""Symbolic links in a folder that a stranger may have written: none may lead out of it.

Readers open files by their names, and the system follows links. An archive can therefore hold a
link named runs.csv to a private file, which would be shown in a report or pushed to storage.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from clue_ray.errors import StudyError


def check_links(folder: str | Path) -> None:
    """Check that no link within a folder leads out of it; the folder itself may be a link.

    Raises:
        StudyError: one does.
    """
    root = os.path.realpath(folder)
    for link in _links(root):
        # realpath, because Path.resolve raises an error for links that form a circle.
        if not Path(os.path.realpath(link)).is_relative_to(root):
            raise StudyError(
                f"{folder} holds a link that leads out of it ({os.path.relpath(link, root)!r:.200})"
                "; replace it with a copy of what it names, if you trust it, or delete it."
            )


def _links(root: str) -> Iterator[str]:
    """Yield the links in a folder and in the folders below it, without following them."""
    folders = [root]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:  # a process may delete it
            for entry in entries:
                if entry.is_symlink():
                    yield entry.path
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
