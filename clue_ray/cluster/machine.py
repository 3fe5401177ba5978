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
    """Return the whole CPUs that cgroups allow, at least one each."""
    limits = []
    for folder in _cgroup_folders():
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            limits += [max(1, int(quota) // int(period))] if quota != "max" else []
        except (OSError, ValueError):
            continue
    try:
        first = Path("/sys/fs/cgroup/cpu")
        quota_us = int((first / "cpu.cfs_quota_us").read_text())
        period_us = int((first / "cpu.cfs_period_us").read_text())
        limits += [max(1, quota_us // period_us)] if quota_us > 0 else []
    except (OSError, ValueError):
        pass
    return limits


def _cgroup_folders() -> list[Path]:
    """Return the folders of this process's cgroup (version 2) and of all above it."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return [root]
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    here = root / own.lstrip("/")
    return [folder for folder in (here, *here.parents) if folder.is_relative_to(root)]


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
        raise ClusterError(
            f"Ray's temporary folder {folder} cannot be written: {existing} belongs to "
            f"{_owner(existing)}; {REMEDY}."
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
