"""Symbolic links in a folder that a stranger may have written: none may lead out of it.

Readers open files by their names, and the system follows links. An archive can therefore hold a
link named runs.csv to a private file, which would be shown in a report or pushed to storage.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from clue_ray.errors import StudyError, reason_of


def check_links(folder: str | Path, names: str = "*") -> None:
    """Check that no link within a folder leads out of it; the folder itself may be a link.

    Args:
        names: pattern of the names of the links that count, where nothing else is read.

    Raises:
        StudyError: one does, or a folder cannot be searched for links.
    """
    root = os.path.realpath(folder)
    try:
        found = next((link for link in _links(root, names) if _leads_out(link, root)), None)
    except OSError as error:
        # The files of a folder that cannot be listed open by their names all the same.
        raise StudyError(
            f"{folder} cannot be searched for links ({reason_of(error)}); make that folder "
            "readable, or delete it."
        ) from None
    if found:
        raise StudyError(
            f"{folder} holds a link that leads out of it ({os.path.relpath(found, root)!r:.200})"
            "; replace it with a copy of what it names, if you trust it, or delete it."
        )


def _leads_out(link: str, root: str) -> bool:
    # realpath, because Path.resolve raises an error for links that form a circle.
    return not Path(os.path.realpath(link)).is_relative_to(root)


def _links(root: str, names: str) -> Iterator[str]:
    """Yield the links in a folder and in the folders below it, without following them.

    Raises:
        OSError: one of the folders cannot be listed.
    """
    folders = [root]
    while folders:
        # A process may delete a folder meanwhile, and the root may be a file, or absent.
        with (
            suppress(FileNotFoundError, NotADirectoryError),
            os.scandir(folders.pop()) as entries,
        ):
            for entry in entries:
                if entry.is_symlink():
                    if fnmatch(entry.name, names):
                        yield entry.path
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
