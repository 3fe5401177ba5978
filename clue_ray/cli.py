"""The command line: parse, call one function, print one summary. Exit 0 good, 2 the user's mistake, 1 anything else."""

import errno
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from clue_ray.documents import read_yaml
from clue_ray.errors import ClueRayError, SpecError
from clue_ray.spec import CorpusSpec, StudySpec, read_study

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


def make_corpus_spec(events: list[str], columns: str | None, text: str | None, spec: Path | None) -> CorpusSpec:
    """Join the command line's own settings with those of a corpus file."""
    document: Any = {} if spec is None else read_yaml(spec)
    if not isinstance(document, dict):
        raise SpecError(
            f"Corpus file {spec} holds {type(document).__name__}, not the keys of a study's corpus section."
        )
    if bool(events) == ("events" in document):
        where = f"both as arguments and in {spec}" if events else "neither as arguments nor by a --spec file"
        raise SpecError(f"EVENTS are given {where}; give them once.")
    if events:
        document["events"] = parse_events(events)
    if text is not None:
        document["text"] = text
    if columns is not None:
        document["columns"] = parse_columns(columns)
    return CorpusSpec.parse(document, str(spec or "prepare"))


def parse_events(events: list[str]) -> list[str] | dict[str, list[str]]:
    """Tell NAME=FILES, a log for each service, from files; a path may hold an = sign itself."""
    named = [(place.split("=", 1) if is_named(place) else ["", place]) for place in events]
    if not any(name for name, _ in named):
        return list(events)
    if not all(name for name, _ in named):
        raise SpecError(f"EVENTS are {' '.join(events)!r}; name a service before each, NAME=FILES, or before none.")
    names = dict.fromkeys(name for name, _ in named)
    return {name: [place for other, place in named if other == name] for name in names}


def is_named(place: str) -> bool:
    """Tell whether an argument reads NAME=FILES."""
    name, equals, _ = place.partition("=")
    return bool(equals) and not set(name) & set("/\\:*?.") and not Path(place).exists()


def parse_columns(columns: str) -> dict[str, str]:
    """Parse user_id=author,text=title."""
    pairs = [part.split("=", 1) for part in columns.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise SpecError(f"--columns is {columns!r}; write it as user_id=author,text=title.")
    return {role.strip(): column.strip() for role, column in pairs}


@app.command()
def plan(study: StudyFile, output: Output = Path("results"), as_json: Json = False) -> None:
    """Print every run with its parameters, tokens, FLOPs and expected minutes; train nothing."""
    spec = read_study(study)
    from clue_ray.study.execute import plan_study

    console.print(
        "Preparing the corpus and timing a few steps of each encoder ...", style="dim"
    ) if not as_json else None
    planned = plan_study(spec, output)
    if as_json:
        print(json.dumps(planned.to_dict()))
    else:
        from clue_ray.study.tables import print_plan

        print_plan(console, planned)


@app.command()
def run(study: StudyFile, output: Output = Path("results"), address: Address = None, as_json: Json = False) -> None:
    """Run what the study still lacks, fit the laws, write the report. The same command again resumes."""
    spec = read_study(study)
    from clue_ray.study.execute import run_study
    from clue_ray.study.show import StudyView

    try:
        with StudyView(console, quiet=as_json) as view:
            runs = run_study(spec, output, address, view.update)
    except KeyboardInterrupt:
        sys.stderr.write("clue-ray: Interrupted; the same command again goes on from here.\n")
        raise typer.Exit(1) from None
    directory = Path(output) / spec.name
    finish_study(spec, directory, as_json)
    if (runs.table["status"].isin(["failed", "missing"])).any():
        raise typer.Exit(1)


def finish_study(spec: StudySpec, directory: Path, as_json: bool) -> None:
    """Write the report of a study and print its law table."""
    from clue_ray.report.page import write_report

    page = write_report(directory)
    emit_laws(directory, page, as_json)


@app.command()
def results(directory: StudyFolder, as_json: Json = False) -> None:
    """Print the runs table of a study."""
    from clue_ray.runs import read_runs

    table = read_runs(directory).table
    if as_json:
        print(table.to_json(orient="records"))
        return
    columns = ["run_id", "status", "encoder_size", "sequence_length", "global_batch_size", "corpus_users"]
    columns += ["num_workers", "train_flops", "loss", "recall_at_10", "mrr", "wall_seconds"]
    columns = [column for column in columns if column in table]
    order = "train_flops" if "train_flops" in columns else columns[:1]
    from clue_ray.study.tables import frame_table

    shown = table[columns].sort_values(order) if columns else table
    console.print(frame_table(shown, f"{directory}: {len(table)} runs"))


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
    table = Table(title=f"{fitted.law.name}: {fitted.law.formula}  ({fitted.num_runs} runs)", title_justify="left")
    for column in ("parameter", "value", "95 % from", "to"):
        table.add_column(column, justify="left" if column == "parameter" else "right")
    for name, value in fitted.parameters.items():
        table.add_row(name, *(f"{number:.6g}" for number in (value, *fitted.interval(name))))
    console.print(table)
    for warning in fitted.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)


@app.command()
def report(directory: StudyFolder, as_json: Json = False) -> None:
    """Fit the laws of a study again and write its report."""
    from clue_ray.report.page import write_report

    emit_laws(directory, write_report(directory), as_json)


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
    from clue_ray.study.tables import law_table

    fits = json.loads((directory / "fits.json").read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps({"report": str(page), **fits}))
        return
    if "error" in fits:
        console.print(f"No law was fitted: {fits['error']}", highlight=False)
    else:
        console.print(law_table(fits))
        console.print(fits["answer"], highlight=False)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)


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
