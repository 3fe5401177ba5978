"""The event log of a study: one line of JSON per event, in `events.jsonl`.

The command that holds the study is its only writer. Lines are only appended, each one synchronised
to the disk, so a killed command leaves whole lines and at most one torn line at the end, which
readers skip.
"""

import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clue_ray.errors import StudyError
from clue_ray.storage.documents import TooLargeError, parse_json, read_bounded
from clue_ray.storage.files import atomic_write

EVENTS_FILE = "events.jsonl"

logger = logging.getLogger(__name__)


class EventLog:
    """Appends events to a file.

    An event that cannot be written, as on a full disk, is kept and written with the next one: a
    study does not end because of its log.
    """

    def __init__(self, file: Path):
        self.file = file
        self._unwritten: list[str] = []

    def add(self, event: str, **facts: Any) -> None:
        """Append an event with the current time and its facts; numbers must fit JSON."""
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        entry = {"time": now, "event": event, **facts}
        finite = {name: value for name, value in entry.items() if not _is_no_number(value)}
        self._unwritten.append(json.dumps(finite, ensure_ascii=False))
        try:
            self._write()
        except OSError as error:
            logger.warning("%s cannot be written (%s); it is tried again.", self.file, error)

    def _write(self) -> None:
        text = "".join(f"{line}\n" for line in self._unwritten)
        with open(self.file, "ab+") as stream:
            # A path that is not UTF-8 has surrogates, which become escapes that JSON knows.
            whole = "\n" * _ends_torn(self.file) + text
            stream.write(whole.encode("utf-8", "backslashreplace"))
            stream.flush()
            os.fsync(stream.fileno())
        self._unwritten.clear()

    @contextmanager
    def logged(self, what: str, **facts: Any) -> Iterator[None]:
        """Log that something started, and that it ended or why it failed.

        Where an earlier start has no end, its command was killed. The new start then says when the
        log was last written.
        """
        killed = _last_seen_if_killed(read_events(self.file), what)
        self.add(f"{what}_started", **facts, **({"killed_after": killed} if killed else {}))
        try:
            yield
        except BaseException as error:
            reason = " ".join(str(error).split()) or "interrupted"
            self.add(f"{what}_failed", reason=reason, kind=type(error).__name__)
            raise
        self.add(f"{what}_ended")


def read_events(file: Path) -> list[dict[str, Any]]:
    """Read the events of a log; torn lines are left out, and a log that does not exist is empty.

    Raises:
        StudyError: the log could fill the memory.
    """
    return [event for line in _read_lines(file) if (event := _parse(line)) is not None]


def join_events(file: Path, other: bytes) -> None:
    """Add the whole lines of another copy of a log that this one lacks, in the order of time.

    Raises:
        StudyError: the log could fill the memory.
    """
    own = _read_lines(file)
    if missing := set(filter(_parse, other.splitlines())) - set(own):
        # Each line begins with its time in a form whose alphabetical order is that of the times.
        with atomic_write(file) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in sorted({*own, *missing})))


def _read_lines(file: Path) -> list[bytes]:
    try:
        return read_bounded(file).splitlines() if file.is_file() else []
    except TooLargeError as error:
        raise StudyError(
            f"The event log {file} cannot be read ({error}); move it elsewhere, and a new one "
            "begins."
        ) from None


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = parse_json(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _is_no_number(value: Any) -> bool:
    """Return whether a value is NaN or infinite, which JSON lacks."""
    return isinstance(value, float) and not math.isfinite(value)


def _ends_torn(file: Path) -> bool:
    """Return whether a killed writer left the beginning of a line."""
    if not file.exists() or not file.stat().st_size:
        return False
    with open(file, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() != b"\n"


def _last_seen_if_killed(events: list[dict[str, Any]], what: str) -> str | None:
    """Return the time of the last event if the last start has no end."""
    marks = [str(event.get("event")) for event in events]
    own = [mark for mark in marks if mark.startswith(f"{what}_")]
    return str(events[-1].get("time")) if own and own[-1] == f"{what}_started" else None
