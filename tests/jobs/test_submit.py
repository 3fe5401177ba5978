"""Studies as jobs: checks before anything is uploaded, and a real submission to a job server."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pandas as pd
import pyarrow.fs
import pytest
import ray
import typer
import yaml
from ray.job_submission import JobStatus
from typer.testing import CliRunner

from clue_ray.cli.main import app
from clue_ray.errors import ClusterError, SpecError, StudyError
from clue_ray.jobs import shipping, submit
from clue_ray.jobs.server import check_server
from clue_ray.jobs.shipping import check_package, check_portable, code_to_ship, copy_study
from clue_ray.jobs.submit import match_attempt, submit_study
from clue_ray.runs import read_runs
from clue_ray.spec.specs import read_study
from clue_ray.study.run import run_study
from clue_ray.transfer.tasks.spec import read_task
from tests.nodes import Nodes

CLOCK = ["wall_seconds", "tokens_per_second", "started_at"]
STORAGE = "s3://bucket/studies"
PYTHON = platform.python_version()


@pytest.fixture
def server():
    """A server that returns prepared answers and records its requests."""
    answers, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            status, body, *headers = answers.get(self.path, (404, "not here"))
            self.send_response(status)
            for name, value in (headers or [{}])[0].items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{http.server_port}", answers=answers, asked=asked
        )
        http.shutdown()


def versions(ray_version=ray.__version__, python=PYTHON):
    return {
        "/api/version": (200, {"ray_version": ray_version}),
        "/api/v0/cluster_metadata": (200, {"data": {"pythonVersion": python}}),
    }


def test_a_server_with_our_versions_is_accepted(server):
    server.answers.update(versions())
    assert check_server(f"{server.url}/") == server.url
    assert check_server(server.url.removeprefix("http://")) == server.url


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (
            versions(ray_version="2.9.3"),
            r"runs Ray 2\.9\.3 on Python \S+, this machine Ray 2\.\S+ on Python 3",
        ),
        (versions(python="3.9.1"), r"on Python 3\.9\.1, this machine"),
        ({}, r"The server at \S+/api/version is not a Ray dashboard \(status 404\)"),
        ({"/api/version": (200, "<html>")}, r"is not a Ray dashboard \(no JSON\)"),
        ({"/api/version": (200, {"name": "other"})}, "is not a Ray dashboard"),
        (
            {"/api/version": (401, "no")},
            r"asks for a token, and none was found \(status 401\); set RAY_AUTH_TOKEN",
        ),
    ],
)
def test_another_server_is_refused(server, answers, words):
    server.answers.update(answers)
    with pytest.raises(ClusterError, match=words) as error:
        check_server(server.url)
    assert "\n" not in str(error.value)


def test_a_wrong_token_is_reported_but_not_shown(server, monkeypatch):
    monkeypatch.setattr(
        "clue_ray.jobs.server.get_auth_headers_if_auth_enabled",
        lambda _: {"authorization": "Bearer me"},
    )
    server.answers["/api/version"] = (403, "Forbidden")
    with pytest.raises(
        ClusterError, match=r"refuses the token that was sent \(status 403\)"
    ) as error:
        check_server(server.url)
    assert server.asked == [("/api/version", "Bearer me")]
    assert "me;" not in str(error.value)


def test_a_token_follows_no_redirect(server, monkeypatch):
    monkeypatch.setattr(
        "clue_ray.jobs.server.get_auth_headers_if_auth_enabled",
        lambda _: {"Authorization": "Bearer hush"},
    )
    other = server.url.replace("127.0.0.1", "localhost")
    server.answers["/api/version"] = (302, "", {"Location": f"{other}/stolen"})
    with pytest.raises(ClusterError, match=r"is not a Ray dashboard \(status 302\)"):
        check_server(server.url)
    assert [path for path, _ in server.asked] == ["/api/version"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "http://127.0.0.1:1",
            r"can be reached: tried http://127\.0\.0\.1:1/api/version \(.*refused",
        ),
        ("ray://head:10001", "is 'ray://head:10001'; give the URL of the dashboard"),
        ("http://me:secret@head:8265", "holds a password"),
    ],
)
def test_an_address_without_a_dashboard_is_refused(address, words):
    with pytest.raises(ClusterError, match=words) as error:
        check_server(address)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "storage", "kind", "words"),
    [
        (
            {"corpus__events": "logs/*.parquet"},
            STORAGE,
            SpecError,
            r"corpus.events logs/\*.parquet is .* no cluster sees",
        ),
        ({"corpus": "corpora/mine"}, STORAGE, SpecError, "corpus is 'corpora/mine'"),
        (
            {"resources": {"checkpoints": "kept"}},
            STORAGE,
            SpecError,
            "resources.checkpoints is 'kept'",
        ),
        ({}, "results", SpecError, "--storage is 'results'"),
        ({}, "ftp://host/folder", SpecError, "--storage has the unknown scheme 'ftp'"),
        (
            {},
            "s3://me:hush@bucket/folder",
            StudyError,
            r"^s3://me:\.\.\.@bucket/folder holds a password",
        ),
        (
            {},
            "abfs://c@a/x?client_secret=hush",
            StudyError,
            r"^abfs://c@a/x holds a secret \(client_secret\); give it through",
        ),
    ],
)
def test_places_that_a_cluster_cannot_reach_are_refused(
    write_study, planted_log, changes, storage, kind, words
):
    with pytest.raises(kind, match=words) as error:
        check_portable(read_study(write_study(planted_log, **changes)), storage)
    assert "hush" not in str(error.value)


def test_code_is_shipped_and_data_is_not(tmp_path):
    package, version = code_to_ship(tmp_path)
    check_package(shipping.PACKAGE)
    code = "import importlib.metadata as m; print(m.version('clue-ray'))"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"
    shown = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert package.endswith("clue_ray")
    assert shown.stdout.strip() in version
    (tmp_path / "weights.bin").write_bytes(b"0" * (shipping.MAX_BYTES + 1))
    with pytest.raises(
        ClusterError,
        match=r"holds 10,000,\d+ bytes, more than 10,000,000; move data such as .*weights",
    ):
        check_package(tmp_path)


def test_tasks_are_shipped_with_their_study_and_their_logs_must_be_reachable(
    write_study, planted_log, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    task = {"name": "next", "events": "s3://bucket/log.parquet", "next_item": {"service": "b"}}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "next.yaml").write_text(yaml.safe_dump(task))
    file = write_study(planted_log, transfer=["tasks/next.yaml"])
    check_portable(read_study(file), STORAGE)
    (tmp_path / "there").mkdir()
    copy_study(file, read_study(file), tmp_path / "there")
    assert (tmp_path / "there" / "study.yaml").read_text() == file.read_text()
    assert read_task(tmp_path / "there" / "tasks" / "next.yaml").name == "next"
    (tmp_path / "tasks" / "next.yaml").write_text(yaml.safe_dump(task | {"events": "log.parquet"}))
    with pytest.raises(
        SpecError,
        match=r"task next: events log\.parquet is 'log.parquet', a path of this machine's",
    ):
        check_portable(read_study(file), STORAGE)
    with pytest.raises(SpecError, match=r"transfer names \.\./next.yaml, which cannot be shipped"):
        check_portable(read_study(write_study(planted_log, transfer=["../next.yaml"])), STORAGE)


class Jobs:
    """A fake of Ray's job client, with its jobs in a list."""

    def __init__(self):
        self.jobs = []

    def list_jobs(self):
        return self.jobs

    def submit_job(self, **job):
        self.sent = job
        self.jobs.append(
            SimpleNamespace(
                submission_id=job["submission_id"],
                metadata=job["metadata"],
                status=JobStatus.PENDING,
                message=None,
                entrypoint=job["entrypoint"],
                start_time=len(self.jobs),
                end_time=None,
                driver_exit_code=None,
            )
        )

    def get_job_info(self, submission_id):
        return next(job for job in self.jobs if job.submission_id == submission_id)


