"""Documents and files as an attacker may write them, and a guard that notices what reading does.

A reader may accept a document, or refuse it in one sentence. It may not run anything, connect to
another machine, write outside the folder, or open the canary that lies next to it. The guard hears
what Python does, not what a library in C++ opens by itself.
"""

import copy
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from clue_ray.errors import ClueRayError

LONGEST_SENTENCE = 1500
MOST_MEMORY = 500
"""MB by which one input may raise the memory of the process while it is read."""
FOUND = Path(__file__).parent / "found"
"""Inputs that failed a long attack here, which tries them first until they no longer fail.

Hypothesis deletes them then, and finds none after a change of the test, so git does not keep them:
an input that failed before is an @example, or has a test of its own.
"""
outcomes: Counter[str] = Counter()
"""Inputs of this process by outcome: read, or the kind of the error that refused them."""
CANARY = "secret.txt"
NAMED = (CANARY, "/etc/passwd")
"""Parts of the paths outside the folder that `VALUES` name."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONNECTS = {"socket.connect": 1, "socket.sendto": 1, "socket.bind": 1, "socket.getaddrinfo": 0}
"""Events of the network, and which argument is the address or the host."""
RUNS = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "pickle.find_class",
}
REMOVES = {
    "os.remove",
    "os.rename",
    "os.rmdir",
    "shutil.rmtree",
    "os.mkdir",
    "os.symlink",
    "os.link",
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
DEEP: Any = None
for _ in range(120):
    DEEP = [DEEP]
VALUES = (
    None, True, -1, 0, 1, 10**400, 2**63, 1e308, float("nan"), float("inf"), "", "x" * 5_000,
    f"../{CANARY}", f"../../{CANARY}", "/etc/passwd", "..", ".", "a/b", "a\x00b", "C:\\x",
    "\x1b]0;owned\x07\x1b[2J", "\ud800", "<script>alert(1)</script>", "{{ 7 * 7 }}", "$\\frac{",
    "=cmd|' /C calc'!A0", "`id`", "$(id)", "!!python/object/apply:os.system [id]", "\u202e",
    "é" * 99, [], {}, [[]], {"a": {}}, [None], {"": 0}, DEEP,
)  # fmt: skip
EXAMPLES = pytest.mark.parametrize("examples", [12, pytest.param(3000, marks=pytest.mark.slow)])
"""Inputs per test: few in `make test`, many in `make test-all`."""


def attack(examples: int) -> settings:
    """Return the settings of one attack: the short ones repeat, the long ones look for more."""
    return settings(
        max_examples=examples,
        derandomize=examples < 100,
        deadline=None,
        database=None if examples < 100 else DirectoryBasedExampleDatabase(FOUND),
        suppress_health_check=list(HealthCheck),
    )


def values() -> st.SearchStrategy[Any]:
    """Draw what nobody expects in a document."""
    # Copies: a later change of the document would change what other documents draw.
    return (
        st.sampled_from(VALUES).map(copy.deepcopy)
        | st.text(max_size=20)
        | st.integers()
        | st.floats()
    )


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value below the top of a document."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@st.composite
def changed(draw: Callable[..., Any], document: Any) -> Any:
    """Draw a document with a few values replaced, removed or renamed."""
    found = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(found)) if isinstance(found, dict | list) else []
        if not known or draw(st.integers(0, 30)) == 0:
            return draw(values())
        *parents, key = draw(st.sampled_from(known))
        node = found
        for parent in parents:
            node = node[parent]
        what = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename"]))
        if what == "replace":
            node[key] = draw(values())
        else:
            value = node.pop(key)
            if what == "rename" and isinstance(node, dict):
                node[str(draw(values()))] = value
    return found


@st.composite
def garbled(draw: Callable[..., Any], content: bytes) -> bytes:
    """Draw bytes that were a valid file: cut, flipped, doubled, or with others in between."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(found) - 1, 0)))
        size = draw(st.integers(0, 16))
        what = draw(st.sampled_from(["cut", "flip", "insert", "remove", "double"]))
        if what == "cut":
            found = found[:at]
        elif what == "flip" and found:
            found[at] ^= draw(st.integers(1, 255))
        elif what == "insert":
            found[at:at] = draw(st.binary(max_size=16))
        elif what == "remove":
            del found[at : at + size]
        else:
            found[at:at] = found[at : at + size]
    return bytes(found)


def as_json(document: Any) -> bytes:
    """Write a document as JSON, with what JSON does not allow but Python reads."""
    return json.dumps(document).encode()


class _Watch:
    """What the process did while a reader read; one audit hook serves all guards."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.done: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in RUNS:
            self.done.append(f"{event} {arguments[:1]}")
        elif event == "open":
            path, flags = str(arguments[0]), arguments[2] or 0
            named = any(name in path for name in NAMED)
            if named or (flags & WRITES and self._outside(path) and path != "/dev/null"):
                self.done.append(f"open {path}")
        elif event == "exec" and self._is_foreign(arguments[0]):
            self.done.append(f"exec {arguments[0]}")
        elif event in CONNECTS and _leaves(arguments[CONNECTS[event]]):
            self.done.append(f"{event} {arguments[1:]}")
        elif event in REMOVES and self._outside(_whole_path(arguments)):
            self.done.append(f"{event} {arguments[0]}")

    def _is_foreign(self, code: Any) -> bool:
        """Return whether code comes from a text or from the folder, and not from a module."""
        if os.path.isfile(code.co_filename):
            return not self._outside(code.co_filename)
        return not _is_importing()  # modules make classes from texts of their own

    def _outside(self, path: str) -> bool:
        assert self.folder is not None
        return not Path(os.path.abspath(path)).is_relative_to(self.folder)


def _is_importing() -> bool:
    """Return whether a module is being imported."""
    frame: FrameType | None = sys._getframe()
    while frame and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _leaves(address: Any) -> bool:
    """Return whether a host, or an address with a port, is on another machine."""
    host = address[0] if isinstance(address, tuple) else address
    return str(host) not in LOOPBACK


def _whole_path(arguments: tuple[Any, ...]) -> str:
    """Return the path that a call removes or makes; rmtree names it within an open folder."""
    path, folder = str(arguments[0]), arguments[-1]
    if isinstance(folder, int) and folder >= 0 and os.path.exists(f"/proc/self/fd/{folder}"):
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return os.path.abspath(path)


_watch = _Watch()


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Fail where the block runs anything, connects, writes outside, or opens the canary."""
    (folder.parent / CANARY).write_text("nobody reads this")
    _watch.folder, _watch.done = folder.resolve(), []
    try:
        yield
    finally:
        _watch.folder = None
    assert not _watch.done, _watch.done


def reads_or_refuses(folder: Path, read: Callable[[], Any]) -> Any:
    """Call a reader under guard; return what it read, or None where it refused.

    Any error but one sentence for the user fails the test, and so does more memory than
    `MOST_MEMORY`.
    """
    before = _peak_memory(reset=True)
    found, sentence, outcome = None, "-", "read"
    with guarded(folder):
        try:
            found = read()
        except ClueRayError as error:
            sentence, outcome = str(error), type(error).__name__
    outcomes[outcome] += 1
    assert "\n" not in sentence, sentence
    assert 0 < len(sentence) < LONGEST_SENTENCE, sentence[:200]
    grown = _peak_memory() - before
    assert grown < MOST_MEMORY, f"reading took {grown:.0f} MB"
    return found


def _peak_memory(*, reset: bool = False) -> float:
    """Return the largest memory of this process in MB since the last reset (Linux, else 0)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5): VmHWM starts again
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1000
