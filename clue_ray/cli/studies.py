"""Commands that plan, run and show a study."""

import json
import sys
from pathlib import Path
from typing import Annotated

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
    check_predict_at,
    console,
)
from clue_ray.spec.specs import read_study


def plan(
    study: StudyFile,
    output: Output = Path("results"),
    address: Address = None,
    storage: Storage = None,
    flops_per_second: Annotated[
        float | None,
        typer.Option(min=1, help="Speed of one worker, FLOP/s.", show_default="time a few steps"),
    ] = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Show every run with its parameters, tokens, FLOPs and expected minutes; train nothing."""
    spec = read_study(study)
    from clue_ray.spec.grid import MOST_POINTS
    from clue_ray.study.run import plan_study

    if not as_json:
        console.print(
            "Preparing the corpus and timing a few steps of each encoder ...", style="dim"
        )
    planned = plan_study(
        spec,
        output,
        address=address,
        storage=storage,
        most_points=None if yes else MOST_POINTS,
        flops_per_second=flops_per_second,
    )
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
    """Train the runs that a study still lacks, fit the laws and write the report.

    Run the same command again to resume.
    """
    check_predict_at(grow, predict_at)
    spec = read_study(study)
    from clue_ray.cli.terminal import StudyView
    from clue_ray.spec.grid import MOST_POINTS
    from clue_ray.study.add_runs import AddedRuns, AddRunsRequest
    from clue_ray.study.run import run_study

    try:
        with StudyView(console, quiet=as_json) as view:
            runs = run_study(
                spec,
                output,
                address=address,
                storage=storage,
                on_progress=view.update,
                retry_failed=retry_failed,
                most_points=None if yes else MOST_POINTS,
                add_runs=AddRunsRequest(grow, predict_at) if grow else None,
            )
    except KeyboardInterrupt:
        sys.stderr.write("clue-ray: Interrupted; run the same command again to resume.\n")
        raise typer.Exit(1) from None
    directory = Path(output) / spec.name
    emit_laws(directory, directory / "report" / "index.html", as_json)
    if grow and not as_json:
        console.print(AddedRuns.read(directory).sentence(), highlight=False)
    if (runs.table["status"].isin(["failed", "missing"])).any():
        raise typer.Exit(1)


def train(
    study: StudyFile,
    point: Annotated[
        list[str] | None,
        typer.Option(help="Field of the base run to set, FIELD=VALUE. Repeat for several."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Number of workers.", show_default="the study's"),
    ] = None,
    output: Output = Path("results"),
    address: Address = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Train one point of a study, on its grid or not, and show its record."""
    from clue_ray.spec.grid import parse_point

    spec, fields = read_study(study), parse_point(point or [])
    if workers:
        fields["resources.workers"] = workers
    from clue_ray.cli.tables import record_table
    from clue_ray.cli.terminal import StudyView
    from clue_ray.study.run import train_point

    with StudyView(console, quiet=as_json) as view:
        record, folder = train_point(
            spec, fields, output, address=address, storage=storage, on_progress=view.update
        )
    if as_json:
        print(json.dumps({**record.model_dump(mode="json"), "directory": str(folder)}))
    else:
        console.print(record_table(record))
        console.print(f"Run: {folder}", highlight=False, soft_wrap=True)
    if workers and record.num_workers != workers:
        console.print(
            f"It was trained before, on {record.num_workers} workers; choose another --output to "
            f"train it on {workers}.",
            highlight=False,
        )
    if record.status == "failed":
        raise typer.Exit(1)


def results(
    directory: StudyFolder,
    sort: Annotated[
        str | None,
        typer.Option(help="Column to sort by, as named by --csv.", show_default="train_flops"),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help='Condition that rows must meet, such as "loss < 5.3 and seed == 0".'),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh every 2 seconds until Ctrl-C.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the table as CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Show the runs of a study as they stand, also while the study runs."""
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
