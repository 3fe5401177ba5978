"""The command line: parse, call one function, print one summary. Exit 0 good, 2 the user's mistake, 1 anything else."""

import errno
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from clue_ray.documents import read_yaml
from clue_ray.errors import ClueRayError
from clue_ray.spec import read_study

app = typer.Typer(
    help="Scaling-law studies of user encoders on Ray: from event logs to a report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(width=None if sys.stdout.isatty() else 160)
"""Without a terminal, as in a log, tables keep their columns."""

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Output = Annotated[Path, typer.Option(help="Folder for corpora and studies.")]
Address = Annotated[str | None, typer.Option(help="HOST:PORT of a Ray cluster; this machine when left out.")]
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Study file.")]
Yes = Annotated[bool, typer.Option("--yes", help="Allow axes that multiply to more than 1,000 runs.")]
StudyFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Study directory, <output>/<name>.")]


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A known public log, completejourney, or planted: one with a known law.")],
    output: Annotated[Path, typer.Option(help="Parquet file to write; a folder of them for a planted log.")],
    spec: Annotated[Path | None, typer.Option(help="YAML file: users, services, topics ... of a planted log.")] = None,
) -> None:
    """Build a public event log from its installed package, or a planted one from a spec."""
    if name == "planted":
        rows, note = fetch_planted(output, spec), "planted: users with known tastes; docs/planted.md says how."
    else:
        from clue_ray.corpus.sources import LICENCE_NOTE, fetch_source

        rows, note = fetch_source(name, output), LICENCE_NOTE
    console.print(f"{output}: {rows:,} events\n{note}", highlight=False, markup=False)


def fetch_planted(output: Path, spec: Path | None) -> int:
    """Write a planted log and return its events."""
    from clue_ray.corpus.planting import write_planted
    from clue_ray.corpus.synthetic import PlantedSpec
    from clue_ray.study.execute import connect

    planted = PlantedSpec.parse({} if spec is None else read_yaml(spec), str(spec))
    with connect():
        return write_planted(planted, output)


@app.command()
def prepare(
    events: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs or URIs; or NAME=FILES, a log for each service."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Corpus folder to make; corpora/<key> when left out.")] = None,
    columns: Annotated[str | None, typer.Option(help="Renames: user_id=author,text=title")] = None,
    text: Annotated[str | None, typer.Option(help='Template of the item text: "{brand}; {title}"')] = None,
    spec: Annotated[Path | None, typer.Option(help="YAML file with more of a study's corpus section.")] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Turn event logs into a corpus of training shards, with Ray Data, and tell what is in them."""
    from clue_ray.corpus.arguments import make_corpus_spec

    corpus_spec = make_corpus_spec(events or [], columns, text, spec)
    from clue_ray.corpus.prepare import build_corpus
    from clue_ray.report.profile import profile_headline, profile_tables, write_profile
    from clue_ray.study.execute import connect
    from clue_ray.study.tables import report_table

    with connect(address):
        corpus = build_corpus(corpus_spec, output)
    page, profile = write_profile(corpus.path), corpus.profile()
    if as_json:
        print(json.dumps({"path": str(corpus.path), "digest": corpus.digest, **profile}))
        return
    console.print(profile_headline(profile), highlight=False)
    for title, table in profile_tables(profile).items():
        console.print(report_table(title, table))
        if table.note:
            console.print(table.note, highlight=False, markup=False)
    where = f"Corpus: {corpus.path}, digest {corpus.digest}\nProfile: {page}"
    console.print(where, highlight=False, soft_wrap=True, markup=False)


@app.command()
def plan(
    study: StudyFile,
    output: Output = Path("results"),
    flops_per_second: Annotated[float | None, typer.Option(min=1, help="A worker's speed, not timed here.")] = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Print every run with its parameters, tokens, FLOPs and expected minutes; train nothing."""
    spec = read_study(study)
    from clue_ray.study.execute import MOST_POINTS, plan_study

    if not as_json:
        console.print("Preparing the corpus and timing a few steps of each encoder ...", style="dim")
    most = None if yes else MOST_POINTS
    planned = plan_study(spec, output, most_points=most, flops_per_second=flops_per_second)
    if as_json:
        print(json.dumps(planned.to_dict()))
    else:
        from clue_ray.study.tables import print_plan

        print_plan(console, planned)


