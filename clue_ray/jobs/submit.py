"""Submit a study as a job of a Ray cluster, follow it, stop it and fetch its results.

Only this package's code and the study file are sent to the cluster. Logs, corpora and runs lie on
storage that the cluster reads and writes with its own credentials.
"""

import asyncio
import logging
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from clue_ray.errors import ClusterError
from clue_ray.jobs.server import CLIENT_ERRORS, asking, check_server, first_line
from clue_ray.jobs.shipping import PACKAGE, check_package, check_portable, code_to_ship, copy_study
from clue_ray.spec.specs import StudySpec, read_study
from clue_ray.spec.yaml import fingerprint
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.mirror import fetch_study, write_current

EXCLUDES = ["**/__pycache__/**", "*.pyc"]
CHATTY_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
START_SECONDS, STOP_SECONDS = 60.0, 60.0
"""Longest waits for a cluster that is starting, and for a job that is ending."""
STOP_ENVIRONMENT = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "45"}
"""How Ray stops our jobs: as Ctrl-C does, with 45 s to write the tables and release the lease."""


@dataclass(frozen=True)
class Submission:
    """One job of a study on a cluster, as its job server reports it."""

    submission_id: str
    study: str
    status: str
    "PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED"
    storage: str
    address: str
    message: str = ""
    started_at: int | None = None
    "milliseconds since the epoch"
    ended_at: int | None = None
    exit_code: int | None = None
    new: bool = False
    "whether this command submitted it"

    @property
    def is_over(self) -> bool:
        """Return whether the job has ended."""
        return JobStatus(self.status).is_terminal()

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        return asdict(self)


def submit_study(
    file: str | Path, address: str, storage: str, options: Sequence[str] = ()
) -> Submission:
    """Submit a study to the cluster with its dashboard at `address`, unless it runs there already.

    All checks are made before anything is uploaded.

    Args:
        options: further options of `clue-ray run`, such as ["--grow", "1e12"].

    Raises:
        SpecError: the study names logs, folders or storage that a cluster cannot reach.
        ClusterError: the cluster does not answer, refuses the token, runs another Ray or Python, or
            runs the study with other options.
    """
    study = read_study(file)
    check_portable(study, storage)
    check_package(PACKAGE)
    client = open_client(address)
    with asking(address):
        attempts = _find_attempts(client, study, storage)
    if attempts and not attempts[-1].status.is_terminal():
        _check_options(attempts[-1], storage, options)
        return _describe(attempts[-1], address)
    submission_id = _next_id(study, storage, attempts)
    job = {
        "entrypoint": _write_entrypoint(storage, options),
        "submission_id": submission_id,
        "metadata": {
            "study": study.name,
            "study_digest": _digest(study),
            "storage": storage,
            "clue_ray_version": version("clue-ray"),
        },
        "entrypoint_num_cpus": 0,
    }
    with tempfile.TemporaryDirectory() as working_dir, tempfile.TemporaryDirectory() as metadata:
        copy_study(file, study, Path(working_dir))
        runtime_env = {
            "working_dir": working_dir,
            "py_modules": code_to_ship(Path(metadata)),
            "excludes": EXCLUDES,
            "env_vars": STOP_ENVIRONMENT,
        }
        _submit_job(client, {**job, "runtime_env": runtime_env})
    with asking(address):
        return _describe(client.get_job_info(submission_id), address, new=True)


def _next_id(study: StudySpec, storage: str, attempts: Sequence[JobDetails]) -> str:
    """Return the id of the next job of a study and storage: a hash of both, then -2, -3 and on."""
    base = f"clue-{study.name}-{fingerprint([_digest(study), storage])[:8]}"
    matches = [match_attempt(base, str(job.submission_id)) for job in attempts]
    numbers = [int(match[1] or 1) for match in matches if match]
    return f"{base}-{max(numbers) + 1}" if numbers else base


def match_attempt(base: str, submission_id: str) -> re.Match[str] | None:
    """Match the id of a job: the base, followed by a number from the second job on."""
    return re.fullmatch(rf"{re.escape(base)}(?:-(\d+))?", submission_id)


