"""Looks at a Ray cluster's job server before anything is sent there: does it answer, let us in, run
what we run?
"""

import json
import platform
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

import aiohttp
import ray
import requests
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray.exceptions import AuthenticationError

from clue_ray.errors import TOKEN_REMEDY, ClusterError

ANSWER_SECONDS = 10.0
CODE_TROUBLES = (
    OSError, RuntimeError, ValueError, AuthenticationError, aiohttp.ClientError, requests.exceptions.RequestException
)  # fmt: skip
"""What Ray's client raises when its server is gone, refuses or answers something else."""


def first_line(error: Exception) -> str:
    """Return the first words of what went wrong, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def asking(address: str) -> Iterator[None]:
    """Make what Ray's client raises while a job server is asked one sentence.

    Raises:
        ClusterError: the server is gone, refused, or answered something else.
    """
    try:
        yield
    except CODE_TROUBLES as error:
        raise ClusterError(
            f"The job server at {address} did not answer as asked ({first_line(error)}); look at "
            f"its logs, then "
            "give the same command again."
        ) from None


def check_server(address: str) -> str:
    """Return the URL of a cluster's job server, once it has answered, accepted our token and proved
    to run what we run.

    Raises:
        ClusterError: it has not.
    """
    url = _dashboard_url(address)
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as Ray's own commands do
    headers = get_auth_headers_if_auth_enabled({})
    found = _ask(url, "/api/version", headers).get("ray_version")
    if not found:
        raise _no_dashboard(f"{url}/api/version")
    metadata = _ask(url, "/api/v0/cluster_metadata", headers).get("data") or {}
    _check_versions(str(found), str(metadata.get("pythonVersion", "")), url)
    return url


def _dashboard_url(address: str) -> str:
    """Make an address a URL; refuse what is none of a dashboard."""
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    wrong = ClusterError(
        f"--address is {address!r}; give the dashboard's, such as http://head:8265, not Ray's own "
        f"or a client's."
    )
    try:
        parts = urlparse(url)
        found = (
            parts.scheme in {"http", "https"}
            and parts.hostname
            and (parts.port is None or parts.port)
        )
    except ValueError:
        raise wrong from None
    if parts.password:
        raise ClusterError(
            "--address holds a password; give a token by RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
            "instead."
        )
    if not found:
        raise wrong
    return url


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: urllib would hand the token to whatever host it names."""

    def redirect_request(self, *_: Any) -> None:
        """Give no request to follow; the answer then counts as an error of its status."""


def _ask(url: str, path: str, headers: dict[str, str]) -> dict[str, Any]:
    """Read a JSON answer of the job server."""
    request = urllib.request.Request(url + path, headers=headers)
    try:
        with urllib.request.build_opener(NoRedirect).open(
            request, timeout=ANSWER_SECONDS
        ) as answer:
            document = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise ClusterError(_explain_token(url, error.code, bool(headers))) from None
        raise _no_dashboard(f"{url}{path}", f"status {error.code}") from None
    except ValueError:
        raise _no_dashboard(f"{url}{path}", "no JSON") from None
    except OSError as error:
        reason = getattr(error, "reason", error) or type(error).__name__
        raise ClusterError(
            f"No Ray dashboard can be reached: tried {url}{path} ({reason}); give --address the "
            f"dashboard's URL, such "
            "as http://head:8265, and open a tunnel or port-forward where it listens on its own "
            "machine only."
        ) from None
    except (
        Exception
    ) as error:  # http.client raises its own kinds where something else than HTTP answers
        raise _no_dashboard(f"{url}{path}", f"{type(error).__name__}") from None
    return document if isinstance(document, dict) else {}


def _no_dashboard(tried: str, reason: str = "another answer") -> ClusterError:
    """Say that something answers, but no job server."""
    return ClusterError(
        f"What answers at {tried} is no Ray dashboard ({reason}); give --address the dashboard's "
        f"URL, port 8265 unless "
        "the cluster was started with another."
    )


def _explain_token(url: str, status: int, sent: bool) -> str:
    """Say why a cluster did not let us in, without the token."""
    what = "refuses the token that was sent" if sent else "asks for a token, and none was found"
    return f"{url} {what} (status {status}); {TOKEN_REMEDY}."


def _check_versions(ray_version: str, python_version: str, url: str) -> None:
    """Refuse a cluster with another Ray, or another minor version of Python, than ours: pickles
    travel between them.
    """
    ours = platform.python_version()
    same_python = python_version.split(".")[:2] == ours.split(".")[:2] or not python_version
    if ray_version != ray.__version__ or not same_python:
        raise ClusterError(
            f"{url} runs Ray {ray_version} on Python {python_version or 'unknown'}, this machine "
            f"Ray {ray.__version__} "
            f"on Python {ours}; install the cluster's versions here, or ours there."
        )
