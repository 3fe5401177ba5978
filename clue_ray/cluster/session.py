"""Ray sessions: join a cluster or start Ray on this machine, with little output and finite waits.

A session also controls where Ray Data runs (the data pool, if the cluster has one) and which
loggers Ray Tune adds.

A data pool is made of nodes labelled `pool: data`. Where a cluster has one, Ray Data reads logs and
tokenizes texts on these nodes only, so that it does not take cores from training. The shuffle that
groups events by user ignores labels in Ray 2.60: its tasks run wherever a core is free.
"""

import logging
import os
import platform
import site
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import ray
from ray.data import DataContext
from ray.exceptions import AuthenticationError
from ray.job_config import JobConfig

from clue_ray.cluster.machine import check_temporary_folder, explain_start_error, usable_cpus
from clue_ray.cluster.placement import IN_DATA_POOL, Node
from clue_ray.errors import TOKEN_REMEDY, ClusterError

TRIAL_SLOTS = 64
"""Trial slots of a session on this machine; each driver of a run of several workers holds one."""
DATA_POOL = {"pool": "data"}
"""Label of nodes for Ray Data: `ray start --labels=pool=data`, or the files in `cluster/`."""
CONNECT_SECONDS = 5.0
HEALTH_SECONDS = 20.0
START_ATTEMPTS = 3
MAX_REASON_LENGTH = 300
"""Characters of Ray's own error message that are quoted in ours."""
OOM_RETRIES = 5
"""Tries of a task that Ray ended for lack of memory; by default, Ray tries without end."""
IDLE_WORKERS = 8
"""Idle workers that a session on this machine keeps. Ray keeps one per CPU, but a shuffle has
workers of its own kinds, which would push out the others and take seconds to start again."""
STATE_SECONDS = "60"
"""Seconds between two states of an experiment; Ray Tune's own is 10."""
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
NO_LOGGERS = "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"


@contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Join the Ray cluster at `address`, or start Ray on this machine, within the block.

    A session that is already open is used as it is.

    Args:
        address: HOST:PORT of a head node, or `auto` for the cluster that this machine belongs to.

    Raises:
        ClusterError: the cluster cannot be joined, or Ray does not start.
    """
    quieten_ray_data()
    # Tune's newer output ignores `verbose`.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(OOM_RETRIES))
    # Each state of an experiment that cannot be written ends the command, and resuming needs none.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", STATE_SECONDS)
    if ray.is_initialized():
        yield
        return
    # Each report of a run waits for the next health check, so the default of 2 s is too long.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2" if address is None else "1")
    if address is None:
        _start_local()
    else:
        if address != "auto":
            _check_reachable(address)
        join(address)
    try:
        yield
    finally:
        ray.shutdown()


def _start_local() -> None:
    """Start Ray on this machine; retry, because a busy machine may exceed Ray's start timeout."""
    check_temporary_folder()
    os.environ.setdefault("RAY_num_workers_soft_limit", str(max(IDLE_WORKERS, usable_cpus())))
    start = {"num_cpus": usable_cpus(), "resources": {"trial_slot": TRIAL_SLOTS}}
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init("local", include_dashboard=False, job_config=_own_paths(), **start, **QUIET)
            return
        except Exception as error:  # Ray raises no specific class for this
            ray.shutdown()
            if cause := explain_start_error(error):
                raise ClusterError(f"Ray cannot start on this machine ({cause}).") from None
            if attempt == START_ATTEMPTS:
                raise ClusterError(
                    f"Ray did not start on this machine in {attempt} attempts "
                    f"({str(error).splitlines()[0]}); it may be too busy or short of memory, so "
                    "try again when it is less busy."
                ) from None


