"""Find the files of an event log: local paths, folders, globs, and URIs that pyarrow.fs supports.

Folders named `key=value` become columns, as in Hive. Names that begin with `_` or `.` are skipped,
as in Spark, which writes `_SUCCESS` and `_temporary` next to its data.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs
from fsspec.implementations.arrow import ArrowFSWrapper

from clue_ray.errors import EventLogError
from clue_ray.storage.place import SCHEMES, explain_access, find_secret
from clue_ray.storage.unpack import Readable, unpack

FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".tsv": "csv",
    ".tab": "csv",
    ".psv": "csv",
    ".pq": "parquet",
    ".parq": "parquet",
    ".jsonlines": "json",
    ".jl": "json",
    ".ldjson": "json",
}
COMPRESSIONS = (".gz", ".gzip", ".bz2", ".zst", ".zstd", ".lz4", ".xz", ".zip")
WILDCARDS = "*?["
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""The folder value that Hive and Spark write for null."""


@dataclass(frozen=True)
class EventFile:
    """One file of a log.

    Attributes:
        root: URI of its filesystem; empty for the local one.
        path: absolute path on that filesystem.
        size: bytes. Together with `changed` it identifies the file's content in a corpus's key.
        changed: time of the last modification in nanoseconds.
        partition: columns that come from the names of its folders, as (name, value).
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
        """`parquet`, `csv` or `json`, from the ending of its name."""
        return FORMATS[_ending(self.path)]

    def open(self) -> pa.NativeFile:
        """Open the file for random access."""
        return _filesystem(self.root).open_input_file(self.path)

    @contextmanager
    def stream(self) -> Iterator[Readable]:
        """Open the file for sequential reading, unpacked if its first bytes say so."""
        with self.open() as file:
            yield unpack(file)


def _ending(path: str) -> str:
    """Return the ending of a file name in lower case, without that of a compression."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    packed = len(suffixes) > 1 and suffixes[-1] in COMPRESSIONS
    if packed and FORMATS.get(suffixes[-2]) != "parquet":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@lru_cache(maxsize=64)
def _filesystem(root: str) -> pa.fs.FileSystem:
    """Return the filesystem of a URI, or the local one for an empty string.

    Cached, because each S3 filesystem resolves credentials and opens connections of its own.
    """
    return pa.fs.FileSystem.from_uri(root)[0] if root else pa.fs.LocalFileSystem()


def find_files(places: Iterable[str]) -> list[EventFile]:
    """List the files of a log, sorted by name.

    A folder stands for all files of a supported format below it. The order does not depend on the
    filesystem: it is the order of appearance in a log without timestamps.

    Raises:
        EventLogError: a place does not exist, cannot be read, or has no file of a supported format.
    """
    return find_log(places)[0]


def find_log(places: Iterable[str]) -> tuple[list[EventFile], list[str]]:
    """List the files of a log as `find_files` does, and the other files in its folders.

    Raises:
        EventLogError: as `find_files`.
    """
    expanded = [_expand(place) for place in places]
    found = {_identity(file): file for files, _ in expanded for file in files}
    others = {other for _, named in expanded for other in named}
    return sorted(found.values(), key=str), sorted(others)


def _identity(file: EventFile) -> str:
    """Return a name that is the same for a file and for every link to it."""
    return str(file) if file.root else os.path.realpath(file.path)


def _expand(place: str) -> tuple[list[EventFile], list[str]]:
    """List the event files of a place, and the names of visible files of other formats."""
    root, base, pattern = _locate(place)
    try:
        base, pattern = _enter(_filesystem(root), base, pattern)
        infos = _list(root, base, pattern)
        visible = [
            info
            for info in infos
            if info.type == pa.fs.FileType.File and _is_visible(info.path[len(base) :])
        ]
    except (OSError, pa.ArrowException) as error:
        raise EventLogError(
            f"Event log {place} cannot be read ({explain_access(error)})."
        ) from None
    except UnicodeDecodeError as error:
        raise EventLogError(
            f"Event log {place} has a file in its folder with the name {error.object!r}, which is "
            "not UTF-8; rename it."
        ) from None
    files = [
        EventFile(
            root, info.path, info.size, info.mtime_ns or 0, _partition(info.path[len(base) :])
        )
        for info in visible
        if _ending(info.path) in FORMATS
    ]
    if not files:
        raise EventLogError(_explain_none(place, infos, pattern))
    return files, [info.path for info in visible if _ending(info.path) not in FORMATS]


