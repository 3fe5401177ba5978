"""The page of a running study: it shows the ended runs, refreshes, and exposes no other file."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clue_ray.errors import RunsError, StudyError
from clue_ray.report.browse import Server
from clue_ray.runs import RUN_COLUMNS
from tests.report.planted import planted

RUNS = 3


def end_run(directory: Path, number: int) -> str:
    """Leave the record of one planned run."""
    row = json.loads(planted(RUNS).iloc[number].to_json())
    folder = directory / "runs" / row["run_id"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(row))
    return str(row["run_id"])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A study of three planned runs, one of which has ended."""
    reached = {"status", "loss", "recall_at_10", "mrr", "wall_seconds", "error"}
    rows = json.loads(planted(RUNS).head(RUNS).to_json(orient="records"))
    known = [
        {column: row[column] for column in RUN_COLUMNS if column not in reached} for row in rows
    ]
    (tmp_path / "plan.json").write_text(
        json.dumps({"runs": [{**run, "expected_seconds": 30.0} for run in known]})
    )
    end_run(tmp_path, 0)
    return tmp_path


@pytest.fixture
def server(directory: Path) -> Iterator[Server]:
    """A server on a free port."""
    with Server(directory, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(
    server: Server, path: str, method: str = "GET", host: str = "localhost:1"
) -> tuple[int, str]:
    """Send one request as it stands, dots and all."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_page_holds_what_has_ended_and_follows_the_rest(server: Server, directory: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    status, page = ask(server, "/")
    assert status == 200
    assert "1 of 3 runs have ended" in page
    assert "3 runs: 1 done, 2 missing." in page
    assert page.count(">not finished yet</td>") == 2
    assert {
        path: path.stat().st_mtime_ns for path in directory.rglob("*")
    } == before  # nothing is written
    old = json.loads(ask(server, "/state")[1])
    assert f'data-state="{old["state"]}"' in page
    run_id = end_run(directory, 1)
    new = json.loads(ask(server, "/state")[1])
    assert new["state"] != old["state"]
    assert new["words"].startswith("2 of 3")
    assert "3 runs: 2 done, 1 missing." in (page := ask(server, "/")[1])
    assert f">{run_id}</td>" in page


@pytest.mark.parametrize(
    "path",
    [
        "/plan.json",
        "/../plan.json",
        "/%2e%2e/plan.json",
        "//etc/passwd",
        "/report/index.html",
        "plan.json",
    ],
)
def test_no_path_leads_to_a_file(server: Server, path: str) -> None:
    assert ask(server, path)[0] == 404


def test_only_this_machine_may_read_and_writing_is_refused(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/state", host="evil.example:80")[0] == 403
    assert ask(server, "/", method="POST")[0] == 501
    assert ask(server, "/", method="DELETE")[0] == 501


def test_a_failed_page_is_reported_and_tried_again(
    server: Server, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no such law")

    with monkeypatch.context() as during:
        during.setattr("clue_ray.report.browse.compose", broken)
        for _ in range(2):
            status, words = ask(server, "/")
            assert status == 500
            assert words.startswith(
                "The page could not be rendered (ValueError: no such law); the next"
            )
    assert ask(server, "/")[0] == 200
    before = ask(server, "/state")[1]
    (directory / "baselines.json").write_text("{}")
    assert json.loads(ask(server, "/state")[1])["state"] != json.loads(before)["state"]


def test_an_address_that_is_none_is_refused(server: Server) -> None:
    assert ask(server, "http://[")[0] == 400


def test_head_gives_no_body(server: Server) -> None:
    assert ask(server, "/state", method="HEAD") == (200, "")


def test_what_cannot_be_served_is_refused_in_one_sentence(
    server: Server, directory: Path, tmp_path: Path
) -> None:
    with pytest.raises(StudyError, match=r"Port \d+ cannot be used .*choose another --port"):
        Server(directory, server.server_port)
    for port in (-1, 65536):
        with pytest.raises(
            StudyError, match=f"--port is {port}; give a number from 1 to 65535, or 0"
        ):
            Server(directory, port)
    with pytest.raises(RunsError, match="is not a directory"):
        Server(tmp_path / "none", 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunsError, match="No runs table"):
        Server(tmp_path / "empty", 0)
