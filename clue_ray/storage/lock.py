"""An operating system lock on a study directory, so that one command at a time writes to it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from clue_ray.errors import StudyError, short
from clue_ray.storage.documents import read_document
from clue_ray.storage.files import write_json


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a study directory within the block.

    The lock file and the holder's name lie next to the directory, so a command that fails to get
    the lock changes nothing in it. The operating system releases the lock when its process ends.

    Raises:
        StudyError: another command holds the lock.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StudyError(
            f"{directory.parent} is a file or lies in one; choose another --output."
        ) from None
    holder = directory.with_name(f".{directory.name}.holder.json")
    lock = FileLock(directory.with_name(f".{directory.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StudyError(
            f"{directory} is in use by {_describe(holder)}; "
            "wait for it to end, or choose another --output."
        ) from None
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _describe(holder: Path) -> str:
    """Describe the command that holds a directory."""
    try:
        found = read_document(holder)
        pid, host, since = (short(found[name]) for name in ("pid", "host", "since"))
        return f"process {pid} on {host} since {since}"
    except (OSError, ValueError, LookupError, TypeError):  # locked, but not written yet
        return "a command that has just started"
