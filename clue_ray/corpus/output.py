"""The folder in which a corpus is made: what may lie there before, room for it, and its appearing
whole.
"""

import errno
import glob
import os
import shutil
import socket
from pathlib import Path

from clue_ray.corpus.logs.reading import Reading
from clue_ray.errors import CorpusError

DISK_FACTOR = 2
"""Bytes of free disk for a byte of log."""


def remove_debris(target: Path) -> None:
    """Delete what a killed preparation of this folder left on this machine."""
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
    """Tell whether a corpus can be made in a folder; refuse one that holds something else than a
    corpus.
    """
    if not target.is_dir():
        raise CorpusError(f"{target} is a file; choose a folder for the corpus.")
    if not any(target.iterdir()):
        return True
    if not (target / "corpus.json").exists():
        raise CorpusError(f"{target} holds other files than a corpus; choose another output.")
    return False


def publish(partial: Path, target: Path) -> None:
    """Rename a finished folder to its place, unless another process was faster: the caller looks
    whose it is then.
    """
    try:
        os.replace(partial, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def check_disk(folder: Path, reading: Reading) -> None:
    """Refuse a folder that cannot be made, or whose disk is too full for a corpus of what is
    read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorpusError(
            f"{folder} cannot be made ({error.strerror}); choose another output."
        ) from None
    need = sum(file.size for file in reading.files) * DISK_FACTOR
    free = shutil.disk_usage(folder).free
    if free < need:
        raise CorpusError(
            f"No free disk at {folder}: {free:,} bytes free, about {need:,} needed; free some "
            f"space."
        )
