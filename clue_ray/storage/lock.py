"""One command at a time on a study directory: an operating system's lock, which ends with the
process that holds it.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from clue_ray.errors import StudyError
from clue_ray.storage.files import write_json


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a study directory; raise StudyError, naming the holder, while another command does.

    The lock and its holder's name lie beside the directory, which a refused command thus leaves
    untouched. A holder that died holds nothing, so its name is overwritten.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StudyError(
            f"{directory.parent} is or lies in a file; choose another --output."
        ) from None
    holder = directory.with_name(f".{directory.name}.holder.json")
    lock = FileLock(directory.with_name(f".{directory.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StudyError(
            f"{directory} is in use by {_describe(holder)}; wait for it to end, or choose another "
            f"--output."
        ) from None
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _describe(holder: Path) -> str:
    """Name the command that holds a directory, as far as it has said who it is."""
    try:
        found = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError):
        return "a command that has just started"
