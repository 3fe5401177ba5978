"""Checks of a Ray cluster's job server before anything is sent to it.

The server must answer as a Ray dashboard, accept our token, and run our versions of Ray and Python.
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
CLIENT_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    AuthenticationError,
    aiohttp.ClientError,
    requests.exceptions.RequestException,
)
"""What Ray's job client raises if its server is gone, refuses, or gives an unexpected answer."""


def first_line(error: Exception) -> str:
    """Return the first line of an error message, or the name of the error's class."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def asking(address: str) -> Iterator[None]:
    """Convert what Ray's job client raises in the block to one sentence.

    Raises:
        ClusterError: the server is gone, refused, or gave an unexpected answer.
    """
    try:
        yield
    except CLIENT_ERRORS as error:
        raise ClusterError(
            f"The job server at {address} did not answer as expected ({first_line(error)}); look "
            "at its logs, then run the same command again."
        ) from None


def check_server(address: str) -> str:
    """Return the URL of a cluster's job server after checking it.

    Raises:
        ClusterError: the server does not answer, refuses our token, or runs another Ray or Python.
    """
    url = _dashboard_url(address)
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as Ray's own commands do
    headers = get_auth_headers_if_auth_enabled({})
    ray_version = _get_json(url, "/api/version", headers).get("ray_version")
    if not ray_version:
        raise _no_dashboard(f"{url}/api/version")
    metadata = _get_json(url, "/api/v0/cluster_metadata", headers).get("data") or {}
    _check_versions(str(ray_version), str(metadata.get("pythonVersion", "")), url)
    return url


def _dashboard_url(address: str) -> str:
    """Return an address as the URL of a dashboard; raise ClusterError if it cannot be one."""
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    wrong = ClusterError(
        f"--address is {address!r}; give the URL of the dashboard, such as http://head:8265, not "
        "an address of Ray itself or of Ray Client."
    )
    try:
        parts = urlparse(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        raise wrong from None
    if parts.password:
        raise ClusterError(
            "--address holds a password; give a token through RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH instead."
        )
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_valid:
        raise wrong
    return url


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A handler that follows no redirect, because urllib would send the token to the new host."""

    def redirect_request(self, *_: Any) -> None:
        """Return no request, so that the redirect counts as an HTTP error."""


def _get_json(url: str, path: str, headers: dict[str, str]) -> dict[str, Any]:
    """Return a JSON answer of the job server, or an empty one if it is not a mapping."""
    request = urllib.request.Request(url + path, headers=headers)
    opener = urllib.request.build_opener(NoRedirect)
    try:
        with opener.open(request, timeout=ANSWER_SECONDS) as answer:
            document = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise _token_error(url, error.code, token_sent=bool(headers)) from None
        raise _no_dashboard(f"{url}{path}", f"status {error.code}") from None
    except ValueError:
        raise _no_dashboard(f"{url}{path}", "no JSON") from None
    except OSError as error:
        reason = getattr(error, "reason", error) or type(error).__name__
        raise ClusterError(
            f"No Ray dashboard can be reached: tried {url}{path} ({reason}); give --address the "
            "URL of the dashboard, such as http://head:8265, and open a tunnel or port-forward if "
            "it listens only on its own machine."
        ) from None
    except Exception as error:  # http.client raises its own classes if the server speaks no HTTP
        raise _no_dashboard(f"{url}{path}", type(error).__name__) from None
    return document if isinstance(document, dict) else {}


def _no_dashboard(tried: str, reason: str = "unexpected answer") -> ClusterError:
    return ClusterError(
        f"The server at {tried} is not a Ray dashboard ({reason}); give --address the URL of the "
        "dashboard, port 8265 unless the cluster was started with another."
    )


def _token_error(url: str, status: int, token_sent: bool) -> ClusterError:
    """Build the error of a refused or missing token, without the token."""
    what = (
        "refuses the token that was sent" if token_sent else "asks for a token, and none was found"
    )
    return ClusterError(f"{url} {what} (status {status}); {TOKEN_REMEDY}.")


def _check_versions(ray_version: str, python_version: str, url: str) -> None:
    """Raise ClusterError unless a cluster runs our Ray and our minor version of Python.

    Both ends exchange pickles, which other versions may not read.
    """
    ours = platform.python_version()
    same_python = python_version.split(".")[:2] == ours.split(".")[:2] or not python_version
    if ray_version != ray.__version__ or not same_python:
        raise ClusterError(
            f"{url} runs Ray {ray_version} on Python {python_version or 'unknown'}, this machine "
            f"Ray {ray.__version__} on Python {ours}; install the cluster's versions here, or "
            "these versions there."
        )
