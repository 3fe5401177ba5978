"""What a node says of itself: versions, limits, disk, clock, GPUs and the ports it reaches.

It runs in a task on each node, so it imports no ray and gives plain numbers; `doctor.py` judges.
"""

import os
import platform
import resource
import shutil
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from clue_ray.cluster.machine import usable_cpus

PACKAGES = ("clue-ray", "ray", "torch", "pyarrow", "numpy")
PORT_SECONDS = 3.0
"""Longest wait for a port of another node."""
PARALLEL_PORTS = 32
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class NodeFacts:
    """What one node found.

    Attributes:
        versions: Of Python and `PACKAGES`; empty for a package that is not installed.
        cpus: Cores that a process may use there.
        gpus: Devices that torch sees.
        shm_bytes: Size of /dev/shm; None where there is none.
        open_files: Limit of open files that a process may raise its own to.
        disk_free: Free bytes of the temporary folder.
        disk_used: Share of that disk in use, 0 to 1.
        unreachable: Ports, as HOST:PORT, that refused a connection or did not answer.
        failures: Place -> why the node cannot use it.
    """

    versions: dict[str, str]
    cpus: int
    gpus: int
    shm_bytes: int | None
    open_files: int
    disk_free: int
    disk_used: float
    unreachable: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)


def describe_node(ports: tuple[str, ...] = ()) -> NodeFacts:
    """Collect what this node says of itself.

    Args:
        ports: HOST:PORT of the other nodes' services, which it tries to reach.
    """
    disk = shutil.disk_usage(tempfile.gettempdir())
    shared = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else None
    return NodeFacts(
        versions=_versions(),
        cpus=usable_cpus(),
        gpus=_count_gpus(),
        shm_bytes=shared,
        open_files=_open_files(),
        disk_free=disk.free,
        disk_used=disk.used / max(disk.used + disk.free, 1),
        unreachable=_unreachable(ports),
    )


def read_clock() -> float:
    """Return this node's time, seconds since 1970."""
    return time.time()


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _count_gpus() -> int:
    """Count the devices that torch sees, whatever Ray lets a task of no GPU see."""
    import torch  # takes a second: only where a node is asked

    hidden = os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    try:
        return torch.cuda.device_count()
    finally:
        os.environ.update({"CUDA_VISIBLE_DEVICES": hidden} if hidden is not None else {})


def _open_files() -> int:
    """Return the limit that a process may raise its open files to; huge where there is none."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1 << 40 if hard == resource.RLIM_INFINITY else hard


def _unreachable(ports: tuple[str, ...]) -> tuple[str, ...]:
    with ThreadPoolExecutor(PARALLEL_PORTS) as pool:
        reached = pool.map(partial(_reaches, seconds=PORT_SECONDS), ports)
        return tuple(port for port, answers in zip(ports, reached, strict=True) if not answers)


def _reaches(port: str, seconds: float) -> bool:
    host, _, number = port.rpartition(":")
    try:
        socket.create_connection((host, int(number)), timeout=seconds).close()
    except OSError:
        return False
    return True