def _explain_none(place: str, infos: list[pa.fs.FileInfo], pattern: str) -> str:
    """Return the message for a place where no event file was found."""
    known = ", ".join(FORMATS)
    if len(infos) == 1 and infos[0].type == pa.fs.FileType.File:
        return f"Event log {place} ends in {_ending(place) or 'nothing'!r}; allowed are {known}."
    other = next((info.base_name for info in infos if info.type == pa.fs.FileType.File), None)
    what = (
        f"has no event files ({other} is none)"
        if other
        else "has no event files"
        if infos
        else "matches no file"
        if pattern
        else "does not exist"
    )
    return f"Event log {place} {what}; give a file, folder or glob of {known} files."


def _locate(place: str) -> tuple[str, str, str]:
    """Split a place into its filesystem's URI, the path before the first wildcard, and the rest."""
    try:
        place.encode()
    except UnicodeEncodeError:
        raise EventLogError(
            f"Event log {place!r} has a name that is not UTF-8; rename it."
        ) from None
    if "://" not in place:
        return "", *_split_pattern(os.path.abspath(os.path.expanduser(place)))
    try:
        parts = urlsplit(place.replace("#", "%23"))  # a key may contain #; a place has no fragment
    except ValueError as error:
        raise EventLogError(
            f"Event log {place!r} is not a URI ({error}); write it as s3://bucket/folder."
        ) from None
    if parts.scheme not in SCHEMES:
        raise EventLogError(
            f"Event log {place} has unknown scheme {parts.scheme!r}; use one of "
            f"{', '.join(SCHEMES)}."
        )
    if found := find_secret(place):
        start, what = found
        raise EventLogError(
            f"Event log {start} contains {what}; set it in the environment instead, as in "
            "AWS_SECRET_ACCESS_KEY."
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
    """Split a path before its first part with a wildcard."""
    steps = path.split("/")
    wild = next((i for i, step in enumerate(steps) if set(step) & set(WILDCARDS)), len(steps))
    return "/".join(steps[:wild]) or "/", "/".join(steps[wild:])


def _enter(store: pa.fs.FileSystem, base: str, pattern: str) -> tuple[str, str]:
    """Move the leading parts of a pattern that exist as written, such as a folder [b], to the base.

    The name of an existing file or folder may contain wildcard characters.
    """
    steps = pattern.split("/") if pattern else []
    while steps:
        inner = f"{base.rstrip('/')}/{steps[0]}"
        if store.get_file_info(inner).type == pa.fs.FileType.NotFound:
            break
        base, steps = inner, steps[1:]
    return base, "/".join(steps)


def _list(root: str, base: str, pattern: str) -> list[pa.fs.FileInfo]:
    """List what lies at a path, including all files below it if it is a folder."""
    store = _filesystem(root)
    # Object stores report a missing bucket like a missing key, which would hide a misspelled name.
    bucket = base.split("/")[0]  # empty where paths begin with a slash, as in file: and hdfs:
    if root and bucket and store.get_file_info(bucket).type == pa.fs.FileType.NotFound:
        raise FileNotFoundError("NO_SUCH_BUCKET")
    if pattern:
        # fsspec's glob returns nothing where access is denied; this listing raises the error.
        store.get_file_info(pa.fs.FileSelector(base, allow_not_found=True))
        # The glob is of the folder alone, because the folder's own name may hold wildcards.
        within = ArrowFSWrapper(pa.fs.SubTreeFileSystem(base, store)).glob(pattern)
        matches = [f"{base.rstrip('/')}/{match.lstrip('/')}" for match in within]
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
    """Return whether no part of a path is hidden; a column's name may begin with an underscore."""
    return not any(step.startswith(("_", ".")) for step in relative.split("/") if "=" not in step)


def _partition(relative: str) -> tuple[tuple[str, str | None], ...]:
    """Return the columns of the `key=value` folders between a log's root and a file."""
    folders = [step.split("=", 1) for step in relative.split("/")[:-1] if "=" in step]
    return tuple(
        (unquote(key), None if value == HIVE_NULL else unquote(value)) for key, value in folders
    )