class OwnPaths(JobConfig):
    """Job configuration that keeps the current folder off the import path of workers.

    Ray adds it, so that a file `numpy.py` in it, or an old copy of this package, would be imported
    instead of the installed one. Ray asks this method whether to do so.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True


def _own_paths() -> JobConfig:
    """Return the job configuration of a session: workers import what this process imports."""
    script = str(Path(sys.argv[0]).resolve().parent) if sys.argv[0] else ""
    package = str(Path(__file__).resolve().parents[2])
    paths = [path for path in (script, package) if path in map(os.path.abspath, sys.path)]
    return OwnPaths(_py_driver_sys_path=[path for path in paths if path not in _installed()])


def _installed() -> set[str]:
    """Return the folders of installed packages, which are on the path of workers anyway."""
    return {os.path.abspath(path) for path in site.getsitepackages()}


def join(address: str) -> None:
    """Join the Ray cluster at an address.

    Raises:
        ClusterError: the cluster refuses the token, or cannot be joined.
    """
    try:
        if "://" in address:  # a Ray Client has its own way to ship code
            ray.init(address=address, **QUIET)
        else:
            ray.init(address=address, job_config=_own_paths(), **QUIET)
    except AuthenticationError:
        raise _token_error(address) from None
    except (RuntimeError, ValueError, OSError) as error:
        ray.shutdown()
        if address == "auto" and isinstance(error, ConnectionError):
            raise ClusterError(
                "This machine is not a node of a running Ray cluster, as --address auto requires; "
                "give HOST:PORT of a head node, or leave --address out."
            ) from None
        reason = " ".join(str(error).split())[:MAX_REASON_LENGTH].rstrip(".")
        raise ClusterError(
            f"The Ray cluster at {address} cannot be joined ({reason}); it must run the same Ray "
            f"and Python as this machine, Ray {ray.__version__} and Python "
            f"{platform.python_version()}."
        ) from None


def _check_reachable(address: str) -> None:
    """Raise ClusterError if no Ray answers at an address; ray.init would wait for minutes."""
    try:
        place = urlparse(address if "://" in address else f"ray-gcs://{address}")
        if not place.hostname or not place.port:
            raise ValueError("no host and port")
        socket.create_connection((place.hostname, place.port), timeout=CONNECT_SECONDS).close()
        if "://" not in address:  # there is no health check for a Ray Client address
            ray_command = [sys.executable, "-m", "ray.scripts.scripts"]
            health_check = [*ray_command, "health-check", "--address", address]
            subprocess.run(health_check, check=True, timeout=HEALTH_SECONDS, capture_output=True)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        if b"AuthenticationError" in (getattr(error, "stderr", None) or b""):
            raise _token_error(address) from None
        reason = "no Ray answers there" if isinstance(error, subprocess.SubprocessError) else error
        raise ClusterError(
            f"Ray cannot be reached at {address!r} ({reason}); give HOST:PORT of a running head "
            "node, or leave --address out."
        ) from None


def _token_error(address: str) -> ClusterError:
    return ClusterError(
        f"The Ray cluster at {address} asks for a token, and ours is missing or wrong; "
        f"{TOKEN_REMEDY}."
    )


def cluster_nodes() -> list[Node]:
    """List the resources of each living node of the connected cluster."""
    return [
        {**node["Resources"], IN_DATA_POOL: float(_in_data_pool(node))}
        for node in ray.nodes()
        if node["Alive"]
    ]


def _in_data_pool(node: dict[str, Any]) -> bool:
    """Return whether one of Ray's nodes has the label of the data pool."""
    return DATA_POOL.items() <= node["Labels"].items()


@contextmanager
def data_pool() -> Iterator[None]:
    """Restrict Ray Data to the cluster's data pool within the block, if the cluster has one."""
    options = DataContext.get_current().execution_options
    before = options.label_selector
    if any(node["Alive"] and _in_data_pool(node) for node in ray.nodes()):
        options.label_selector = {**(before or {}), **DATA_POOL}
    try:
        yield
    finally:
        options.label_selector = before


@contextmanager
def without_tune_loggers() -> Iterator[None]:
    """Keep Tune from adding its CSV, JSON and TensorBoard loggers within the block."""
    before = os.environ.get(NO_LOGGERS)
    os.environ[NO_LOGGERS] = "1"
    try:
        yield
    finally:  # other experiments of the calling process keep their loggers
        os.environ.pop(NO_LOGGERS)
        os.environ.update({NO_LOGGERS: before} if before is not None else {})


def quieten_ray_data() -> None:
    """Show only the warnings of Ray Data, and its progress bars on a terminal.

    Its errors are hidden because they are also raised, and reported in one sentence.
    """
    logger = logging.getLogger("ray.data")
    logger.setLevel(logging.WARNING)
    for handler in logger.handlers:
        handler.addFilter(_is_below_error)


def _is_below_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR
