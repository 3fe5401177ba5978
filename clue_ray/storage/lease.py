"""One command at a time on a study's storage: a signed file there, signed again and again while the
command lives.

Buckets know no lock that ends with its holder, so another's claim is watched: signed again within a
minute, its holder lives; else it is taken over. Two that claim within the same two seconds are told
apart by reading back: the last to write stays.
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

from clue_ray.errors import StudyError
from clue_ray.storage.files import delete_file, read_now, write_file
from clue_ray.storage.place import explain_access

CLAIM = ".claim.json"
SIGN_SECONDS = 10.0
"""Pause between signatures."""
LOOK_SECONDS = 1.0
"""Pause between looks at another's claim."""
DEAD_SECONDS = 45.0
"""Without a signature for so long, a holder is dead."""
SETTLE_SECONDS = 2.0
"""Pause before reading back; longer than another takes from looking to writing."""
LOST_SECONDS = 90.0
"""Without a signature that storage took for so long, storage is lost; a run waits longer, and never
fails first."""
REMEDY = "give --storage a folder or URI that can be written, with credentials in the environment"


class Lease:
    """Holds a study's storage for this command, as a context.

    Attributes:
        trouble: why it is no longer held, a sentence; empty while it is.
    """

    def __init__(self, place: str):
        self.place, self.trouble = place, ""
        where = {"host": socket.gethostname(), "processes": processes(), "pid": os.getpid()}
        self.holder = {"id": uuid.uuid4().hex, **where}
        self.signatures = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.keep, daemon=True)

    def __enter__(self) -> "Lease":
        try:
            self.wait_for_others()
            self.sign()
            time.sleep(SETTLE_SECONDS)
            found = self.another()
        except OSError as error:
            raise StudyError(
                f"Storage {self.place} cannot be used ({explain_access(error)}); {REMEDY}."
            ) from None
        if found:
            raise self.refusal(found)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        with suppress(OSError, StudyError):  # the next command finds it dead
            if not self.trouble and not self.another():
                delete_file(self.place, CLAIM)

    def wait_for_others(self) -> None:
        """Wait until another's claim is given up or proves dead; refuse while its holder lives.

        Raises:
            StudyError: another command signed its claim meanwhile.
        """
        first = self.another()
        deadline = time.monotonic() + DEAD_SECONDS
        while first and not _died_here(first) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            now = self.another()
            if now is None:
                return
            if now != first:
                raise self.refusal(now)

    def another(self) -> dict[str, Any] | None:
        """Return another command's claim; None where there is none that can be read."""
        try:
            found = json.loads(read_now(self.place, CLAIM) or b"null")
        except ValueError:
            return None
        return found if isinstance(found, dict) and found.get("id") != self.holder["id"] else None

    def refusal(self, found: dict[str, Any]) -> StudyError:
        """Say who holds the storage."""
        who = f"process {found.get('pid')} on {found.get('host')}, last heard of at {found.get('signed')}"
        return StudyError(
            f"{self.place} is in use by {who}; wait for it to end, or choose another --storage."
        )

    def sign(self) -> None:
        """Write the claim with the time of day, for people, and a number that tells signatures
        apart.
        """
        self.signatures += 1
        now = datetime.now(UTC).isoformat(timespec="seconds")
        signed = self.holder | {"signed": now, "signatures": self.signatures}
        write_file(self.place, CLAIM, json.dumps(signed).encode())

    def keep(self) -> None:
        """Sign again and again; tell of trouble when storage has been silent too long, or another
        has taken over.
        """
        heard = time.monotonic()
        while not self.ended.wait(SIGN_SECONDS) and not self.trouble:
            try:
                if found := self.another():
                    self.trouble = str(self.refusal(found))
                    return
                self.sign()
                heard = time.monotonic()
            except (OSError, StudyError) as error:
                silent = time.monotonic() - heard
                if silent > LOST_SECONDS:
                    reason = (
                        explain_access(error)
                        if isinstance(error, OSError)
                        else str(error).split(";")[0]
                    )
                    self.trouble = (
                        f"Storage {self.place} has been lost for {silent:.0f} s ({reason}); mend "
                        f"it and run the same "
                        "command again: what it or --output still holds is not trained again."
                    )


def processes() -> str:
    """Name what numbers this process: one start of one machine, and its space of process ids;
    nothing where unknown.

    Names of hosts are no such thing: two laptops may share one, as a host and its container do.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _died_here(claim: dict[str, Any]) -> bool:
    """Tell whether a claim's holder was a process of this machine that is gone."""
    if (
        not processes()
        or claim.get("processes") != processes()
        or not isinstance(claim.get("pid"), int)
    ):
        return False
    try:
        os.kill(claim["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
