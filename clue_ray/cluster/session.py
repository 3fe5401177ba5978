"""A Ray session for a study: join a cluster, or start one on this machine; quietly, and never for
ever.
"""

import logging
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

import ray
from ray.data import DataContext
from ray.exceptions import AuthenticationError

from clue_ray.cluster.placement import Node
from clue_ray.errors import TOKEN_REMEDY, ClusterError

TRIAL_SLOTS = 64
CONNECT_SECONDS = 5.0
START_ATTEMPTS = 3
HEALTH_SECONDS = 20.0
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
MOST_LETTERS = 300
"""Of what Ray says, in a sentence of ours."""
NO_LOGGERS = "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"


@contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Join the Ray cluster at `address`, or start one on this machine; a session already open is
    used as it is.

    Args:
        address: HOST:PORT; or `auto` on a node of a cluster, for that one.
    """
    quieten_ray_data()
    os.environ.setdefault(
        "RAY_AIR_NEW_OUTPUT", "0"
    )  # Tune's newer output prints whatever verbose says
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2" if address is None else "1")
    if address is None:
        _start_here()
    else:
        if address != "auto":
            _check_reachable(address)
        join(address)
    try:
        yield
    finally:
        ray.shutdown()


def _start_here() -> None:
    """Start Ray on this machine; its own wait for its processes is fixed, and a busy machine may
    take longer.
    """
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(
                "local", include_dashboard=False, resources={"trial_slot": TRIAL_SLOTS}, **QUIET
            )
            return
        except Exception as error:  # Ray raises no kind of its own for it
            ray.shutdown()
            if attempt == START_ATTEMPTS:
                raise ClusterError(
                    f"Ray did not start on this machine in {attempt} attempts "
                    f"({str(error).splitlines()[0]}); it may "
                    "be too busy or short of memory, so try again when it is quieter."
                ) from None


def join(address: str) -> None:
    """Join a cluster; say in one sentence why it does not let us in."""
    try:
        ray.init(address=address, **QUIET)
    except AuthenticationError:
        raise _refused_token(address) from None
    except (RuntimeError, ValueError, OSError) as error:
        ray.shutdown()
        if address == "auto" and isinstance(error, ConnectionError):
            raise ClusterError(
                "This machine is no node of a running Ray cluster, as --address auto asks; give "
                "HOST:PORT of a head "
                "node, or leave --address out."
            ) from None
        reason = " ".join(str(error).split())[:MOST_LETTERS].rstrip(".")
        raise ClusterError(
            f"The Ray cluster at {address} cannot be joined ({reason}); it must run the Ray and "
            f"Python that run here, "
            f"Ray {ray.__version__} and Python {platform.python_version()}."
        ) from None


def _refused_token(address: str) -> ClusterError:
    """Say that a cluster takes no one without its token."""
    return ClusterError(
        f"The Ray cluster at {address} asks for a token, and ours is missing or wrong; "
        f"{TOKEN_REMEDY}."
    )


def quieten_ray_data() -> None:
    """Leave of Ray Data's messages its warnings; what fails is raised too, and told in one
    sentence.
    """
    logger = logging.getLogger("ray.data")
    logger.setLevel(logging.WARNING)  # its bars on a terminal stay
    for handler in logger.handlers:
        handler.addFilter(_is_no_error)


def _is_no_error(record: logging.LogRecord) -> bool:
    """Tell whether a log record is at most a warning."""
    return record.levelno < logging.ERROR


def _check_reachable(address: str) -> None:
    """Refuse an address where no Ray answers, in seconds rather than Ray's minutes."""
    try:
        place = urlparse(address if "://" in address else f"ray-gcs://{address}")
        if not place.hostname or not place.port:
            raise ValueError("no host and port")
        socket.create_connection((place.hostname, place.port), timeout=CONNECT_SECONDS).close()
        if "://" not in address:  # Ray's own health check; a Ray Client address has none
            check = [
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "health-check",
                "--address",
                address,
            ]
            subprocess.run(check, check=True, timeout=HEALTH_SECONDS, capture_output=True)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        if b"AuthenticationError" in (getattr(error, "stderr", None) or b""):
            raise _refused_token(address) from None
        reason = "no Ray answers there" if isinstance(error, subprocess.SubprocessError) else error
        raise ClusterError(
            f"Ray cannot be reached at {address!r} ({reason}); give HOST:PORT of a running head "
            f"node, "
            "or leave --address out."
        ) from None


@contextmanager
def without_tune_loggers() -> Iterator[None]:
    """Keep Tune from adding loggers of its own to ours while it runs; the caller's other
    experiments keep theirs.
    """
    before = os.environ.get(NO_LOGGERS)
    os.environ[NO_LOGGERS] = "1"
    try:
        yield
    finally:
        os.environ.pop(NO_LOGGERS)
        os.environ.update({NO_LOGGERS: before} if before is not None else {})


def cluster_nodes() -> list[Node]:
    """List what each living node of the connected cluster offers."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


DATA_POOL = {"pool": "data"}
"""Label of nodes for Ray Data, as `ray start --labels=pool=data` and the files in `cluster/` set
it."""


@contextmanager
def data_pool() -> Iterator[None]:
    """Keep Ray Data to the data pool of the connected cluster; without one, it runs on any node."""
    options = DataContext.get_current().execution_options
    before = options.label_selector
    if any(node["Alive"] and DATA_POOL.items() <= node["Labels"].items() for node in ray.nodes()):
        options.label_selector = {**(before or {}), **DATA_POOL}
    try:
        yield
    finally:
        options.label_selector = before
