"""A lease on a study's storage, so that one command at a time writes to it.

Buckets have no lock that ends with its holder. Instead, the holder renews a lease file every 10
seconds. Another command watches the file: if it is renewed, the storage is in use; if it is not
renewed for 45 seconds, the lease has expired and is taken over. When two commands write the lease
at the same time, each reads it back after 2 seconds, and the one whose lease is found continues.
"""

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clue_ray.errors import StudyError, short
from clue_ray.storage.documents import parse_json
from clue_ray.storage.files import delete_file, read_file_once, write_file
from clue_ray.storage.place import explain_access

LEASE_FILE = ".lease.json"
RENEW_SECONDS = 10.0
"""Pause between renewals."""
POLL_SECONDS = 1.0
"""Pause between reads of another command's lease."""
EXPIRE_SECONDS = 45.0
"""Time without a renewal after which a lease has expired."""
SETTLE_SECONDS = 2.0
"""Pause before reading the lease back; longer than another command takes from read to write."""
LOST_SECONDS = 90.0
"""Time without a successful renewal after which storage counts as lost.

Runs retry for longer (`files.RETRY_SECONDS`), so the study aborts before one of its runs fails.
"""
REMEDY = "give --storage a folder or URI that can be written, with credentials in the environment"


class Lease:
    """A context manager that holds a study's storage for this command.

    Attributes:
        failure: why the lease is no longer held, a sentence; empty while it is held.
    """

    def __init__(self, place: str):
        self.place, self.failure = place, ""
        process = {"host": socket.gethostname(), "pid_scope": pid_scope(), "pid": os.getpid()}
        self.holder = {"id": uuid.uuid4().hex, **process}
        self._renewals = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, daemon=True)

    def __enter__(self) -> "Lease":
        try:
            self._wait_for_others()
            self.renew()
            time.sleep(SETTLE_SECONDS)
            other = self._read_other()
        except OSError as error:
            raise StudyError(
                f"Storage {self.place} cannot be used ({explain_access(error)}); {REMEDY}."
            ) from None
        if other:
            raise self._in_use(other)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        # If the deletion fails, the lease expires by itself.
        with suppress(OSError, StudyError):
            if not self.failure and not self._read_other():
                delete_file(self.place, LEASE_FILE)

    def renew(self) -> None:
        """Write the lease with the current time and the number of renewals.

        The time is for people. The number makes every renewal a change of the file, whatever the
        clocks of the machines say.
        """
        self._renewals += 1
        now = datetime.now(UTC).isoformat(timespec="seconds")
        lease = self.holder | {"renewed_at": now, "renewals": self._renewals}
        write_file(self.place, LEASE_FILE, json.dumps(lease).encode())

    def _wait_for_others(self) -> None:
        """Wait until another command's lease is released or has expired.

        Raises:
            StudyError: the other command renewed its lease.
        """
        first = self._read_other()
        deadline = time.monotonic() + EXPIRE_SECONDS
        while first and not _holder_is_gone(first) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            now = self._read_other()
            if now is None:
                return
            if now != first:
                raise self._in_use(now)

    def _read_other(self) -> dict[str, Any] | None:
        """Return another command's lease, or None if there is none or it cannot be parsed."""
        try:
            found = parse_json(read_file_once(self.place, LEASE_FILE) or b"null")
        except ValueError:
            return None
        return found if isinstance(found, dict) and found.get("id") != self.holder["id"] else None

    def _in_use(self, other: dict[str, Any]) -> StudyError:
        """Build the error that names the holder of another lease."""
        pid, host, renewed = (short(other.get(name)) for name in ("pid", "host", "renewed_at"))
        return StudyError(
            f"{self.place} is in use by process {pid} on {host}, lease last renewed at {renewed}; "
            "wait for it to end, or choose another --storage."
        )

    def _renew_until_ended(self) -> None:
        """Renew the lease; set `failure` when another command took it or storage is lost."""
        renewed = time.monotonic()
        while not self._ended.wait(RENEW_SECONDS):
            try:
                if other := self._read_other():
                    self.failure = str(self._in_use(other))
                    return
                self.renew()
                renewed = time.monotonic()
            except (OSError, StudyError) as error:
                seconds = time.monotonic() - renewed
                if seconds > LOST_SECONDS:
                    self.failure = self._describe_loss(error, seconds)
                    return

    def _describe_loss(self, error: OSError | StudyError, seconds: float) -> str:
        reason = explain_access(error) if isinstance(error, OSError) else str(error).split(";")[0]
        return (
            f"Storage {self.place} has been unavailable for {seconds:.0f} s ({reason}); fix it and "
            "run the same command again: runs that it or --output still holds are not trained "
            "again."
        )


def pid_scope() -> str:
    """Return the boot id and PID namespace, within which a PID identifies a process.

    A host name does not: two laptops may share one, and so do a host and its container. The result
    is empty where the operating system has no such ids.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _holder_is_gone(lease: dict[str, Any]) -> bool:
    """Return whether a lease's holder was a process of this machine that has ended."""
    scope, pid = pid_scope(), lease.get("pid")
    if not scope or lease.get("pid_scope") != scope or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)  # signal 0 only checks that the process exists
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # of another user, or larger than any process id
        return False
    return False
