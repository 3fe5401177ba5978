"""Checkpoints of a run, in a folder or at any URI of pyarrow.fs: the last two states.

Both launchers use this one store, so that a run started by one can continue under the other. Ray
Train's own checkpoints are not used: they resume from the last report that the controller saw, do
not notice a damaged file, and reject the run for good if their list of checkpoints is truncated.
"""

import io
import logging
import re
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import torch
from torch.utils._pytree import tree_map

from clue_ray.errors import StudyError, reason_of
from clue_ray.storage.files import with_retries, write_file
from clue_ray.storage.place import explain_access, open_place

KEPT = 2
"""Number of states kept: the last, and the one before in case the last is damaged."""
END_BYTES, END_MARK = 22, b"PK\x05\x06"
"""Size and first bytes of the record that ends a zip archive without a comment."""
RETRY = "fix the storage and run the command again with --retry-failed"
"""What to do about a run that failed because of its storage."""

logger = logging.getLogger(__name__)


def save_state(place: str | Path, state: dict[str, Any]) -> None:
    """Write a state atomically under its step's name, with retries; delete all but the last two.

    Raises:
        StudyError: storage failed for two minutes, or with an error that is permanent.
    """
    packed = io.BytesIO()
    torch.save(state, packed)
    step = state["progress"]["step"]
    failure = f"Checkpoint of step {step} cannot be written to {place}"
    with_retries(lambda: write_file(str(place), _name(step), packed.getbuffer()), failure, RETRY)
    logger.info("Checkpoint of step %d is kept.", step)
    try:
        _delete_others(place, step)
    except OSError as error:
        logger.warning("Old checkpoints stay at %s (%s).", place, explain_access(error))


class StateWriter:
    """Writes states to one place while training goes on, one at a time."""

    def __init__(self, place: str | Path):
        self.place = place
        self.pool = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    def write(self, state: dict[str, Any]) -> None:
        """Copy a state to the host and start to write it, once the one before is written.

        Raises:
            StudyError: the one before could not be written.
        """
        self.wait()
        self.writing = self.pool.submit(save_state, self.place, tree_map(_to_host, state))

    def wait(self) -> None:
        """Wait until the last state is written; raise StudyError if it could not be."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait, and end the thread until the next state."""
        try:
            self.wait()
        finally:
            self.pool.shutdown()
            self.pool = ThreadPoolExecutor(1)


def _to_host(part: Any) -> Any:
    """Copy a tensor, which the next step would change while it is written."""
    return part.detach().to("cpu", copy=True) if isinstance(part, torch.Tensor) else part


def _delete_others(place: str | Path, step: int) -> None:
    """Delete all states but the last two, and what a killed process left half written."""
    store, folder = open_place(place)
    names = _names(store, folder)
    steps = _steps(names)
    # States of later steps are damaged: the run would have resumed from a whole one.
    later, earlier = [s for s in steps if s > step], [s for s in steps if s <= step]
    half_written = [name for name in names if name.startswith("step_") and name.endswith(".tmp")]
    for name in [*map(_name, later), *map(_name, earlier[:-KEPT]), *half_written]:
        store.delete_file(f"{folder}/{name}")


def load_state(
    place: str | Path, step: int | None = None, where: str = "cpu"
) -> dict[str, Any] | None:
    """Read the last whole state, or that of `step`; return None if there is none.

    A damaged state is skipped with a warning: the state before it is used, or the run starts again.

    Args:
        place: folder or URI of the states.
        step: the state to read.
        where: device of the weights; on "meta" they are not read at all.

    Raises:
        StudyError: storage failed for two minutes.
    """
    store, folder = open_place(place)
    failure = f"Checkpoints at {place} cannot be read"
    steps = [step] if step is not None else None
    if steps is None:
        steps = with_retries(lambda: _steps(_names(store, folder)), failure, RETRY)
    for tried in reversed(steps):
        path = f"{folder}/{_name(tried)}"
        try:
            return with_retries(partial(_read, store, path, where), failure, RETRY)
        except StudyError:
            raise
        except Exception as error:  # torch raises many kinds for a damaged file
            before = [other for other in steps if other < tried]
            instead = f"that of step {before[-1]} is used" if before else "the run starts again"
            logger.warning("Checkpoint %s is damaged (%s); %s.", path, reason_of(error), instead)
    return None


def _read(store: pa.fs.FileSystem, path: str, where: str) -> dict[str, Any]:
    """Read a state; raise ValueError or an error of torch's if it is damaged."""
    with store.open_input_file(path) as file:
        # torch writes zip archives. Their table of contents comes last, so a truncated file has
        # none; their checksums reveal changed bytes, which torch.load would accept as weights.
        if not zipfile.is_zipfile(file):
            # zipfile takes an end that cannot be read for no end.
            file.seek(max(0, file.size() - END_BYTES))
            if file.read(END_BYTES).startswith(END_MARK):
                raise OSError("its end could not be read at the first try")
            raise ValueError("truncated")
        archive = zipfile.ZipFile(file)
        if any(part.compress_type for part in archive.infolist()):
            raise ValueError("packed, which torch's are not: it may be any size once unpacked")
        if where != "meta" and (broken := archive.testzip()):
            raise ValueError(f"wrong checksum in {broken}")
        file.seek(0)
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location=where)
    int(state["progress"]["step"])  # whatever else may be in it, without these it is no state
    return state


def check_owner(place: str | Path, run_id: str) -> None:
    """Check that the last state at a place, if any, is of this run, without reading weights.

    Raises:
        StudyError: it is of another run, or storage failed.
    """
    state = load_state(place, where="meta")
    if state is not None:
        check_run_id(state, run_id, place)


def check_run_id(state: dict[str, Any], run_id: str, place: str | Path | None) -> None:
    """Check that a state is of this run; raise StudyError otherwise."""
    found = state.get("run_id")
    if found != run_id:
        raise StudyError(
            f"The checkpoints at {place} are of run {found}, not of {run_id}; "
            f"move that folder away to train {run_id} from its start."
        )


def _names(store: pa.fs.FileSystem, folder: str) -> list[str]:
    """List the files of a folder; none if it does not exist."""
    infos = store.get_file_info(pa.fs.FileSelector(folder, allow_not_found=True))
    return [info.base_name for info in infos]


def _steps(names: list[str]) -> list[int]:
    """Return the steps of the states among file names, in order."""
    found = [re.fullmatch(r"step_(\d+)\.pt", name) for name in names]
    return sorted(int(match[1]) for match in found if match)


def _name(step: int) -> str:
    return f"step_{step:08d}.pt"
