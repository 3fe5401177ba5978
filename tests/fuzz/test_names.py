"""Names and errors by strangers, where they end: on terminals, in pages, in addresses and paths."""

import json
import socket
import threading
from contextlib import suppress

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from clue_ray.cli.main import app
from clue_ray.cli.options import PlainConsole
from clue_ray.errors import CONTROLS
from clue_ray.report.browse import Server
from clue_ray.report.page import write_report
from clue_ray.storage.documents import is_file_name
from tests.fuzz.hostile import EXAMPLES, VALUES, attack, guarded, reads_or_refuses
from tests.fuzz.test_documents import RECORD, STUDY, as_json, study_directory, write

HOSTILE = [value for value in VALUES if isinstance(value, str)]
names = st.sampled_from(HOSTILE) | st.text(max_size=40)


@EXAMPLES
def test_a_terminal_is_not_steered(tmp_path, examples, capsys):
    @attack(examples)
    @given(names)
    @example("\x1b]0;owned\x07")
    @example("a\rb")
    @example("\x9b31m")
    def shown(name):
        table = Table(title=Text(name))
        table.add_column(Text(name))
        table.add_row(Text(name))
        console = PlainConsole(width=80, markup=False)
        console.print(table)
        console.print(name, highlight=False, markup=False)
        printed = capsys.readouterr().out
        assert not CONTROLS.search(printed)

    shown()


def test_results_of_a_hostile_study(tmp_path):
    study = study_directory(tmp_path / "in")
    error = "\x1b[2J\x1b]0;owned\x07 [red]x"
    failed = {**RECORD, "status": "failed", "error": error, "loss": None}
    write(study / "runs" / RECORD["run_id"] / "record.json", as_json(failed))
    result = CliRunner().invoke(app, ["results", str(study)])
    assert result.exit_code == 0
    assert "\\x1b[2J" in result.output
    assert not CONTROLS.search(result.output)


@EXAMPLES
def test_file_names(examples):
    @attack(examples)
    @given(names)
    def named(name):
        if is_file_name(name):
            assert "/" not in name
            assert "\x00" not in name
            assert not name.startswith(".")

    named()
    assert is_file_name("0123abcd4567")
    assert not any(map(is_file_name, ["..", ".", "a/b", "../a", "", None, 3, "a" * 300, "a\n"]))


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "{{ 7 * 7 }}", "$\\frac{", "\x1b[2J"]
)
def test_pages_show_names_and_run_nothing(tmp_path, name):
    study = study_directory(tmp_path / "in")
    rows = [
        {**RECORD, "run_id": name, "study": name, "loss": 2 + 1 / flops, "train_flops": 1e9 * flops}
        for flops in (1, 2, 4, 8)
    ]
    pd.DataFrame(rows).to_parquet(study / "runs.parquet")
    (study / "study.yaml").write_text(json.dumps({**STUDY, "question": name}))
    (study / "plan.json").unlink()
    with guarded(tmp_path / "in"):
        write_report(study)
    page = (study / "report" / "index.html").read_text()
    assert "<script>alert(1)" not in page
    if "7 *" in name:
        assert "{{ 7 * 7 }}" in page


@pytest.fixture
def address(tmp_path):
    """A server of a study's page."""
    server = Server(study_directory(tmp_path / "in"), 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address
    server.shutdown()
    server.server_close()


METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "X"])
HOSTS = st.sampled_from(
    ["127.0.0.1:1", "localhost:1", "127.0.0.1", "evil.example:1", "[::1]:1", ""]
)
PLACES = st.sampled_from(["/", "/state", "/state/", "//", "/x", "", "http://127.0.0.1:1/state"])


@EXAMPLES
def test_addresses_of_the_page_server(tmp_path, address, examples):
    statuses = set()

    @attack(examples)
    @given(METHODS, HOSTS, PLACES, names | st.sampled_from(["", "?x", "#x", "?", "%00"]))
    @example("GET", "127.0.0.1:1", "/", "")
    @example("HEAD", "localhost:1", "/state", "?x")
    @example("GET", "evil.example:1", "/", "")
    @example("GET", "127.0.0.1:1", "/", "../../secret.txt")
    @example("GET", "127.0.0.1:1", "//[", "")
    @example("GET", "127.0.0.1:1", "http://[", "")
    def asked(method, host, place, rest):
        status = reads_or_refuses(
            tmp_path / "in", lambda: request(address, method, host, place + rest)
        )
        if status == b"200":
            assert method in ("GET", "HEAD")
            assert host in ("127.0.0.1:1", "localhost:1")
        statuses.add(status)

    asked()
    assert {b"200", b"403", b"404"} <= statuses  # or the attack reached nothing


def request(address, method, host, path):
    """Send a request as it stands, past the checks of Python's client; return its status."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    answer = b""
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(head.encode("utf-8", "surrogatepass"))
        with suppress(OSError):
            while part := connection.recv(65536):
                answer += part
    assert b"nobody reads this" not in answer
    line = answer.split(b"\r\n")[0].split()
    return line[1] if len(line) > 1 else None
