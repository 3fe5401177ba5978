"""A study as a job of a Ray cluster: submitted, followed, stopped, brought home, through Ray's Jobs
API.

What travels is this package's code and the study file. Data and results never do: logs, corpora and
runs lie on storage that the cluster reads and writes with its own credentials.
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
from clue_ray.jobs.server import CODE_TROUBLES, asking, check_server, first_line
from clue_ray.jobs.shipping import PACKAGE, check_package, check_portable, code_to_ship, copy_study
from clue_ray.spec.specs import StudySpec, read_study
from clue_ray.spec.yaml import fingerprint
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.mirror import fetch_study, write_current

EXCLUDES = ["**/__pycache__/**", "*.pyc"]
START_SECONDS, STOP_SECONDS = 60.0, 60.0
"""Longest waits for a cluster that is starting, and for a job that is ending."""
STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "45"}
"""Ray stops our jobs as Ctrl-C does and waits so many seconds, in which they hand over tables and
claim."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Submission:
    """One attempt at a study on a cluster, as its job server knows it."""

    submission_id: str
    study: str
    status: str
    "PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED"
    storage: str
    address: str
    message: str = ""
    started_at: int | None = None
    "milliseconds since 1970"
    ended_at: int | None = None
    exit_code: int | None = None
    new: bool = False
    "submitted by this command"

    @property
    def is_over(self) -> bool:
        """Tell whether it runs no more."""
        return JobStatus(self.status).is_terminal()

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self)


def submit_study(
    file: str | Path, address: str, storage: str, options: Sequence[str] = ()
) -> Submission:
    """Submit a study to the cluster whose dashboard is at `address`; one that is under way is not
    submitted again.

    Everything that can be known to fail is looked at before anything is uploaded.

    Args:
        options: further ones of `clue-ray run`, such as ["--grow", "1e12"].

    Raises:
        SpecError: the study names logs or folders that only this machine has, or storage that no
            cluster can reach.
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
    base = f"clue-{study.name}-{fingerprint([_digest(study), storage])[:8]}"
    tried = [
        int(match[1] or 1)
        for job in attempts
        if (match := attempt_of(base, str(job.submission_id)))
    ]
    submission_id = f"{base}-{max(tried) + 1}" if tried else base
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
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as beside:
        copy_study(file, study, Path(folder))
        shipped = {
            "working_dir": folder,
            "py_modules": code_to_ship(Path(beside)),
            "excludes": EXCLUDES,
        }
        _submit_job(client, {**job, "runtime_env": {**shipped, "env_vars": STOPPING}})
    with asking(address):
        return _describe(client.get_job_info(submission_id), address, new=True)


def _submit_job(client: JobSubmissionClient, job: dict[str, Any]) -> None:
    """Upload and submit; wait for a cluster that has just started.

    Raises:
        ClusterError: the job server refused, with its first words.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.submit_job(**job)
            return
        except CODE_TROUBLES as error:
            words = first_line(error)
            if "No available agent" not in words or time.monotonic() > deadline:
                raise ClusterError(
                    f"The job server refused {job['submission_id']} ({words}); look at its logs."
                ) from None
            time.sleep(2.0)


def _check_options(job: JobDetails, storage: str, options: Sequence[str]) -> None:
    """Refuse options that a job under way was not given, rather than drop them."""
    if options and job.entrypoint != _write_entrypoint(storage, options):
        raise ClusterError(
            f"{job.submission_id} is under way without {' '.join(options)}; wait for its end, or "
            f"--stop it and submit "
            "again: it goes on."
        )


def _write_entrypoint(storage: str, options: Sequence[str] = ()) -> str:
    """Write the command that the cluster's head runs.

    Each attempt has a working folder of its own there, outside the runtime environment's, which Ray
    clears away, and under a name that nobody on that machine can have taken before.
    """
    command = [
        "python",
        "-m",
        "clue_ray",
        "run",
        "study.yaml",
        "--address",
        "auto",
        "--storage",
        storage,
    ]
    command += options
    return f'{shlex.join(command)} --output "$(mktemp -d)"'


def attempt_of(base: str, submission_id: str) -> re.Match[str] | None:
    """Match the id of an attempt: the base, numbered from the second on."""
    return re.fullmatch(rf"{re.escape(base)}(?:-(\d+))?", submission_id)


