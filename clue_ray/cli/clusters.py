"""The command that hands studies to clusters."""

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
    check_growth,
    console,
)
from clue_ray.errors import SpecError

if TYPE_CHECKING:
    from clue_ray.jobs.submit import Submission


def submit(
    study: StudyFile,
    address: Annotated[
        str | None, typer.Option(help="URL of the cluster's dashboard: http://head:8265.")
    ] = None,
    storage: Storage = None,
    retry_failed: RetryFailed = False,
    grow: Grow = None,
    predict_at: PredictAt = None,
    yes: Yes = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the job's log until it ends.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Tell how the last submission fares.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop it.")] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Bring runs table and report home from storage.")
    ] = False,
    output: Output = Path("results"),
    as_json: Json = False,
) -> None:
    """Run a study on a Ray cluster as a job; look at it, stop it, or bring home what it has
    found.
    """
    check_growth(grow, predict_at)
    passed_on = _options_of_run(retry_failed, grow, predict_at, yes)
    asked = {"--follow": follow, "--status": status, "--stop": stop, "--fetch": fetch}
    _check_choice(asked, address, storage, passed_on)
    import clue_ray.jobs.submit as jobs

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
                    f"{found.submission_id}: {'submitted' if found.new else 'under way'}",
                    highlight=False,
                )
            stream = sys.stderr if as_json else sys.stdout
            found = jobs.follow_submission(found, partial(print, end="", flush=True, file=stream))
    _emit_submission(found, as_json)
    if found.status == "FAILED" or (follow and found.status == "STOPPED"):
        raise typer.Exit(1)


def _emit_submission(found: "Submission", as_json: bool) -> None:
    """Print how a submission fares and where its study lies."""
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
    """Write what `clue-ray run` is to be given besides the study and its places."""
    numbers = {"--grow": grow, "--predict-at": predict_at}
    words = [word for name, value in numbers.items() if value for word in (name, f"{value:.17g}")]
    return words + ["--retry-failed"] * retry_failed + ["--yes"] * yes


def _check_choice(
    asked: dict[str, bool], address: str | None, storage: str | None, passed_on: list[str]
) -> None:
    """Refuse options that contradict each other, or lack a partner."""
    chosen = [name for name, wanted in asked.items() if wanted]
    if passed_on and chosen not in ([], ["--follow"]):
        raise SpecError(
            f"{passed_on[0]} is for a study to be submitted; leave it out beside {chosen[0]}."
        )
    if len(chosen) > 1:
        raise SpecError(f"{' and '.join(chosen)} are given together; give one of them.")
    if chosen in ([], ["--follow"]) and not (address and storage):
        raise SpecError(
            "submit needs --address URL and --storage URI; only --status, --stop and --fetch need "
            "one less."
        )
    if chosen == ["--fetch"] and not (address or storage):
        raise SpecError(
            "--fetch needs --storage URI, or --address URL of the cluster that knows it."
        )
    if chosen in (["--status"], ["--stop"]) and not address:
        raise SpecError(f"{chosen[0]} needs --address URL of the cluster.")


def _emit_fetched(directory: Path, storage: str, as_json: bool) -> None:
    """Tell what was brought home."""
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
    words = (
        f"Report: {page}" if page.exists() else "No report yet: it is written when the study ends."
    )
    console.print(words, highlight=False, markup=False, soft_wrap=True)
