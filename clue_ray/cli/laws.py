"""Commands that fit laws, and that report, browse and predict from a study."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from clue_ray.cli.options import Json, StudyFolder, console


def fit(
    runs: Annotated[
        Path,
        typer.Argument(metavar="RUNS", help="Runs table (CSV or Parquet), or a study's directory."),
    ],
    law: Annotated[str, typer.Option(help="Name of the law.")] = "power_law_plus_constant",
    x: Annotated[
        list[str] | None,
        typer.Option(help="Predictor column. Repeat for several.", show_default="train_flops"),
    ] = None,
    y: Annotated[str, typer.Option(help="Column to predict.")] = "loss",
    as_json: Json = False,
) -> None:
    """Fit one law to a table of runs."""
    from clue_ray.runs import read_runs
    from clue_ray.scaling.fitting.fit import fit_law

    fitted = fit_law(law, read_runs(runs), x=x or ["train_flops"], y=y)
    if as_json:
        print(json.dumps(fitted.to_dict()))
        return
    from clue_ray.cli.tables import fit_table

    console.print(fit_table(fitted))
    for warning in fitted.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)


def report(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR [DIR]", help="The directory of a study, or of two.")
    ],
    as_json: Json = False,
) -> None:
    """Fit the laws of a study again and write its report, or compare two studies."""
    from clue_ray.report.compare import compare_studies
    from clue_ray.report.page import write_report

    if len(directories) == 1:
        return emit_laws(directories[0], write_report(directories[0]), as_json)
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
    from clue_ray.cli.tables import print_laws

    fits = json.loads((directory / "fits.json").read_text(encoding="utf-8"))
    print(json.dumps({"report": str(page), **fits})) if as_json else print_laws(console, fits, page)
