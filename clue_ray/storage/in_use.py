"""Mark folders of this node's caches as in use, so that other processes do not delete them.

The mark is a shared lock of the operating system, which ends with its process. Mark and delete a
folder only under the lock that also guards its creation.
"""

import fcntl
import os
import shutil
import weakref
from pathlib import Path


class InUse:
    """Marks a folder as in use for as long as this object lives; so may any number of processes."""

    def __init__(self, folder: Path):
        file = os.open(_mark(folder), os.O_RDWR | os.O_CREAT, 0o600)
        weakref.finalize(self, os.close, file)
        fcntl.flock(file, fcntl.LOCK_SH)


def delete_unused(folder: Path) -> bool:
    """Delete a folder unless it is in use; return whether it was not."""
    file = os.open(_mark(folder), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        _mark(folder).unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def _mark(folder: Path) -> Path:
    """Return the file next to a folder that is locked while the folder is in use."""
    return folder.with_suffix(".use")