@pytest.fixture
def jobs(monkeypatch):
    found = Jobs()
    monkeypatch.setattr(submit, "open_client", lambda address: found)
    return found


def test_a_submission_has_a_stable_name_and_is_not_repeated(write_study, planted_log, jobs):
    file = write_study(planted_log)
    first = submit_study(file, "head", STORAGE)
    assert re.fullmatch(r"clue-tiny-[0-9a-f]{8}", first.submission_id)
    assert first.new
    again = submit_study(file, "head", STORAGE)
    assert again.submission_id == first.submission_id
    assert not again.new
    assert len(jobs.jobs) == 1
    for number, status in ((2, JobStatus.FAILED), (3, JobStatus.SUCCEEDED)):
        jobs.jobs[-1].status = status
        assert (
            submit_study(file, "head", STORAGE).submission_id == f"{first.submission_id}-{number}"
        )
    assert submit.find_submission(file, "head").submission_id == f"{first.submission_id}-3"
    elsewhere = submit_study(file, "head", "s3://other/studies")
    changed = submit_study(write_study(planted_log, axes={"sequence_length": [2]}), "head", STORAGE)
    assert len({s.submission_id.split("-")[2] for s in (first, elsewhere, changed)}) == 3
    assert match_attempt("clue-a", "clue-a-12")[1] == "12"
    assert not match_attempt("clue-a", "clue-a-b")


