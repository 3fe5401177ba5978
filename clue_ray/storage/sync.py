"""Node-local folders: working folders synchronised to storage, and the cache of fetched corpora."""

import getpass
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from clue_ray.errors import StudyError
from clue_ray.storage.files import delete_file, fetch_files, list_files, push_files, with_retries
from clue_ray.storage.place import is_uri

SYNC_SECONDS = 10.0
"""Pause between copies of a working folder to storage."""
SETTLED_SECONDS = 60.0
"""Age from which on a working folder without a living owner is deleted; a new one may not be locked
yet."""


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
def working_folder(place: str, fetch: str = "", last: str = "", stale: str = "") -> Iterator[Path]:
    """Yield a local folder to write in: the place itself, or one that is copied to the URI.

    The copies are made while the block runs, as far as storage allows, and when the block ends,
    also if it raises an error.

    Args:
        fetch: pattern of the names that are first fetched from the URI; none if empty.
        last: name of the file that is copied last, because it marks the others as complete.
        stale: pattern of the names to delete at the URI first; the block writes new ones.

    Raises:
        StudyError: storage failed for two minutes.
    """
    if not is_uri(place):
        yield Path(place)
        return
    with _scratch_folder(node_folder("work")) as folder:
        names = list_files(place) if fetch or stale else {}
        for name in names:
            if stale and re.fullmatch(stale, name):
                with_retries(partial(delete_file, place, name), f"{place}/{name} cannot be deleted")
        fetch_files(place, [name for name in names if fetch and re.fullmatch(fetch, name)], folder)
        with BackgroundSync(folder, place, last):
            yield folder


@contextmanager
def _scratch_folder(work: Path) -> Iterator[Path]:
    """Yield an empty folder; delete it after the block, and those of processes that were killed.

    The operating system releases the lock in a folder when its process ends.
    """
    for lock in work.glob("*/.lock"):
        with suppress(OSError, Timeout):
            if time.time() - lock.stat().st_mtime > SETTLED_SECONDS:
                with FileLock(lock, timeout=0):
                    shutil.rmtree(lock.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=work, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with FileLock(folder / ".lock"):
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
