"""The command that submits studies to Ray clusters."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clue_ray.cli.options import (
    Grow,
    Json,
    Output,
    PredictAt,
    RetryFailed,
    Storage,
    StudyFile,
    Yes,
    check_predict_at,
    console,
)
from clue_ray.errors import SpecError

if TYPE_CHECKING:
    from clue_ray.jobs.submit import Submission


def submit(
    study: StudyFile,
    address: Annotated[
        str | None, typer.Option(help="URL of the cluster's dashboard, such as http://head:8265.")
    ] = None,
    storage: Storage = None,
    retry_failed: RetryFailed = False,
    grow: Grow = None,
    predict_at: PredictAt = None,
    yes: Yes = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print the job's log until the job ends.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Show the status of the last submission.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the last submission.")] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Download the runs table and the report from storage.")
    ] = False,
    output: Output = Path("results"),
    as_json: Json = False,
) -> None:
    """Run a study as a job on a Ray cluster, follow or stop the job, or download its results."""
    check_predict_at(grow, predict_at)
    passed_on = _options_of_run(retry_failed, grow, predict_at, yes)
    asked = {"--follow": follow, "--status": status, "--stop": stop, "--fetch": fetch}
    _check_choice(asked, address, storage, passed_on)
    from clue_ray.jobs import submit as jobs

    if fetch:
        where = storage or jobs.find_submission(study, str(address)).storage
        return _emit_fetched(jobs.fetch_submission(study, where, output).path, where, as_json)
    if status or stop:
        found = jobs.find_submission(study, str(address), storage)
        found = jobs.stop_submission(found) if stop else found
    else:
        found = jobs.submit_study(study, str(address), str(storage), passed_on)
        if follow:
            if not as_json:
                console.print(
                    f"{found.submission_id}: {'submitted' if found.new else 'already running'}",
                    highlight=False,
                )
            stream = sys.stderr if as_json else sys.stdout
            found = jobs.follow_submission(found, partial(print, end="", flush=True, file=stream))
    _emit_submission(found, as_json)
    if found.status == "FAILED" or (follow and found.status == "STOPPED"):
        raise typer.Exit(1)


def _emit_submission(found: "Submission", as_json: bool) -> None:
    """Print the status of a submission and where its study is stored."""
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        new = " (submitted)" if found.new else ""
        words = f"{found.submission_id}: {found.status}{new}\n{found.message}".rstrip()
        console.print(
            f"{words}\nStorage: {found.storage}", highlight=False, markup=False, soft_wrap=True
        )


def _options_of_run(
    retry_failed: bool, grow: float | None, predict_at: float | None, yes: bool
) -> list[str]:
    """Return the options that the job passes to `clue-ray run`."""
    numbers = {"--grow": grow, "--predict-at": predict_at}
    # 17 digits: the job reads back the same double.
    words = [word for name, value in numbers.items() if value for word in (name, f"{value:.17g}")]
    return words + ["--retry-failed"] * retry_failed + ["--yes"] * yes


def _check_choice(
    asked: dict[str, bool], address: str | None, storage: str | None, passed_on: list[str]
) -> None:
    """Raise SpecError for options that contradict each other or need another option."""
    chosen = [name for name, wanted in asked.items() if wanted]
    if passed_on and chosen not in ([], ["--follow"]):
        raise SpecError(
            f"{passed_on[0]} applies to a new submission; leave it out with {chosen[0]}."
        )
    if len(chosen) > 1:
        raise SpecError(f"{' and '.join(chosen)} are given together; give one of them.")
    if chosen in ([], ["--follow"]) and not (address and storage):
        raise SpecError(
            "submit needs --address URL and --storage URI; only --status, --stop and --fetch work "
            "without one of them."
        )
    if chosen == ["--fetch"] and not (address or storage):
        raise SpecError(
            "--fetch needs --storage URI, or --address URL of the cluster that ran the study."
        )
    if chosen in (["--status"], ["--stop"]) and not address:
        raise SpecError(f"{chosen[0]} needs --address URL of the cluster.")


def _emit_fetched(directory: Path, storage: str, as_json: bool) -> None:
    """Print what was downloaded."""
    from clue_ray.cli.terminal import render_runs, select_runs

    table, page = select_runs(directory), directory / "report" / "index.html"
    if as_json:
        found = {
            "directory": str(directory),
            "storage": storage,
            "report": str(page) if page.exists() else None,
        }
        return print(json.dumps(found | {"runs": table["status"].value_counts().to_dict()}))
    console.print(render_runs(directory, table))
    note = f"Report: {page}" if page.exists() else "There is no report until the study ends."
    console.print(note, highlight=False, markup=False, soft_wrap=True)