def test_a_job_carries_code_study_and_no_secret(write_study, planted_log, jobs, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hush")
    submitted = submit_study(write_study(planted_log), "head", f"{STORAGE}?region=r&scheme=http")
    sent = jobs.sent
    assert sent["metadata"]["study"] == "tiny"
    assert sent["metadata"]["storage"] == submitted.storage
    assert f"--storage '{STORAGE}?region=r&scheme=http'" in sent["entrypoint"]
    assert set(sent["runtime_env"]) == {"working_dir", "py_modules", "excludes", "env_vars"}
    assert sent["runtime_env"]["env_vars"] == submit.STOP_ENVIRONMENT
    assert "hush" not in json.dumps(sent)
    options = sent["entrypoint"].removeprefix("python -m clue_ray ")
    assert options.startswith("run study.yaml --address auto")
    assert sent["entrypoint_num_cpus"] == 0


def test_options_of_run_are_passed_on_and_not_dropped(write_study, planted_log, jobs, monkeypatch):
    file = str(write_study(planted_log))
    command = ["submit", file, "--address", "head", "--storage", STORAGE]
    asked = ["--grow", "3e12", "--predict-at", "1e14", "--retry-failed", "--yes"]
    assert CliRunner().invoke(app, [*command, *asked]).exit_code == 0
    _, _, _, name, *words = shlex.split(jobs.sent["entrypoint"])
    parsed = typer.main.get_command(app).commands[name].make_context(name, words).params
    assert (parsed["grow"], parsed["predict_at"], parsed["retry_failed"], parsed["yes"]) == (
        3e12,
        1e14,
        True,
        True,
    )
    assert CliRunner().invoke(app, [*command, *asked]).exit_code == 0
    assert len(jobs.jobs) == 1
    refused = CliRunner().invoke(app, [*command, "--grow", "4e12"]).exception
    assert isinstance(refused, ClusterError)
    assert "is running without --grow 4000000000000; wait for" in str(refused)


def test_a_refusal_of_the_job_server_is_one_sentence(write_study, planted_log, jobs, monkeypatch):
    def refuse(**_):
        raise RuntimeError("Request failed with status code 500: disk full\nTraceback ...")

    monkeypatch.setattr(jobs, "submit_job", refuse)
    with pytest.raises(
        ClusterError,
        match=r"refused clue-tiny-\w+ \(Request failed with status code 500: disk full\)",
    ):
        submit_study(write_study(planted_log), "head", STORAGE)
    jobs.jobs.append(
        SimpleNamespace(submission_id="x", metadata={"study": "tiny"})
    )  # another tool's job
    with pytest.raises(ClusterError, match="head has no submission of study tiny"):
        submit.find_submission(write_study(planted_log), "head")


@pytest.mark.parametrize("asked", ["list_jobs", "get_job_info", "stop_job"])
def test_a_job_server_that_fails_is_one_sentence(
    write_study, planted_log, jobs, monkeypatch, asked
):
    file = write_study(planted_log)
    jobs.stop_job = lambda _: None
    submit_study(file, "head", STORAGE)

    def fail(*_):
        raise ConnectionError

    monkeypatch.setattr(jobs, asked, fail)
    with pytest.raises(
        ClusterError,
        match=r"The job server at head did not answer as expected \(ConnectionError\); look",
    ):
        submit.stop_submission(submit.find_submission(file, "head"))


def test_a_job_is_followed_and_stopped(write_study, planted_log, jobs):
    submitted, said = submit_study(write_study(planted_log), "head", STORAGE), []

    async def tail(submission_id):
        for text in ("[0/4]\n", "[4/4]\n"):
            yield text
        jobs.jobs[-1].status = JobStatus.SUCCEEDED if len(said) else JobStatus.PENDING

    jobs.tail_job_logs = tail
    assert submit.follow_submission(submitted, said.append).status == "SUCCEEDED"
    assert said == [
        "[0/4]\n",
        "[4/4]\n",
    ]
    jobs.jobs[-1].status = JobStatus.RUNNING
    said.clear()
    with pytest.raises(
        ClusterError,
        match=r"was lost \(the log ended before the job did\); clue-tiny-\w+ may still be running",
    ):
        submit.follow_submission(submitted, lambda _: None)
    jobs.stop_job = lambda _: setattr(jobs.jobs[-1], "status", JobStatus.STOPPED)
    assert (
        submit.stop_submission(submit.find_submission(write_study(planted_log), "head")).status
        == "STOPPED"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--status", "--stop"], "--status and --stop are given together"),
        ([], "submit needs --address URL and --storage URI"),
        (["--fetch"], "--fetch needs --storage URI"),
        (["--stop"], "--stop needs --address"),
        (
            ["--fetch", "--grow", "1e12"],
            "--grow applies to a new submission; leave it out with --fetch",
        ),
        (["--predict-at", "1e12"], "give --grow FLOPS too"),
    ],
)
def test_options_that_do_not_go_together(write_study, planted_log, options, words):
    result = CliRunner().invoke(app, ["submit", str(write_study(planted_log)), *options])
    assert isinstance(result.exception, SpecError)
    assert words in str(result.exception)


