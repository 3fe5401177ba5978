"""Commands that fit laws, and that report, browse and predict from a study."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from clue_ray.cli.options import Json, Output, RunsOf, StudyFolder, Where, X, Y, console


def fit(
    runs: RunsOf,
    law: Annotated[str, typer.Option(help="Name of the law.")] = "power_law_plus_constant",
    x: Annotated[
        list[str] | None,
        typer.Option(help="Predictor column. Repeat for several.", show_default="compute"),
    ] = None,
    y: Annotated[
        str | None, typer.Option(help="Column to predict.", show_default="the loss")
    ] = None,
    where: Where = None,
    as_json: Json = False,
) -> None:
    """Fit one law to a table of runs, of clue-ray or of another tool."""
    from clue_ray.cli.foreign import open_runs
    from clue_ray.scaling.fitting.fit import fit_law

    opened = open_runs(runs, x, y, where)
    fitted = fit_law(law, opened.runs, x=opened.x, y=opened.y)
    if as_json:
        print(json.dumps({**fitted.to_dict(), "notes": list(opened.notes)}))
        return
    from clue_ray.cli.tables import fit_table

    opened.print_notes(console)
    console.print(fit_table(fitted))
    for warning in fitted.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)


def report(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR [DIR]",
            help="The directory of a study, or of two; or the runs of another tool.",
        ),
    ],
    x: X = None,
    y: Y = None,
    where: Where = None,
    output: Output = Path("results"),
    as_json: Json = False,
) -> None:
    """Fit the laws of a study again and write its report, or compare two studies.

    The runs of other tools (a table, a folder of W&B, MLflow, TensorBoard or Ray Tune) get a page
    in <output>/<name>.
    """
    from clue_ray.cli.foreign import write_directory
    from clue_ray.foreign.study import is_study
    from clue_ray.report.compare import compare_studies
    from clue_ray.report.page import write_report

    if len(directories) == 1:
        home = directories[0]
        if x or y or where or not is_study(home):
            home = write_directory(home, x, y, where, output)
        return emit_laws(home, write_report(home), as_json)
    page, found = compare_studies(directories)
    if as_json:
        return print(json.dumps({"report": str(page), **found.to_dict()}))
    console.print(
        f"{found.sentence()}\nReport: {page}", highlight=False, markup=False, soft_wrap=True
    )


def browse(
    directory: StudyFolder,
    port: Annotated[
        int, typer.Option(help="Port to serve on. With 0, a free port is chosen.")
    ] = 8000,
) -> None:
    """Serve a study's report to a browser on this machine; it updates while the study runs."""
    from clue_ray.report.browse import Server

    with Server(directory, port) as server:
        console.print(f"{server.url} (Ctrl-C stops)", highlight=False)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def predict(
    directory: StudyFolder,
    train_flops: Annotated[
        float | None, typer.Option(help="Training FLOPs at which to predict the loss.")
    ] = None,
    loss: Annotated[
        float | None, typer.Option(help="Held-out loss, nats, for which to predict the FLOPs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Forecast the loss at a training compute beyond the runs, or the compute for a loss."""
    from clue_ray.report.predict import predict_study

    answer = predict_study(directory, train_flops=train_flops, loss=loss)
    if as_json:
        print(json.dumps(answer.to_dict()))
    else:
        console.print(answer.sentence(), highlight=False)
        for warning in answer.warnings:
            console.print(f"warning: {warning}", style="yellow", highlight=False)


def emit_laws(directory: Path, page: Path, as_json: bool) -> None:
    """Print the table of laws, the answer and the path of the report."""
    from clue_ray.cli.foreign import read_source
    from clue_ray.cli.tables import print_laws
    from clue_ray.spec.columns import named

    fits = json.loads((directory / "fits.json").read_text(encoding="utf-8"))
    source = read_source(directory)
    if as_json:
        return print(json.dumps({"report": str(page), **fits, "notes": source.get("notes", [])}))
    for note in source.get("notes", ()):
        console.print(f"note: {note}", style="dim", highlight=False)
    with named(source.get("names", {})):
        print_laws(console, fits, page)
