"""What this machine allows a Ray session: CPUs, and a temporary folder that Ray can use."""

import os
import pwd
import tempfile
from pathlib import Path

from clue_ray.errors import ClusterError

SOCKET = "/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
"""What Ray adds to its temporary folder for the longest of its sockets."""
LONGEST_SOCKET = 107
"""Bytes of a socket's path that Linux allows."""
REMEDY = "set RAY_TMPDIR to a short folder of your own, such as /tmp/ray-$USER"


def usable_cpus() -> int:
    """Return the CPUs that this process may use, by its affinity and its cgroup."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([affinity or 1, *_cgroup_limits()]))


def _cgroup_limits() -> list[int]:
    """Return the whole CPUs that cgroups of version 1 and 2 allow, at least one each."""
    limits = []
    for folder in _cgroup_folders():
        quota, period = _read_quota(folder)
        limits += [max(1, quota // period)] if quota > 0 else []
    return limits


def _read_quota(folder: Path) -> tuple[int, int]:
    """Return the microseconds of CPU per period of a cgroup; the former is -1 without a limit."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return (-1 if quota == "max" else int(quota)), int(period)
    except (OSError, ValueError):
        pass
    try:
        quota, period = ((folder / f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period"))
        return int(quota), int(period)
    except (OSError, ValueError):
        return -1, 1


def _cgroup_folders() -> list[Path]:
    """Return the folders of this process's cgroups that may limit CPUs, and all above them."""
    mount = Path("/sys/fs/cgroup")
    found = {mount: "/", mount / "cpu": "/"}  # in a container, its own cgroup is the root
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for _, controllers, own in (line.split(":", 2) for line in lines):
        if not controllers:
            found[mount] = own
        elif "cpu" in controllers.split(","):
            found[mount / "cpu"] = own
    folders = []
    for root, own in found.items():
        here = root / own.lstrip("/")
        folders += [folder for folder in (here, *here.parents) if folder.is_relative_to(root)]
    return folders


def check_temporary_folder() -> None:
    """Check that Ray can put its sockets and logs into its temporary folder.

    Raises:
        ClusterError: the path is too long for a socket, or the folder cannot be written.
    """
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray")
    length = len(os.fsencode(folder)) + len(SOCKET)
    if length > LONGEST_SOCKET:
        raise ClusterError(
            f"Ray's temporary folder {folder} has too long a path for a socket ({length} bytes, at "
            f"most {LONGEST_SOCKET} are allowed); {REMEDY}."
        )
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        why = f"belongs to {_owner(existing)}" if existing.is_dir() else "is not a folder"
        raise ClusterError(
            f"Ray's temporary folder {folder} cannot be written: {existing} {why}; {REMEDY}."
        )


def explain_start_error(error: Exception) -> str | None:
    """Return the lasting cause of an error at Ray's start, or None if another try may help."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError):
        return reason
    return reason if "AF_UNIX path" in reason or "Read-only file system" in reason else None


def _owner(path: Path) -> str:
    """Return the name of a folder's owner, or the number where there is no name."""
    user = path.stat().st_uid
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
