"""Folders of this node alone: where a worker writes what belongs on storage, and where fetched
corpora are kept.
"""

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

FOLLOW_SECONDS = 10.0
"""Pause between copies of what a working folder holds."""


def node_folder(name: str) -> Path:
    """Return a folder below this node's temporary one (TMPDIR) that nobody else may write.

    Raises:
        StudyError: it belongs to somebody else.
    """
    root = Path(tempfile.gettempdir()) / f"clue-ray-{getpass.getuser()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid() or root.stat().st_mode & 0o022:
        raise StudyError(
            f"{root} can be written by others; delete it, or set TMPDIR to a folder of your own."
        )
    folder = root / name
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def working_folder(place: str, known: str = "", last: str = "") -> Iterator[Path]:
    """Give a folder to write in: the place itself where it is a folder, else one whose files are
    copied to the URI.

    They are copied while the block lasts, as far as storage allows, and when it ends, also by an
    error.

    Args:
        known: pattern of the names that are fetched from the URI first; none when left out.
        last: name of the file that tells that all others are there.

    Raises:
        StudyError: storage refused for a minute.
    """
    if not is_uri(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(dir=node_folder("work"), ignore_cleanup_errors=True) as name:
        follower = BackgroundSync(Path(name), place, last)
        if known:
            fetch_files(
                place,
                [file for file in list_files(place) if re.fullmatch(known, file)],
                follower.folder,
            )
        follower.note()
        with follower:
            yield follower.folder


class BackgroundSync:
    """Copies what changes in a folder to a place, from a thread, until its block ends."""

    def __init__(self, folder: Path, place: str, last: str):
        self.folder, self.place, self.last = folder, place, last
        self.seen: dict[str, tuple[int, int]] = {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.follow, daemon=True)

    def __enter__(self) -> "BackgroundSync":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.push()

    def note(self) -> None:
        """Take what is there now for copied."""
        self.seen = self.stand()

    def stand(self) -> dict[str, tuple[int, int]]:
        """List the folder's files with their bytes and time of change; hidden ones are left out, as
        being written.
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

    def push(self) -> None:
        """Copy what has changed, the last file last."""
        now = self.stand()
        changed = [name for name, stand in now.items() if self.seen.get(name) != stand]
        push_files(self.folder, [name for name in changed if name != self.last], self.place)
        push_files(self.folder, [name for name in changed if name == self.last], self.place)
        self.seen = now

    def follow(self) -> None:
        """Copy again and again; what storage refuses is left to the end."""
        while not self.ended.wait(FOLLOW_SECONDS):
            with suppress(StudyError, OSError):
                self.push()
