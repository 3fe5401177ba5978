"""Serve the page of a study on this machine; it refreshes while the study runs.

The server has two addresses, `/` and `/state`. No part of a request becomes a file path, so nothing
but the page can be read, and nothing can be written.
"""

import json
import logging
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clue_ray.errors import RunsError, StudyError
from clue_ray.report.page import compose, render
from clue_ray.report.read import read_directory
from clue_ray.runs import Runs, read_current_runs
from clue_ray.spec.columns import named
from clue_ray.storage.links import check_links

LOOPBACK = "127.0.0.1"
HIGHEST_PORT = 65535
PATIENCE = 10
"""Pause between pages, in multiples of the rendering time: training needs the cores."""

FILES = (
    "plan.json",
    "runs.parquet",
    "curves.parquet",
    "study.yaml",
    "baselines.json",
    "corpus.json",
)
"""The files behind a page, in addition to the records of the runs and the sealed forecasts."""

logger = logging.getLogger(__name__)


class LivePage:
    """The current page of a study, rendered again when more runs have ended.

    Raises:
        RunsError: the directory has neither a plan nor a runs table.
        StudyError: a link in it leads out of it.
    """

    def __init__(self, directory: Path):
        check_links(directory)  # also before each page: `read_directory`
        self.directory = directory
        self.lock = threading.Lock()
        self.page, self.seen = b"", ""
        self.ready = 0.0
        read_current_runs(directory, skip_damaged=True)

    def html(self) -> bytes:
        """Return the page, rendered again if a file has changed."""
        with self.lock:  # matplotlib's style is global, so only one thread may draw
            found = _state_of(self.directory)
            if found != self.seen:
                self._make(found)
            return self.page

    def state(self) -> bytes:
        """Return as JSON the newest state, whether a page may be requested, and the progress."""
        found = {"state": _state_of(self.directory), "ready": time.monotonic() >= self.ready}
        runs = read_current_runs(self.directory, skip_damaged=True)
        return json.dumps({**found, "words": _progress(runs)}).encode()

    def _make(self, state: str) -> None:
        started = time.monotonic()
        try:
            files = read_directory(self.directory, running=True)
            live = {"state": state, "words": _progress(Runs(files.table))}
            with named(files.names):
                content, _ = compose(files)
                self.page = render("index.html.j2", content=content, live=live).encode()
            # Set last, so that a page that failed is tried again at the next request.
            self.seen = state
        finally:
            self.ready = time.monotonic() + PATIENCE * (time.monotonic() - started)


def _state_of(directory: Path) -> str:
    """Return an identifier of the files behind a page: their number and latest change."""
    kept = (directory / name for name in FILES)
    written = [*directory.glob("runs/*/record.json"), *directory.glob("forecasts/*.json")]
    files = [file for file in (*kept, *written) if file.exists()]
    return f"{len(files)}-{max((file.stat().st_mtime_ns for file in files), default=0)}"


def _progress(runs: Runs) -> str:
    """State how many runs have ended."""
    ended = int((runs.table["status"] != "missing").sum()) if "status" in runs.table else len(runs)
    if ended == len(runs):
        return f"All {ended} runs have ended."
    return f"{ended} of {len(runs)} runs have ended; this page refreshes as others end."


class Handler(BaseHTTPRequestHandler):
    """A handler of GET and HEAD for the page and its state, under the local host names only."""

    server: "Server"

    def do_GET(self) -> None:
        """Answer with the page or its state."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer like GET, without the body."""
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in (LOOPBACK, "localhost"):  # DNS rebinding: a foreign name that resolves here
            return self.send_error(HTTPStatus.FORBIDDEN)
        try:
            path = urlsplit(self.path).path
        except ValueError:  # for example http://[, an IPv6 address without its end
            return self.send_error(HTTPStatus.BAD_REQUEST)
        if path not in ("/", "/state"):
            return self.send_error(HTTPStatus.NOT_FOUND)
        self._send(*self._content(path), body=body)

    def _send(self, status: HTTPStatus, contents: bytes, media_type: str, *, body: bool) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": media_type,
            "Content-Length": str(len(contents)),
            "Cache-Control": "no-store",
        }
        for name, value in {**headers, "X-Content-Type-Options": "nosniff"}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(contents)

    def _content(self, path: str) -> tuple[HTTPStatus, bytes, str]:
        try:
            if path == "/":
                return HTTPStatus.OK, self.server.live.html(), "text/html; charset=utf-8"
            return HTTPStatus.OK, self.server.live.state(), "application/json"
        except Exception as error:  # a half-written file must not stop the server
            logger.exception("%s could not be rendered", path)
            reason = f"{type(error).__name__}: {error}"
            sentence = f"The page could not be rendered ({reason}); the next request tries again.\n"
            return HTTPStatus.INTERNAL_SERVER_ERROR, sentence.encode(), "text/plain; charset=utf-8"

    def log_message(self, format: str, *args: Any) -> None:
        """Log a request at debug level."""
        logger.debug(format, *args)


class Server(ThreadingHTTPServer):
    """A server of one live page on this machine.

    Raises:
        RunsError: the directory does not exist or has neither a plan nor a runs table.
        StudyError: the port is in use or invalid, or a link in the directory leads out of it.
    """

    daemon_threads = True

    def __init__(self, directory: Path, port: int):
        if not directory.is_dir():
            raise RunsError(
                f"{directory} is not a directory; give a study directory, <output>/<name>."
            )
        if not 0 <= port <= HIGHEST_PORT:
            raise StudyError(
                f"--port is {port}; give a number from 1 to {HIGHEST_PORT}, or 0 for a free port."
            )
        self.live = LivePage(directory)
        try:
            super().__init__((LOOPBACK, port), Handler)
        except OSError as error:
            raise StudyError(
                f"Port {port} cannot be used ({error}); choose another --port."
            ) from None

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{LOOPBACK}:{self.server_port}/"
