"""Node-local folders: working folders synchronised to storage, and the cache of fetched corpora."""

import getpass
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clue_ray.errors import StudyError
from clue_ray.storage.files import fetch_files, list_files, push_files
from clue_ray.storage.place import is_uri

SYNC_SECONDS = 10.0
"""Pause between copies of a working folder to storage."""


def node_folder(name: str) -> Path:
    """Return a folder below this node's temporary folder (TMPDIR) that only this user can write.

    Raises:
        StudyError: others can write the folder.
    """
    root = Path(tempfile.gettempdir()) / f"clue-ray-{getpass.getuser()}"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(
            f"{root} cannot be created ({error.strerror}); set TMPDIR to a folder of your own."
        ) from None
    # On a shared machine, anyone could have created this predictable name first, also as a link.
    if root.is_symlink() or root.stat().st_uid != os.getuid() or root.stat().st_mode & 0o022:
        raise StudyError(
            f"{root} can be written by others; delete it, or set TMPDIR to a folder of your own."
        )
    folder = root / name
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def working_folder(place: str, fetch: str = "", last: str = "") -> Iterator[Path]:
    """Yield a local folder to write in: the place itself, or one that is copied to the URI.

    The copies are made while the block runs, as far as storage allows, and when the block ends,
    also if it raises an error.

    Args:
        fetch: pattern of the names that are first fetched from the URI; none if empty.
        last: name of the file that is copied last, because it marks the others as complete.

    Raises:
        StudyError: storage failed for two minutes.
    """
    if not is_uri(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(dir=node_folder("work"), ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if fetch:
            fetched = [file for file in list_files(place) if re.fullmatch(fetch, file)]
            fetch_files(place, fetched, folder)
        with BackgroundSync(folder, place, last):
            yield folder


class BackgroundSync:
    """A context manager that copies a folder's new and changed files to a place, in a thread.

    Files that are in the folder when it is created count as copied.
    """

    def __init__(self, folder: Path, place: str, last: str):
        self.folder, self.place, self.last = folder, place, last
        self._copied = self._list_files()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._push_until_ended, daemon=True)

    def __enter__(self) -> "BackgroundSync":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._push()

    def _list_files(self) -> dict[str, tuple[int, int]]:
        """List the folder's files: relative name -> (bytes, modification time in ns).

        Hidden files are left out: they are temporary files of atomic writes.
        """
        files = [
            file
            for file in self.folder.rglob("*")
            if file.is_file() and not file.name.startswith(".")
        ]
        return {
            str(file.relative_to(self.folder)): (file.stat().st_size, file.stat().st_mtime_ns)
            for file in files
        }

    def _push(self) -> None:
        """Copy the files that have changed since the last copy."""
        now = self._list_files()
        changed = [name for name, state in now.items() if self._copied.get(name) != state]
        push_files(self.folder, [name for name in changed if name != self.last], self.place)
        push_files(self.folder, [name for name in changed if name == self.last], self.place)
        self._copied = now

    def _push_until_ended(self) -> None:
        """Copy repeatedly; files that cannot be copied now are copied when the block ends."""
        while not self._ended.wait(SYNC_SECONDS):
            with suppress(StudyError, OSError):
                self._push()