def _digest(study: StudySpec) -> str:
    """Fingerprint a study as its file says it."""
    return fingerprint(study.model_dump(mode="json"))


def open_client(address: str) -> JobSubmissionClient:
    """Return a client of a cluster's job server that has answered, accepted the token and runs what
    we run.
    """
    url = check_server(address)
    for name in (
        "dashboard.modules.dashboard_sdk",
        "dashboard.modules.job.sdk",
        "_private.runtime_env.packaging",
    ):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    with asking(url):
        return JobSubmissionClient(url)


def _find_attempts(
    client: JobSubmissionClient, study: StudySpec, storage: str | None
) -> list[JobDetails]:
    """List the jobs that were submitted for a study, the last one last; jobs of the same file
    before other versions.

    Args:
        storage: only those with this storage; with any when omitted.
    """
    ours = {"study", "study_digest", "storage"}
    jobs = [
        job for job in client.list_jobs() if job.submission_id and ours <= set(job.metadata or {})
    ]
    jobs = [job for job in jobs if job.metadata["study"] == study.name]
    if storage is not None:
        jobs = [job for job in jobs if job.metadata["storage"] == storage]
        jobs = [job for job in jobs if job.metadata["study_digest"] == _digest(study)]
    same = _digest(study)
    return sorted(jobs, key=lambda job: (job.metadata["study_digest"] == same, job.start_time or 0))


def _describe(job: JobDetails, address: str, new: bool = False) -> Submission:
    """Read what the job server says of an attempt."""
    return Submission(
        submission_id=str(job.submission_id),
        study=job.metadata["study"],
        status=job.status.value,
        storage=job.metadata["storage"],
        address=address,
        message=(job.message or "")
        .strip()
        .split("\n")[-1],  # of a failed one, the last line of its log
        started_at=job.start_time,
        ended_at=job.end_time,
        exit_code=job.driver_exit_code,
        new=new,
    )


def find_submission(file: str | Path, address: str, storage: str | None = None) -> Submission:
    """Find the last attempt at a study on a cluster.

    Raises:
        ClusterError: the cluster does not answer, or knows none.
    """
    study = read_study(file)
    client = open_client(address)
    with asking(address):
        attempts = _find_attempts(client, study, storage)
    if not attempts:
        raise ClusterError(
            f"{address} knows no submission of study {study.name}; submit it, or look at --address."
        )
    return _describe(attempts[-1], address)


def follow_submission(submission: Submission, say: Say) -> Submission:
    """Hand on the job's log as it grows until it ends; return how it ended.

    Raises:
        ClusterError: the connection was lost; the job goes on without us.
    """
    client = open_client(submission.address)

    async def tail() -> None:
        async for text in client.tail_job_logs(submission.submission_id):
            say(text)

    try:
        asyncio.run(tail())
        job = client.get_job_info(submission.submission_id)
    except CODE_TROUBLES as error:
        raise _lost(submission, first_line(error)) from None
    if not job.status.is_terminal():
        raise _lost(submission, "the log ended before the job did")
    return _describe(job, submission.address)


def _lost(submission: Submission, reason: str) -> ClusterError:
    """Say that a job is out of sight, not over."""
    return ClusterError(
        f"The connection to {submission.address} was lost ({reason}); {submission.submission_id} "
        f"may go on: the same "
        "command with --follow looks again."
    )


def stop_submission(submission: Submission) -> Submission:
    """Stop the job, if it runs, and wait until it has ended; the same study submitted again
    resumes.
    """
    client = open_client(submission.address)
    deadline = time.monotonic() + STOP_SECONDS
    with asking(submission.address):
        if not submission.is_over:
            client.stop_job(submission.submission_id)
        while not (job := client.get_job_info(submission.submission_id)).status.is_terminal():
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{submission.submission_id} has not ended within {STOP_SECONDS:g} s; look at "
                    f"--status."
                )
            time.sleep(0.5)
    return _describe(job, submission.address)


def fetch_submission(file: str | Path, storage: str, output: str | Path) -> StudyDirectory:
    """Bring a study's table as it stands, its curves and its report home from storage; the cluster
    is not asked.
    """
    directory = fetch_study(storage, read_study(file).name, output)
    write_current(directory.path)
    return directory
