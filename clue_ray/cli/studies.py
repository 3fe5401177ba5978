"""Commands that plan, run and list a study."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from clue_ray.cli.laws import emit_laws
from clue_ray.cli.options import (
    Address,
    Grow,
    Json,
    Output,
    PredictAt,
    RetryFailed,
    Storage,
    StudyFile,
    StudyFolder,
    Yes,
    check_growth,
    console,
)
from clue_ray.spec.specs import read_study


def plan(
    study: StudyFile,
    output: Output = Path("results"),
    address: Address = None,
    storage: Storage = None,
    flops_per_second: Annotated[
        float | None, typer.Option(min=1, help="A worker's speed, not timed here.")
    ] = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Print every run with its parameters, tokens, FLOPs and expected minutes; train nothing."""
    spec = read_study(study)
    from clue_ray.spec.grid import MOST_POINTS
    from clue_ray.study.run import plan_study

    if not as_json:
        console.print(
            "Preparing the corpus and timing a few steps of each encoder ...", style="dim"
        )
    most = None if yes else MOST_POINTS
    where: dict[str, Any] = {"address": address, "storage": storage}
    planned = plan_study(spec, output, most_points=most, flops_per_second=flops_per_second, **where)
    if as_json:
        print(json.dumps(planned.to_dict()))
    else:
        from clue_ray.cli.tables import print_plan

        print_plan(console, planned)


def run(
    study: StudyFile,
    output: Output = Path("results"),
    address: Address = None,
    storage: Storage = None,
    retry_failed: RetryFailed = False,
    grow: Grow = None,
    predict_at: PredictAt = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Run what the study still lacks, fit the laws, write the report. The same command again
    resumes.
    """
    check_growth(grow, predict_at)
    spec = read_study(study)
    from clue_ray.cli.terminal import StudyView
    from clue_ray.spec.grid import MOST_POINTS
    from clue_ray.study.add_runs import AddedRuns, AddRunsRequest
    from clue_ray.study.run import run_study

    ask: dict[str, Any] = {"address": address, "storage": storage, "retry_failed": retry_failed}
    ask["growth"] = AddRunsRequest(grow, predict_at) if grow else None
    try:
        with StudyView(console, quiet=as_json) as view:
            runs = run_study(
                spec, output, on_progress=view.update, most_points=None if yes else MOST_POINTS, **ask
            )
    except KeyboardInterrupt:
        sys.stderr.write("clue-ray: Interrupted; the same command again goes on from here.\n")
        raise typer.Exit(1) from None
    _report_study(Path(output) / spec.name, storage, as_json)
    if grow and not as_json:
        console.print(AddedRuns.read(Path(output) / spec.name).sentence(), highlight=False)
    if (runs.table["status"].isin(["failed", "missing"])).any():
        raise typer.Exit(1)


def _report_study(directory: Path, storage: str | None, as_json: bool) -> None:
    """Write a study's report, on its storage too, and print its laws."""
    from clue_ray.report.page import write_report

    page = write_report(directory)
    if storage:
        from clue_ray.study.mirror import open_directory

        open_directory(directory, storage).publish()
    emit_laws(directory, page, as_json)


def train(
    study: StudyFile,
    point: Annotated[
        list[str] | None, typer.Option(help="FIELD=VALUE on the base run; repeat for several.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers to train it; the study's if left out.")
    ] = None,
    output: Output = Path("results"),
    address: Address = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Train one point of a study alone, on its grid or off it, and print its record."""
    from clue_ray.spec.grid import parse_point

    spec, fields = read_study(study), parse_point(point or [])
    if workers:
        fields["resources.workers"] = workers
    from clue_ray.cli.tables import record_table
    from clue_ray.cli.terminal import StudyView
    from clue_ray.study.run import train_point

    with StudyView(console, quiet=as_json) as view:
        where: dict[str, Any] = {"address": address, "storage": storage}
        record, folder = train_point(spec, fields, output, on_progress=view.update, **where)
    if as_json:
        print(json.dumps({**record.model_dump(mode="json"), "directory": str(folder)}))
    else:
        console.print(record_table(record))
        console.print(f"Run: {folder}", highlight=False, soft_wrap=True)
    if workers and record.num_workers != workers:
        note = f"It had been trained on {record.num_workers} workers; --output elsewhere trains it on {workers}."
        console.print(note, highlight=False)
    if record.status == "failed":
        raise typer.Exit(1)


def results(
    directory: StudyFolder,
    sort: Annotated[
        str | None,
        typer.Option(help="Column to sort by, a name of --csv; train_flops if left out."),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help='Condition on columns: "loss < 5.3 and seed == 0"')
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every 2 seconds, until Ctrl-C.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Print the runs table of a study as it stands, also while the study runs."""
    from clue_ray.cli.terminal import render_runs, select_runs, watch_runs

    table = select_runs(directory, where, sort)
    if as_json:
        print(table.to_json(orient="records"))
    elif as_csv:
        print(table.to_csv(index=False), end="")
    elif watch:
        watch_runs(console, lambda: render_runs(directory, select_runs(directory, where, sort)))
    else:
        console.print(render_runs(directory, table))
