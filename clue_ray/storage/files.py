"""Read, write and copy files, on a local disk or at any URI of pyarrow.fs.

Every write is atomic: a reader sees the whole file or none. Names that storage lists are untrusted
input, so callers turn only names that they expect into local paths.
"""

import json
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs

from clue_ray.errors import RunsError, StudyError
from clue_ray.storage.documents import MOST_BYTES, TooLargeError, check_size, read_document
from clue_ray.storage.links import check_links
from clue_ray.storage.place import OBJECT_STORES, explain_access, open_place

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0, 32.0)
"""Pauses between attempts while storage fails, about two minutes in total.

This is longer than a study continues without its storage (`lease.LOST_SECONDS`), so a study aborts
before one of its runs fails.
"""
LEAST_TRIES = 3
"""Attempts on storage that stalls: each may take longer than all pauses until its library gives up
(102 s for pyarrow's S3, measured)."""
PERMANENT_ERRORS = (
    FileExistsError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    TooLargeError,
)
"""Errors that a retry does not fix."""
PARALLEL_COPIES = 8
COPY_BYTES = 4_000_000
"""Bytes of a file that are in memory while it is copied."""
REMEDY = "fix the storage and run the same command again"

logger = logging.getLogger(__name__)
Returned = TypeVar("Returned")


