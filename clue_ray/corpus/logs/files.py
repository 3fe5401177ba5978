"""The files of an event log, wherever they lie: local paths, folders, globs, and URIs that
pyarrow.fs knows.

Takes what a user writes, gives `EventFile`s in order of name. Folders named `key=value` become
columns, as Hive writes them; names that begin with `_` or `.` are left out, as Spark and others
expect.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs
from fsspec.implementations.arrow import ArrowFSWrapper

from clue_ray.errors import EventLogError
from clue_ray.storage.place import SCHEMES, explain_access, find_secret

FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
}
COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")
WILDCARDS = "*?["


HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class EventFile:
    """One file of a log.

    Attributes:
        root: URI of the filesystem it lies on, empty for this machine's.
        path: absolute path on that filesystem.
        size, changed: bytes and time of last change in nanoseconds; part of what a corpus is made
            from.
        partition: columns that the names of its folders give, (key, value).
    """

    root: str
    path: str
    size: int
    changed: int
    partition: tuple[tuple[str, str | None], ...] = ()

    def __str__(self) -> str:
        return f"{urlsplit(self.root).scheme}://{self.path}" if self.root else self.path

    @property
    def format(self) -> str:
        """`parquet`, `csv` or `json`, by the name's ending."""
        return FORMATS[_ending(self.path)]

    def open(self) -> pa.NativeFile:
        """Open for reading from any position."""
        return _filesystem(self.root).open_input_file(self.path)

    def stream(self) -> pa.NativeFile:
        """Open for reading from start to end, unpacked if the name ends in .gz or another known
        compression.
        """
        return _filesystem(self.root).open_input_stream(self.path, compression="detect")


def _ending(path: str) -> str:
    """Return a file name's ending in lower case, a compression's left out."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    if len(suffixes) > 1 and suffixes[-1] in COMPRESSIONS and suffixes[-2] != ".parquet":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@lru_cache(maxsize=64)
def _filesystem(root: str) -> pa.fs.FileSystem:
    """Return the filesystem at a URI; this machine's for an empty one."""
    return pa.fs.FileSystem.from_uri(root)[0] if root else pa.fs.LocalFileSystem()


def find_files(places: Iterable[str]) -> list[EventFile]:
    """List the files of a log in order of name; a folder stands for every file of a known format
    below it.

    Raises:
        EventLogError: a place does not exist, cannot be read, or holds no file of a known format.
    """
    found = {_identity(file): file for place in places for file in _expand(place)}
    return sorted(found.values(), key=str)


def _identity(file: EventFile) -> str:
    """Name a file so that a second way to it, such as a link, is no second file."""
    return str(file) if file.root else os.path.realpath(file.path)


def _expand(place: str) -> list[EventFile]:
    root, base, pattern = _locate(place)
    try:
        infos = _list(root, base, pattern)
    except (OSError, pa.ArrowException) as error:
        raise EventLogError(
            f"Event log {place} cannot be read ({explain_access(error)})."
        ) from None
    known = ", ".join(FORMATS)
    if not infos:
        what = "matches no file" if pattern else "does not exist"
        raise EventLogError(
            f"Event log {place} {what}; give a file, folder or glob of {known} files."
        )
    files = [
        EventFile(
            root, info.path, info.size, info.mtime_ns or 0, _partition(info.path[len(base) :])
        )
        for info in infos
        if info.type == pa.fs.FileType.File
        and _ending(info.path) in FORMATS
        and _is_visible(info.path[len(base) :])
    ]
    if not files and len(infos) == 1 and infos[0].type == pa.fs.FileType.File:
        raise EventLogError(
            f"Event log {place} ends in {_ending(place) or 'nothing'!r}; allowed are {known}."
        )
    if not files:
        raise EventLogError(
            f"Event log {place} holds no event files; give a file, folder or glob of {known} files."
        )
    return files


def _locate(place: str) -> tuple[str, str, str]:
    """Split a place into its filesystem's URI, the path up to the first wildcard, and the pattern
    after it.
    """
    if "://" not in place:
        path = os.path.abspath(place)
        fixed, pattern = (
            (path, "") if os.path.exists(path) else _split_pattern(path)
        )  # a name may hold wildcards
        return "", fixed, pattern
    try:
        parts = urlsplit(place.replace("#", "%23"))
    except ValueError as error:
        raise EventLogError(
            f"Event log {place!r} is no URI ({error}); write it as s3://bucket/folder."
        ) from None
    if parts.scheme not in SCHEMES:
        raise EventLogError(
            f"Event log {place} has the unknown scheme {parts.scheme!r}; use {', '.join(SCHEMES)}."
        )
    if found := find_secret(place):
        start, what = found
        raise EventLogError(
            f"Event log {start} holds {what}; give it by the environment, as AWS_SECRET_ACCESS_KEY "
            f"is."
        )
    fixed, pattern = _split_pattern(parts.path)
    root = parts._replace(path=quote(unquote(fixed), safe="/=:+,@")).geturl()
    try:
        base = pa.fs.FileSystem.from_uri(root)[1]
    except (OSError, pa.ArrowException) as error:
        raise EventLogError(
            f"Event log {place} cannot be reached ({explain_access(error)})."
        ) from None
    return root, base, pattern


def _split_pattern(path: str) -> tuple[str, str]:
    steps = path.split("/")
    wild = next((i for i, step in enumerate(steps) if set(step) & set(WILDCARDS)), len(steps))
    return "/".join(steps[:wild]) or "/", "/".join(steps[wild:])


def _list(root: str, base: str, pattern: str) -> list[pa.fs.FileInfo]:
    store = _filesystem(root)
    bucket = base.split("/")[0]  # empty where paths begin with a slash, as in file: and hdfs:
    if root and bucket and store.get_file_info(bucket).type == pa.fs.FileType.NotFound:
        raise FileNotFoundError("NO_SUCH_BUCKET")
    if pattern:
        store.get_file_info(
            pa.fs.FileSelector(base, allow_not_found=True)
        )  # the glob below swallows a refusal
        matches = ArrowFSWrapper(store).glob(f"{base.rstrip('/')}/{pattern}")
        infos = store.get_file_info(sorted(matches)) if matches else []
    else:
        infos = [
            info for info in [store.get_file_info(base)] if info.type != pa.fs.FileType.NotFound
        ]
    folders = [info for info in infos if info.type == pa.fs.FileType.Directory]
    below = [
        file
        for info in folders
        for file in store.get_file_info(pa.fs.FileSelector(info.path, recursive=True))
    ]
    return [*infos, *below]


def _is_visible(relative: str) -> bool:
    return not any(step.startswith(("_", ".")) for step in relative.split("/") if "=" not in step)


def _partition(relative: str) -> tuple[tuple[str, str | None], ...]:
    """Read `key=value` folders between a log's root and a file."""
    folders = [step.split("=", 1) for step in relative.split("/")[:-1] if "=" in step]
    return tuple(
        (unquote(key), None if value == HIVE_NULL else unquote(value)) for key, value in folders
    )