@pytest.fixture
def bucket(s3_query, planted_log):
    """A bucket with a log, for a study with its logs and storage there."""
    store = pyarrow.fs.FileSystem.from_uri(f"s3://lake{s3_query}&allow_bucket_creation=true")[0]
    store.create_dir("lake")
    pyarrow.fs.copy_files(str(planted_log), "lake/events.parquet", destination_filesystem=store)
    return SimpleNamespace(
        log=f"s3://lake/events.parquet{s3_query}", storage=f"s3://lake/team{s3_query}", store=store
    )


def clue_ray(folder, *arguments, **env):
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "clue_ray", *map(str, arguments)]
    env = {**os.environ, **env}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)


def kept(store):
    """List the study's checkpoints on storage."""
    runs = pyarrow.fs.FileSelector("lake/team/tiny/runs", recursive=True, allow_not_found=True)
    return [info.path for info in store.get_file_info(runs) if "/step_" in info.path]


@pytest.mark.multinode
@pytest.mark.ray
def test_a_submitted_study_survives_a_lost_node_and_is_fetched(write_study, bucket, tmp_path):
    file = write_study(
        bucket.log,
        base__train={"global_batch_size": 16, "steps": 400},
        axes=[{"sequence_length": [2, 4]}, {"sequence_length": [6], "resources.workers": [2]}],
        evaluation={"candidates": 16, "every": 0.05},
    )
    with Nodes() as nodes:
        where = ["--address", nodes.dashboard]
        first = json.loads(
            clue_ray(tmp_path, "submit", file, *where, "--storage", bucket.storage, "--json").stdout
        )
        assert first["new"]
        assert first["status"] in {"PENDING", "RUNNING"}
        deadline = time.monotonic() + 240
        while not kept(bucket.store) and time.monotonic() < deadline:
            time.sleep(0.2)
        nodes.ask("kill")
        nodes.ask("add")
        followed = clue_ray(
            tmp_path, "submit", file, *where, "--storage", bucket.storage, "--follow"
        )
        assert followed.returncode == 0, followed.stderr
        assert "already running" in followed.stdout
        status = json.loads(clue_ray(tmp_path, "submit", file, *where, "--status", "--json").stdout)
        assert (status["submission_id"], status["status"]) == (first["submission_id"], "SUCCEEDED")
        fetched = clue_ray(tmp_path, "submit", file, *where, "--fetch", "--output", "home")
        assert fetched.returncode == 0, fetched.stderr
        assert "Report: " in fetched.stdout
        caches = [
            disk for disk in nodes.disks() if list(disk.glob("clue-ray-*/corpora/*/corpus.json"))
        ]
        assert (
            len(caches) == 4
        )  # the head, two workers, and the one that was added: no disk was shared
    home = tmp_path / "home" / "tiny"
    assert (home / "report" / "index.html").exists()
    assert not (home / "tune").exists()
    assert any("resumes after step" in log.read_text() for log in home.glob("runs/*/log.txt"))
    alone = run_study(read_study(file), tmp_path / "alone").table.drop(columns=CLOCK)
    pd.testing.assert_frame_equal(
        read_runs(home).table.drop(columns=CLOCK), alone, check_dtype=False
    )