@app.command()
def run(
    study: StudyFile,
    output: Output = Path("results"),
    address: Address = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Train again what failed before.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Run what the study still lacks, fit the laws, write the report. The same command again resumes."""
    spec = read_study(study)
    from clue_ray.study.execute import MOST_POINTS, run_study
    from clue_ray.study.show import StudyView

    ask: dict[str, Any] = {"address": address, "retry_failed": retry_failed}
    try:
        with StudyView(console, quiet=as_json) as view:
            runs = run_study(spec, output, listener=view.update, most_points=None if yes else MOST_POINTS, **ask)
    except KeyboardInterrupt:
        sys.stderr.write("clue-ray: Interrupted; the same command again goes on from here.\n")
        raise typer.Exit(1) from None
    directory = Path(output) / spec.name
    from clue_ray.report.page import write_report

    emit_laws(directory, write_report(directory), as_json)
    if (runs.table["status"].isin(["failed", "missing"])).any():
        raise typer.Exit(1)


@app.command()
def train(
    study: StudyFile,
    point: Annotated[list[str] | None, typer.Option(help="FIELD=VALUE on the base run; repeat for several.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Workers to train it; the study's if left out.")] = None,
    output: Output = Path("results"),
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Train one point of a study alone, on its grid or off it, and print its record."""
    from clue_ray.study.grid import parse_point

    spec, fields = read_study(study), parse_point(point or [])
    if workers:
        fields["resources.workers"] = workers
    from clue_ray.study.execute import train_point
    from clue_ray.study.show import StudyView
    from clue_ray.study.tables import record_table

    with StudyView(console, quiet=as_json) as view:
        record, folder = train_point(spec, fields, output, address=address, listener=view.update)
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


@app.command()
def results(
    directory: StudyFolder,
    sort: Annotated[str | None, typer.Option(help="Column to sort by; train_flops when left out.")] = None,
    where: Annotated[str | None, typer.Option(help='Condition on columns: "loss < 5.3 and seed == 0"')] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every 2 seconds, until Ctrl-C.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Print the runs table of a study as it stands, also while the study runs."""
    from clue_ray.study.results import render_runs, select_runs, watch_runs

    table = select_runs(directory, where, sort)
    if as_json:
        print(table.to_json(orient="records"))
    elif as_csv:
        print(table.to_csv(index=False), end="")
    elif watch:
        watch_runs(console, lambda: render_runs(directory, select_runs(directory, where, sort)))
    else:
        console.print(render_runs(directory, table))


@app.command()
def fit(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="CSV or Parquet runs table, or a study directory.")],
    law: Annotated[str, typer.Option(help="Name of a law.")] = "power_law_plus_constant",
    x: Annotated[list[str] | None, typer.Option(help="Column of the law's predictor; repeat for several.")] = None,
    y: Annotated[str, typer.Option(help="Column to explain.")] = "loss",
    as_json: Json = False,
) -> None:
    """Fit one law to any table of runs."""
    from clue_ray.runs import read_runs
    from clue_ray.scaling.fit import fit_law

    fitted = fit_law(law, read_runs(runs), x=x or ["train_flops"], y=y)
    if as_json:
        print(json.dumps(fitted.to_dict()))
        return
    from clue_ray.study.tables import fit_table

    console.print(fit_table(fitted))
    for warning in fitted.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR [DIR]", help="A study directory, or two.")],
    as_json: Json = False,
) -> None:
    """Fit the laws of a study again and write its report; of two studies, compare the laws."""
    from clue_ray.report.compare import compare_studies
    from clue_ray.report.page import write_report

    if len(directories) == 1:
        return emit_laws(directories[0], write_report(directories[0]), as_json)
    page, found = compare_studies(directories)
    if as_json:
        return print(json.dumps({"report": str(page), **found.to_dict()}))
    console.print(f"{found.sentence()}\nReport: {page}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def browse(directory: StudyFolder, port: Annotated[int, typer.Option(help="Port; 0 for a free one.")] = 8000) -> None:
    """Show a study, also while it runs, to a browser on this machine; the page follows the runs."""
    from clue_ray.report.browse import Server

    with Server(directory, port) as server:
        console.print(f"{server.url} (Ctrl-C ends)", highlight=False)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


@app.command()
def predict(
    directory: StudyFolder,
    train_flops: Annotated[float | None, typer.Option(help="Compute whose loss is asked for, FLOP.")] = None,
    loss: Annotated[float | None, typer.Option(help="Held-out loss whose compute is asked for, nats.")] = None,
    as_json: Json = False,
) -> None:
    """Predict the loss of a compute, or the compute of a loss, by the law that speaks for a study."""
    from clue_ray.report.prediction import predict_study

    answer = predict_study(directory, train_flops=train_flops, loss=loss)
    if as_json:
        print(json.dumps(answer.to_dict()))
    else:
        console.print(answer.sentence(), highlight=False)


def emit_laws(directory: Path, page: Path, as_json: bool) -> None:
    """Print the law table, the answer and where the report lies."""
    from clue_ray.study.tables import print_laws

    fits = json.loads((directory / "fits.json").read_text(encoding="utf-8"))
    print(json.dumps({"report": str(page), **fits})) if as_json else print_laws(console, fits, page)


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    try:
        app()
    except ClueRayError as error:
        sys.stderr.write(f"clue-ray: {error}\n")
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.stderr.write("clue-ray: No free disk; free some space and run the same command again.\n")
        sys.exit(2)
