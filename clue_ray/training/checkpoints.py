"""A run's training state, in a folder here or at any URI pyarrow.fs knows: the last two states, each whole or absent.

Takes what the loop wants kept, gives it back. One store for both launchers, so that a run begun by one goes on under
the other. Ray Train's own checkpoints are not used: they resume from the last report the controller has seen, know no
damaged file, and refuse the run for good when their list of checkpoints is cut short.
"""

import io
import logging
import re
import time
import uuid
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs
import torch

from clue_ray.corpus.files import explain_access
from clue_ray.errors import StudyError

KEPT = 2
"""States kept: the last, and the one before in case the last is damaged."""
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between tries while storage refuses, a minute in all."""
LASTING = (FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
"""What waiting does not mend."""

logger = logging.getLogger(__name__)
Returned = TypeVar("Returned")


def resolve_place(place: str) -> str:
    """Make a folder absolute, `~` the home; a URI stays. For the driver: a trial has a working folder of its own."""
    return place if "://" in place else str(Path(place).expanduser().absolute())


def place_below(place: str, name: str) -> str:
    """Name a folder below a folder or URI; a URI keeps its query."""
    if "://" not in place:
        return f"{resolve_place(place)}/{name}"
    parts = urlsplit(place)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def open_place(place: str | Path) -> tuple[pa.fs.FileSystem, str]:
    """Return the filesystem of a folder or URI, and the path on it.

    Raises:
        StudyError: no filesystem is known or reached at the URI, or it holds a password, which would be written down.
    """
    if "://" not in str(place):
        return pa.fs.LocalFileSystem(), resolve_place(str(place))
    if password := urlsplit(str(place)).password:
        hidden = str(place).replace(password, "...")
        raise StudyError(f"{hidden} holds a password; give it by the environment, as AWS_SECRET_ACCESS_KEY is.")
    try:
        store, path = pa.fs.FileSystem.from_uri(str(place))
    except (OSError, pa.ArrowException) as error:
        raise StudyError(f"Checkpoints cannot be kept at {place} ({explain_access(error)}).") from None
    return store, path


def check_writable(place: str) -> None:
    """Write and delete an empty file below a folder or URI.

    Raises:
        StudyError: it cannot be written.
    """
    store, folder = open_place(place_below(place, f".probe.{uuid.uuid4().hex}"))
    try:
        store.create_dir(str(PurePosixPath(folder).parent), recursive=True)
        store.open_output_stream(folder).close()
        store.delete_file(folder)
    except (OSError, pa.ArrowException) as error:
        remedy = "give resources.checkpoints a folder or URI that can be written"
        raise StudyError(f"Checkpoints cannot be kept at {place} ({explain_access(error)}); {remedy}.") from None


def save_state(place: str | Path, state: dict[str, Any]) -> None:
    """Write a state under its step's name and drop all but the last two; wait and try again while storage refuses.

    Raises:
        StudyError: storage refused for a minute, or for a reason that waiting does not mend.
    """
    store, folder = open_place(place)
    packed = io.BytesIO()
    torch.save(state, packed)
    step = state["progress"]["step"]
    trouble = f"Checkpoint of step {step} cannot be written to {place}"
    patiently(lambda: _write(store, folder, step, packed.getbuffer()), trouble)
    logger.info("Checkpoint of step %d is kept.", step)
    try:
        found = _steps(store, folder)
        # Later steps can only be damaged ones that were passed over.
        for other in [*[s for s in found if s > step], *[s for s in found if s <= step][:-KEPT]]:
            store.delete_file(_path(folder, other))
    except OSError as error:
        logger.warning("Old checkpoints stay at %s (%s).", place, explain_access(error))


def _write(store: pa.fs.FileSystem, folder: str, step: int, content: memoryview) -> None:
    """Write by rename on disks; elsewhere a file is there only once it is whole."""
    store.create_dir(folder, recursive=True)
    target = _path(folder, step)
    renames = isinstance(store, pa.fs.LocalFileSystem)
    written = f"{target}.tmp" if renames else target
    with store.open_output_stream(written) as stream:
        stream.write(content)
    if renames:
        store.move(written, target)


def patiently(action: Callable[[], Returned], trouble: str) -> Returned:
    """Do something to storage, again after ever longer waits while it refuses.

    Args:
        trouble: what is wrong when it keeps refusing, the beginning of a sentence.
    """
    for tries, wait in enumerate((*WAITS, None), start=1):
        try:
            return action()
        except OSError as error:
            reason = explain_access(error)
            if wait is None or isinstance(error, LASTING):
                times = "1 try" if tries == 1 else f"{tries} tries"
                remedy = "mend the storage and run the command again with --retry-failed"
                raise StudyError(f"{trouble} after {times} ({reason}); {remedy}.") from error
            logger.warning("%s (%s); trying again in %g s.", trouble, reason, wait)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def load_state(place: str | Path, step: int | None = None, where: str = "cpu") -> dict[str, Any] | None:
    """Read the last whole state, or that of `step`; None where there is none.

    A damaged state is passed over with a warning: the one before is used, or the run starts anew.

    Args:
        where: device of the weights; on "meta" they are not read at all.

    Raises:
        StudyError: storage refused to read for a minute.
    """
    store, folder = open_place(place)
    trouble = f"Checkpoints at {place} cannot be read"
    steps = patiently(lambda: _steps(store, folder), trouble) if step is None else [step]
    for tried in reversed(steps):
        try:
            state = patiently(partial(_read, store, _path(folder, tried), where), trouble)
        except StudyError:
            raise
        except Exception as error:  # torch raises many kinds for a damaged file
            before = [other for other in steps if other < tried]
            instead = f"that of step {before[-1]} is used" if before else "the run starts anew"
            words = str(error).splitlines()[0] if str(error) else type(error).__name__
            logger.warning("Checkpoint %s is damaged (%s); %s.", _path(folder, tried), words, instead)
        else:
            return state
    return None


def _read(store: pa.fs.FileSystem, path: str, where: str) -> dict[str, Any]:
    with store.open_input_file(path) as file:
        if not zipfile.is_zipfile(file):  # as torch's files are, their list of contents at the end
            raise ValueError("cut short")
        if broken := zipfile.ZipFile(file).testzip():
            raise ValueError(f"other bytes than were written in {broken}")
        file.seek(0)
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location=where)
    return state


def check_owner(place: str | Path, run_id: str) -> None:
    """Refuse a place whose last whole state is another run's, reading no weights.

    Raises:
        StudyError: it is, or storage refused to read.
    """
    state = load_state(place, where="meta")
    if state is not None:
        check_run_id(state, run_id, place)


def check_run_id(state: dict[str, Any], run_id: str, place: str | Path | None) -> None:
    """Refuse a state that another run wrote."""
    found = state.get("run_id")
    if found != run_id:
        raise StudyError(
            f"The checkpoints at {place} are of run {found}, not of {run_id}; move that folder away to train {run_id} "
            "from its start."
        )


def _steps(store: pa.fs.FileSystem, folder: str) -> list[int]:
    """Return the steps whose states a folder holds, in order."""
    infos = store.get_file_info(pa.fs.FileSelector(folder, allow_not_found=True))
    found = [re.fullmatch(r"step_(\d+)\.pt", info.base_name) for info in infos]
    return sorted(int(match[1]) for match in found if match)


def _path(folder: str, step: int) -> str:
    return f"{folder}/step_{step:08d}.pt"