def with_retries(action: Callable[[], Returned], failure: str, remedy: str = REMEDY) -> Returned:
    """Call an action on storage, and retry with growing pauses while it raises OSError.

    Storage that stalls is tried LEAST_TRIES times, storage that refuses until the pauses end.

    Args:
        failure: what fails, the beginning of the error message.
        remedy: what to do about it, the end of the error message.

    Raises:
        StudyError: the action failed for two minutes, or with an error that is permanent.
    """
    started = time.monotonic()
    for attempt, pause in enumerate((*RETRY_SECONDS, None), start=1):
        try:
            return action()
        except OSError as error:
            reason = explain_access(error)
            stalled = time.monotonic() - started > sum(RETRY_SECONDS) and attempt >= LEAST_TRIES
            if pause is None or stalled or isinstance(error, PERMANENT_ERRORS):
                tries = "1 try" if attempt == 1 else f"{attempt} tries"
                raise StudyError(f"{failure} after {tries} ({reason}); {remedy}.") from error
            logger.warning("%s (%s); retrying in %g s.", failure, reason, pause)
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, and rename it to `path` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document to a local file, atomically."""
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a power loss may leave an empty file under the final name


def read_json(file: Path, remedy: str = "restore it, or give another --output") -> dict[str, Any]:
    """Read a JSON mapping from a local file.

    Raises:
        RunsError: the file is damaged.
    """
    try:
        found = read_document(file)
        if not isinstance(found, dict):
            raise ValueError("not a mapping")
    except (OSError, ValueError) as error:
        raise RunsError(f"{file} is damaged ({error}); {remedy}.") from None
    return found


def write_file(place: str, name: str, content: bytes | memoryview) -> None:
    """Write a file below a place atomically, without retries.

    Raises:
        OSError: storage failed.
    """
    store, base = open_place(place)

    def write(path: str) -> None:
        with store.open_output_stream(path) as stream:
            stream.write(content)

    _replace(store, f"{base}/{name}", write)


def read_file(place: str, name: str, most: float = MOST_BYTES) -> bytes | None:
    """Read a file below a place; return None if it does not exist.

    Raises:
        StudyError: storage failed for two minutes, or the file has more than `most` bytes.
    """
    return with_retries(
        lambda: read_file_once(place, name, most), f"{name} cannot be read from {place}"
    )


def read_file_once(place: str, name: str, most: float = MOST_BYTES) -> bytes | None:
    """Read a file below a place without retries; return None if it does not exist.

    Raises:
        OSError: storage failed, or the file has more than `most` bytes.
    """
    store, base = open_place(place)
    info = store.get_file_info(f"{base}/{name}")
    if info.type != pa.fs.FileType.File:
        return None
    check_size(info.size, most)
    with store.open_input_stream(f"{base}/{name}") as stream:
        return bytes(stream.read())


def read_bytes(file: str, most: float = math.inf) -> bytes:
    """Read a file whole, given as a path or URI, without retries.

    Raises:
        OSError: the file does not exist or has more than `most` bytes, or storage failed.
        StudyError: the filesystem of the URI is unknown or cannot be reached.
    """
    store, path = open_place(file)
    check_size(store.get_file_info(path).size or 0, most)  # None where there is no file
    # pyarrow would otherwise decompress a file whose name ends in .gz.
    with store.open_input_stream(path, compression=None) as stream:
        return bytes(stream.read())


def delete_file(place: str, name: str) -> None:
    """Delete a file below a place, if it exists."""
    store, base = open_place(place)
    if store.get_file_info(f"{base}/{name}").type == pa.fs.FileType.File:
        store.delete_file(f"{base}/{name}")


def list_files(place: str) -> dict[str, tuple[int, int]]:
    """List the files below a place: relative name -> (bytes, modification time in ns).

    Raises:
        StudyError: storage failed for two minutes, or a link in a shared folder leads out of it.
    """
    store, base = open_place(place)
    if isinstance(store, pa.fs.LocalFileSystem):
        check_links(base)
    selector = pa.fs.FileSelector(base, recursive=True, allow_not_found=True)
    infos = with_retries(lambda: store.get_file_info(selector), f"{place} cannot be listed")
    start = len(base.rstrip("/")) + 1
    return {
        info.path[start:]: (info.size, info.mtime_ns or 0)
        for info in infos
        if info.type == pa.fs.FileType.File
    }


def push_files(folder: Path, names: Iterable[str], place: str) -> None:
    """Copy files of a local folder to the same names below a place, replacing existing files.

    Raises:
        StudyError: storage failed for two minutes.
    """
    store, base = open_place(place)

    def push(name: str) -> None:
        def write(path: str) -> None:
            _copy(pa.fs.LocalFileSystem(), str(folder / name), store, path)

        with_retries(
            lambda: _replace(store, f"{base}/{name}", write),
            f"{name} cannot be written to {place}",
        )

    _in_parallel(push, names)


def fetch_files(place: str, names: Iterable[str], folder: Path) -> None:
    """Copy files below a place to the same names in a local folder, replacing existing files.

    Raises:
        StudyError: a file does not exist, or storage failed for two minutes.
    """
    store, base = open_place(place)

    def fetch(name: str) -> None:
        def copy() -> None:
            with atomic_write(folder / name) as temporary:
                _copy(store, f"{base}/{name}", pa.fs.LocalFileSystem(), str(temporary))

        with_retries(copy, f"{name} cannot be read from {place}")

    _in_parallel(fetch, names)


def remove_folder(place: str) -> None:
    """Delete a folder, or all files below a URI, if there are any."""
    store, base = open_place(place)

    def remove() -> None:
        if store.get_file_info(base).type == pa.fs.FileType.Directory:
            store.delete_dir(base)

    with_retries(remove, f"{place} cannot be deleted")


def _copy(
    source_store: pa.fs.FileSystem, source: str, target_store: pa.fs.FileSystem, target: str
) -> None:
    """Copy one file, whatever its name says of a compression.

    `pyarrow.fs.copy_files` ignores an error of the end of an upload: it returned, and the file was
    not there. Closing the stream raises it.
    """
    with (
        source_store.open_input_stream(source, compression=None) as reader,
        target_store.open_output_stream(target, compression=None) as writer,
    ):
        while block := reader.read(COPY_BYTES):
            writer.write(block)


def _replace(store: pa.fs.FileSystem, target: str, write: Callable[[str], None]) -> None:
    """Write a file atomically on any filesystem.

    On a disk the file is written under a temporary name and renamed. On an object store a file
    becomes visible only when its upload is complete, and a rename would be a copy.
    """
    if store.type_name not in OBJECT_STORES:
        store.create_dir(str(PurePosixPath(target).parent), recursive=True)
    if not isinstance(store, pa.fs.LocalFileSystem):
        write(target)
        return
    temporary = f"{target}.{uuid.uuid4().hex}.tmp"
    try:
        write(temporary)
        store.move(temporary, target)
    except BaseException:
        with suppress(OSError):  # it may not have been created
            store.delete_file(temporary)
        raise


def _in_parallel(action: Callable[[str], None], names: Iterable[str]) -> None:
    """Call an action for each name, in threads; raise the first error."""
    with ThreadPoolExecutor(PARALLEL_COPIES) as pool:
        for _ in pool.map(action, names):
            pass
