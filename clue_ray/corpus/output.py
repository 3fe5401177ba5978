"""The folder of a corpus: check that it can be written, clean it up, and publish it in one step."""

import errno
import glob
import os
import shutil
import socket
from pathlib import Path

from clue_ray.errors import CorpusError

DISK_FACTOR = 2
"""Bytes of shards and items per byte of log: .8 to 2.4 measured on planted logs in Parquet. The
room for the layout is checked when they are written."""
LAYOUT_FACTOR = 1.8
"""Least bytes of the layout and of what its tasks exchange, per byte of shards and items: with less
it cannot fit. Measured on planted logs: 1.8 with texts of 100 words, 2.3 to 2.5 with short ones,
2.9 with three events per user."""


def remove_debris(target: Path) -> None:
    """Delete what a killed preparation of this folder left behind.

    Only partial folders of this machine are checked: a process id means nothing on another one.
    """
    for partial in target.parent.glob(
        f".{glob.escape(target.name)}.{socket.gethostname()}.*.partial"
    ):
        try:
            os.kill(int(partial.suffixes[-2][1:]), 0)
        except ProcessLookupError:
            shutil.rmtree(partial, ignore_errors=True)
        except (PermissionError, ValueError):
            continue


def is_empty(target: Path) -> bool:
    """Return whether a folder is empty, as opposed to being a corpus.

    Raises:
        CorpusError: it is a file, or has other files than a corpus.
    """
    if not target.is_dir():
        raise CorpusError(f"{target} is a file; choose a folder for the corpus.")
    if not any(target.iterdir()):
        return True
    if not (target / "corpus.json").exists():
        raise CorpusError(f"{target} has files but is not a corpus; choose another output.")
    return False


def publish(partial: Path, target: Path) -> None:
    """Rename a finished folder to its final name.

    If another process has published first, nothing happens: the caller opens whatever is there.
    """
    try:
        os.replace(partial, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def check_disk(folder: Path, log_bytes: int) -> None:
    """Create a folder and check that its disk has room for a corpus.

    Args:
        log_bytes: size of the event log.

    Raises:
        CorpusError: the folder cannot be created, or its disk is too full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorpusError(
            f"{folder} cannot be created ({error.strerror}); choose another output."
        ) from None
    _check_room(folder, log_bytes * DISK_FACTOR, "choose another output")


def check_layout_disk(folder: Path) -> None:
    """Check that the disk has room for the training layout of the shards in a folder.

    Raises:
        CorpusError: it is too full.
    """
    files = (file for kind in ("shards", "items") for file in (folder / kind).glob("*"))
    need = LAYOUT_FACTOR * sum(file.stat().st_size for file in files)
    _check_room(folder, int(need), "choose another output")


def check_work_disk(folder: Path, log_bytes: int, buckets: int) -> None:
    """Check that this node has room for what its tasks write before it is copied to storage.

    Args:
        folder: on the disk of the working folders.
        log_bytes: size of the event log.
        buckets: number of shards; each core writes one at a time.

    Raises:
        CorpusError: the disk is too full.
    """
    shards = min(1.0, (os.cpu_count() or 1) / buckets)
    _check_room(folder, int(log_bytes * DISK_FACTOR * shards), "set TMPDIR to a larger disk")


def _check_room(folder: Path, need: int, remedy: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < need:
        raise CorpusError(
            f"Not enough free disk at {folder}: {free:,} bytes free, about {need:,} needed; free "
            f"some space or {remedy}."
        )