@pytest.mark.multinode
@pytest.mark.ray
def test_a_cluster_requires_its_token_and_stops_a_job(write_study, bucket, tmp_path):
    file = write_study(
        bucket.log,
        base__train={"global_batch_size": 16, "steps": 4000},
        axes={"sequence_length": [2]},
        evaluation={"candidates": 16, "every": 0.01},
    )
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}
    with Nodes(**ours) as nodes:
        job = ["submit", file, "--address", nodes.dashboard, "--storage", bucket.storage]
        run = ["run", file, "--address", nodes.address, "--output", "out"]
        for env, words in (
            ({"RAY_AUTH_MODE": "disabled"}, "asks for a token"),
            ({**ours, "RAY_AUTH_TOKEN": "f" * 32}, "token"),
        ):
            for command in (job, run):
                refused = clue_ray(tmp_path, *command, **env)
                assert refused.returncode == 2
                assert words in refused.stderr
                assert "RAY_AUTH_TOKEN" in refused.stderr
                assert len(refused.stderr.strip().splitlines()) == 1
        first = json.loads(clue_ray(tmp_path, *job, "--json", **ours).stdout)
        deadline = time.monotonic() + 240
        while not kept(bucket.store) and time.monotonic() < deadline:
            time.sleep(0.2)
        stopped = json.loads(clue_ray(tmp_path, *job[:4], "--stop", "--json", **ours).stdout)
        assert (stopped["submission_id"], stopped["status"]) == (first["submission_id"], "STOPPED")
        ask = (
            "import sys, ray.util.state as s;"
            "print({g.state for g in s.list_placement_groups(sys.argv[1])})"
        )
        asked = [sys.executable, "-c", ask, nodes.dashboard]
        groups = subprocess.run(
            asked, env={**os.environ, **ours}, capture_output=True, text=True, timeout=120
        )
        assert groups.stdout.strip() in {"{'REMOVED'}", "set()"}, groups.stderr
        files = [
            file for file in nodes.folder.rglob("*") if file.is_file() and not file.is_symlink()
        ]
        assert files
        assert not [file for file in files if ours["RAY_AUTH_TOKEN"].encode() in file.read_bytes()]
    left = pyarrow.fs.FileSelector("lake/team/tiny", recursive=True)
    names = [info.base_name for info in bucket.store.get_file_info(left)]
    assert "runs.csv" in names
    assert ".lease.json" not in names
    assert kept(bucket.store)
