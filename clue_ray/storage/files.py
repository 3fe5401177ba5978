"""Files to and from storage: a folder, or any URI that pyarrow.fs knows.

A place is either. Takes folders and names, gives the same files elsewhere, each there whole or not
at all. What storage lists is a stranger's word: only names that the caller expects become paths.
"""

import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs

from clue_ray.errors import RunsError, StudyError
from clue_ray.storage.place import explain_access, open_place

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0, 32.0)
"""Seconds between tries while storage refuses, two minutes in all: longer than a study goes on
without its storage."""
LASTING = (
    FileExistsError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
"""What waiting does not mend."""
COPIES = 8
"""Files under way at a time."""
REMEDY = "mend the storage and run the same command again"


logger = logging.getLogger(__name__)
Returned = TypeVar("Returned")


def with_retries(action: Callable[[], Returned], trouble: str, remedy: str = REMEDY) -> Returned:
    """Do something to storage, again after ever longer waits while it refuses.

    Args:
        trouble: what is wrong when it keeps refusing, the beginning of a sentence.
        remedy: what to do then, its end.

    Raises:
        StudyError: it refused for two minutes, or for a reason that waiting does not mend.
    """
    for tries, wait in enumerate((*WAITS, None), start=1):
        try:
            return action()
        except OSError as error:
            reason = explain_access(error)
            if wait is None or isinstance(error, LASTING):
                times = "1 try" if tries == 1 else f"{tries} tries"
                raise StudyError(f"{trouble} after {times} ({reason}); {remedy}.") from error
            logger.warning("%s (%s); trying again in %g s.", trouble, reason, wait)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def list_files(place: str) -> dict[str, tuple[int, int]]:
    """List the files below a place by their names from there, with their bytes and time of change
    in nanoseconds.

    Raises:
        StudyError: storage refused for two minutes.
    """
    store, base = open_place(place)
    selector = pa.fs.FileSelector(base, recursive=True, allow_not_found=True)
    infos = with_retries(lambda: store.get_file_info(selector), f"{place} cannot be listed")
    start = len(base.rstrip("/")) + 1
    return {
        info.path[start:]: (info.size, info.mtime_ns or 0)
        for info in infos
        if info.type == pa.fs.FileType.File
    }


def push_files(folder: Path, names: Iterable[str], place: str) -> None:
    """Copy files of a folder to the same names below a place, replacing what is there.

    Raises:
        StudyError: storage refused for two minutes.
    """
    store, base = open_place(place)

    def push(name: str) -> None:
        source = str(folder / name)
        trouble = f"{name} cannot be written to {place}"
        with_retries(
            lambda: _replace(store, f"{base}/{name}", lambda path: _copy(source, store, path)),
            trouble,
        )

    _each(push, names)


def write_file(place: str, name: str, content: bytes) -> None:
    """Write a small file below a place, replacing what is there.

    Raises:
        OSError: storage refused; nobody has waited.
    """
    store, base = open_place(place)

    def write(path: str) -> None:
        with store.open_output_stream(path) as stream:
            stream.write(content)

    _replace(store, f"{base}/{name}", write)


def _copy(source: str, store: pa.fs.FileSystem, target: str) -> None:
    here = pa.fs.LocalFileSystem()
    pa.fs.copy_files(
        source, target, source_filesystem=here, destination_filesystem=store, use_threads=False
    )


def _replace(store: pa.fs.FileSystem, target: str, write: Callable[[str], None]) -> None:
    """Write a file that readers see whole or not at all: by rename on disks; elsewhere it appears
    only once it ends.
    """
    if store.type_name not in {"s3", "gcs", "abfs"}:  # whose folders are but parts of names
        store.create_dir(str(PurePosixPath(target).parent), recursive=True)
    renames = isinstance(store, pa.fs.LocalFileSystem)
    written = f"{target}.{uuid.uuid4().hex}.tmp" if renames else target
    write(written)
    if renames:
        store.move(written, target)


def fetch_files(place: str, names: Iterable[str], folder: Path) -> None:
    """Copy files below a place to the same names below a folder, replacing what is there.

    Raises:
        StudyError: storage refused for two minutes, or a file is gone.
    """
    store, base = open_place(place)

    def fetch(name: str) -> None:
        def copy() -> None:
            with atomic_write(folder / name) as temporary:
                here, source = pa.fs.LocalFileSystem(), f"{base}/{name}"
                pa.fs.copy_files(
                    source,
                    str(temporary),
                    source_filesystem=store,
                    destination_filesystem=here,
                    use_threads=False,
                )

        with_retries(copy, f"{name} cannot be read from {place}")

    _each(fetch, names)


def read_file(place: str, name: str) -> bytes | None:
    """Read a small file below a place; None where there is none.

    Raises:
        StudyError: storage refused for two minutes.
    """
    return with_retries(lambda: read_now(place, name), f"{name} cannot be read from {place}")


def read_whole(file: str) -> bytes:
    """Read a small file, a path or URI.

    Raises:
        OSError: there is none, or storage refused; nobody has waited.
        StudyError: no filesystem is known or reached at the URI.
    """
    store, path = open_place(file)
    with store.open_input_stream(path, compression=None) as stream:
        return bytes(stream.read())


def read_now(place: str, name: str) -> bytes | None:
    """Read a small file below a place; None where there is none.

    Raises:
        OSError: storage refused; nobody has waited.
    """
    store, base = open_place(place)
    if store.get_file_info(f"{base}/{name}").type != pa.fs.FileType.File:
        return None
    with store.open_input_stream(f"{base}/{name}") as stream:
        return bytes(stream.read())


def delete_file(place: str, name: str) -> None:
    """Delete a file below a place, where there is one."""
    store, base = open_place(place)
    if store.get_file_info(f"{base}/{name}").type == pa.fs.FileType.File:
        store.delete_file(f"{base}/{name}")


def _each(action: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(COPIES) as pool:
        for _ in pool.map(action, names):
            pass


class atomic_write:
    """Give a temporary path beside `path` and rename it into place when the block ends without
    error.
    """

    def __init__(self, path: Path):
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def read_json(file: Path, remedy: str = "restore it, or give another --output") -> dict[str, Any]:
    """Read a file of a study's; raise RunsError, with what to do, where it is damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError) as error:
        raise RunsError(f"{file} is damaged ({error}); {remedy}.") from None
    return found


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document by rename, so that a reader sees all of it or nothing."""
    with atomic_write(path) as temporary:
        temporary.write_text(
            json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
