"""Checksums of the files of a corpus; a file that did not change is read once and not again.

A study verifies its corpus each time it is planned or run, and hashing 1e9 events takes most of a
minute. So each node remembers the sha256 of every file with its size and times. It remembers them
in a folder of its own: a file in the corpus could come from whoever damaged the corpus.
"""

import hashlib
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from clue_ray.corpus.hashes import sha256
from clue_ray.errors import StudyError
from clue_ray.storage.documents import read_document
from clue_ray.storage.files import write_json
from clue_ray.storage.sync import node_folder

MISSING = "file missing"
SETTLED_NS = 2_000_000_000
"""Age from which on a file is remembered: a younger one may change without a change of its times,
whose resolution is coarse."""
THREADS = 4

State = tuple[str, int, int, int]
"""sha256, bytes, and times of the last change of content and of metadata, in ns. Copying a file can
keep the first time, and never keeps the second."""


def find_sums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of files in a folder, or MISSING."""
    known, listed = _recall(folder), list(names)

    def find(name: str) -> State | None:
        try:
            state = _state(folder / name, "")  # before it is read, which takes a while
            same = name in known and known[name][1:] == state[1:]
            return known[name] if same else (sha256(folder / name), *state[1:])
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        found = dict(zip(listed, pool.map(find, listed), strict=True))
    _remember(folder, known, {name: state for name, state in found.items() if state})
    return {name: state[0] if state else MISSING for name, state in found.items()}


def remember_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Remember the checksums of files that were just written."""
    states = {name: _state(folder / name, found) for name, found in sums.items()}
    _remember(folder, _recall(folder), states)


def _remember(folder: Path, known: dict[str, State], states: dict[str, State]) -> None:
    settled = time.time_ns() - SETTLED_NS
    new = {name: state for name, state in states.items() if max(state[2:]) < settled}
    if new.items() <= known.items():
        return
    with suppress(OSError, StudyError):  # a full disk; or no folder that only this user can write
        write_json(_memory(folder), known | new)


def _state(file: Path, found: str) -> State:
    stat = file.stat()
    return found, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _recall(folder: Path) -> dict[str, State]:
    """Read what is remembered of a folder; nothing if that is lost or damaged."""
    with suppress(OSError, StudyError, ValueError, TypeError, AttributeError):
        found = read_document(_memory(folder))
        return {name: (str(s), int(b), int(m), int(c)) for name, (s, b, m, c) in found.items()}
    return {}


def _memory(folder: Path) -> Path:
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return node_folder("checksums") / f"{name}.json"
