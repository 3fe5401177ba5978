"""A run's training state, in a folder here or at any URI pyarrow.fs knows: the last two states,
each whole or absent.

Takes what the loop wants kept, gives it back. One store for both launchers, so that a run begun by
one goes on under the other. Ray Train's own checkpoints are not used: they resume from the last
report the controller has seen, know no damaged file, and refuse the run for good when their list of
checkpoints is cut short.
"""

import io
import logging
import re
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import torch

from clue_ray.errors import StudyError
from clue_ray.storage.files import with_retries
from clue_ray.storage.place import explain_access, open_place

KEPT = 2
"""States kept: the last, and the one before in case the last is damaged."""
RETRY = "mend the storage and run the command again with --retry-failed"
"""What to do about a run that failed by its storage."""

logger = logging.getLogger(__name__)


def save_state(place: str | Path, state: dict[str, Any]) -> None:
    """Write a state under its step's name and drop all but the last two; wait and try again while
    storage refuses.

    Raises:
        StudyError: storage refused for two minutes, or for a reason that waiting does not mend.
    """
    store, folder = open_place(place)
    packed = io.BytesIO()
    torch.save(state, packed)
    step = state["progress"]["step"]
    trouble = f"Checkpoint of step {step} cannot be written to {place}"
    with_retries(lambda: _write(store, folder, step, packed.getbuffer()), trouble, RETRY)
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


def load_state(
    place: str | Path, step: int | None = None, where: str = "cpu"
) -> dict[str, Any] | None:
    """Read the last whole state, or that of `step`; None where there is none.

    A damaged state is passed over with a warning: the one before is used, or the run starts anew.

    Args:
        where: device of the weights; on "meta" they are not read at all.

    Raises:
        StudyError: storage refused to read for two minutes.
    """
    store, folder = open_place(place)
    trouble = f"Checkpoints at {place} cannot be read"
    steps = with_retries(lambda: _steps(store, folder), trouble, RETRY) if step is None else [step]
    for tried in reversed(steps):
        try:
            state = with_retries(partial(_read, store, _path(folder, tried), where), trouble, RETRY)
        except StudyError:
            raise
        except Exception as error:  # torch raises many kinds for a damaged file
            before = [other for other in steps if other < tried]
            instead = f"that of step {before[-1]} is used" if before else "the run starts anew"
            words = str(error).splitlines()[0] if str(error) else type(error).__name__
            logger.warning(
                "Checkpoint %s is damaged (%s); %s.", _path(folder, tried), words, instead
            )
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
            f"The checkpoints at {place} are of run {found}, not of {run_id}; move that folder "
            f"away to train {run_id} "
            "from its start."
        )


def _steps(store: pa.fs.FileSystem, folder: str) -> list[int]:
    """Return the steps whose states a folder holds, in order."""
    infos = store.get_file_info(pa.fs.FileSelector(folder, allow_not_found=True))
    found = [re.fullmatch(r"step_(\d+)\.pt", info.base_name) for info in infos]
    return sorted(int(match[1]) for match in found if match)


def _path(folder: str, step: int) -> str:
    return f"{folder}/step_{step:08d}.pt"