def _submit_job(client: JobSubmissionClient, job: dict[str, Any]) -> None:
    """Upload and submit a job, and retry while a cluster is still starting.

    Raises:
        ClusterError: the job server refused.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.submit_job(**job)
            return
        except CLIENT_ERRORS as error:
            reason = first_line(error)
            if "No available agent" not in reason or time.monotonic() > deadline:
                raise ClusterError(
                    f"The job server refused {job['submission_id']} ({reason}); look at its logs."
                ) from None
            time.sleep(2.0)


def _check_options(job: JobDetails, storage: str, options: Sequence[str]) -> None:
    """Raise ClusterError if a running job lacks the options, which would be dropped silently."""
    if options and job.entrypoint != _write_entrypoint(storage, options):
        raise ClusterError(
            f"{job.submission_id} is running without {' '.join(options)}; wait for it to end, or "
            "--stop it and submit it again: the study resumes."
        )


def _write_entrypoint(storage: str, options: Sequence[str] = ()) -> str:
    """Return the command that the cluster's head runs.

    Each job gets a new output folder. It lies outside the runtime environment, which Ray deletes,
    and its name cannot be taken in advance by another user of that machine.
    """
    run = ["python", "-m", "clue_ray", "run", "study.yaml", "--address", "auto"]
    command = shlex.join([*run, "--storage", storage, *options])
    return f'{command} --output "$(mktemp -d)"'


def _digest(study: StudySpec) -> str:
    return fingerprint(study.model_dump(mode="json"))


def open_client(address: str) -> JobSubmissionClient:
    """Return a client of a cluster's job server after checking the server."""
    url = check_server(address)
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    with asking(url):
        return JobSubmissionClient(url)


def _find_attempts(
    client: JobSubmissionClient, study: StudySpec, storage: str | None
) -> list[JobDetails]:
    """List the jobs of a study, oldest first; jobs of the current study file come last.

    Args:
        storage: count only jobs of exactly this study file and storage; None counts every job of
            the study's name.
    """
    ours = {"study", "study_digest", "storage"}
    digest = _digest(study)
    jobs = [
        job for job in client.list_jobs() if job.submission_id and ours <= set(job.metadata or {})
    ]
    jobs = [job for job in jobs if job.metadata["study"] == study.name]
    if storage is not None:
        exact = {"storage": storage, "study_digest": digest}
        jobs = [job for job in jobs if exact.items() <= job.metadata.items()]
    return sorted(
        jobs, key=lambda job: (job.metadata["study_digest"] == digest, job.start_time or 0)
    )


def _describe(job: JobDetails, address: str, new: bool = False) -> Submission:
    """Build the Submission of a job."""
    # The last line of a message is the useful one: for a failed job it ends with its log.
    message = (job.message or "").strip().split("\n")[-1]
    return Submission(
        submission_id=str(job.submission_id),
        study=job.metadata["study"],
        status=job.status.value,
        storage=job.metadata["storage"],
        address=address,
        message=message,
        started_at=job.start_time,
        ended_at=job.end_time,
        exit_code=job.driver_exit_code,
        new=new,
    )


def find_submission(file: str | Path, address: str, storage: str | None = None) -> Submission:
    """Find the last job of a study on a cluster.

    Raises:
        ClusterError: the cluster does not answer, or has no job of the study.
    """
    study = read_study(file)
    client = open_client(address)
    with asking(address):
        attempts = _find_attempts(client, study, storage)
    if not attempts:
        raise ClusterError(
            f"{address} has no submission of study {study.name}; submit it, or check --address."
        )
    return _describe(attempts[-1], address)


def follow_submission(submission: Submission, write: Callable[[str], None]) -> Submission:
    """Pass a job's log to `write` as it grows, until the job ends; return the ended job.

    Raises:
        ClusterError: the connection was lost; the job may still run.
    """
    client = open_client(submission.address)

    async def tail() -> None:
        async for text in client.tail_job_logs(submission.submission_id):
            write(text)

    try:
        asyncio.run(tail())
        job = client.get_job_info(submission.submission_id)
    except CLIENT_ERRORS as error:
        raise _connection_lost(submission, first_line(error)) from None
    if not job.status.is_terminal():
        raise _connection_lost(submission, "the log ended before the job did")
    return _describe(job, submission.address)


def _connection_lost(submission: Submission, reason: str) -> ClusterError:
    return ClusterError(
        f"The connection to {submission.address} was lost ({reason}); {submission.submission_id} "
        "may still be running: run the same command with --follow to follow it again."
    )


def stop_submission(submission: Submission) -> Submission:
    """Stop a job, if it runs, and wait until it has ended; a study submitted again resumes.

    Raises:
        ClusterError: the cluster does not answer, or the job has not ended within a minute.
    """
    client = open_client(submission.address)
    deadline = time.monotonic() + STOP_SECONDS
    with asking(submission.address):
        if not submission.is_over:
            client.stop_job(submission.submission_id)
        while not (job := client.get_job_info(submission.submission_id)).status.is_terminal():
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{submission.submission_id} has not ended within {STOP_SECONDS:g} s; check "
                    "--status."
                )
            time.sleep(0.5)
    return _describe(job, submission.address)


def fetch_submission(file: str | Path, storage: str, output: str | Path) -> StudyDirectory:
    """Fetch a study's current table, curves and report from storage, without its cluster."""
    directory = fetch_study(storage, read_study(file).name, output)
    write_current(directory.path)
    return directory
