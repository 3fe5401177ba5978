"""Commands that use trained encoders: embed users, evaluate on downstream tasks, export."""

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clue_ray.cli.options import Address, Columns, Json, Storage, console, make_corpus_spec

if TYPE_CHECKING:
    from clue_ray.transfer.tasks.spec import TaskSpec


RunFolder = Annotated[
    str, typer.Argument(metavar="RUN", help="Folder or URI of a finished run or of its encoder.")
]


class Precision(StrEnum):
    """Number formats of the vectors."""

    float32 = "float32"
    float16 = "float16"


class MatrixFormat(StrEnum):
    """Formats of a matrix of vectors."""

    parquet = "parquet"
    npy = "npy"


def embed(
    run: RunFolder,
    output: Annotated[str, typer.Option(help="Folder or URI to write the vectors to.")],
    events: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, globs or URIs of logs; or SERVICE=FILES for each service."
        ),
    ] = None,
    columns: Columns = None,
    text: Annotated[
        str | None, typer.Option(help="Template of the item text.", show_default="the encoder's")
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(help="YAML file with any of the keys events, columns, text and services."),
    ] = None,
    per_service: Annotated[
        bool, typer.Option("--per-service", help="Write one vector per user and service.")
    ] = False,
    precision: Annotated[
        Precision, typer.Option(help="Number format of the vectors.")
    ] = Precision.float32,
    since: Annotated[
        str | None,
        typer.Option(help="Earlier output of this command: embed only users with new events."),
    ] = None,
    users: Annotated[
        str | None,
        typer.Option(
            help="List of users (.npy, CSV, Parquet): embed these, and write a matrix in its order."
        ),
    ] = None,
    form: Annotated[
        MatrixFormat,
        typer.Option("--format", help="npy: write a matrix as client_ids.npy and embeddings.npy."),
    ] = MatrixFormat.parquet,
    join: Annotated[
        list[str] | None,
        typer.Option(help="Another output of this command, as further columns of the matrix."),
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option(min=0, help="GPUs per encoding actor. With 0, tasks run on CPUs.")
    ] = 0,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Embed the users of event logs with a trained encoder.

    Run the same command again to resume.
    """
    corpus_spec = make_corpus_spec(events or [], columns, text, spec)
    from clue_ray.transfer.encoder_file import read_encoder

    read_encoder(run)  # raises for a wrong folder before Ray starts
    from clue_ray.cluster.session import connect
    from clue_ray.transfer.embed.embed import embed_users

    with connect(address):
        manifest = embed_users(
            run,
            corpus_spec,
            output,
            precision="float16" if precision is Precision.float16 else "float32",
            per_service=per_service,
            since=since,
            gpus_per_worker=gpus_per_worker,
            users=users,
            form="npy" if form is MatrixFormat.npy else "parquet",
            join=join or [],
        )
    if as_json:
        return print(json.dumps(manifest))
    for line in _describe_embedding(output, manifest, gpus_per_worker):
        console.print(line, highlight=False, markup=False)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    output: Annotated[Path, typer.Option(help="New or empty folder for the encoder.")],
    as_json: Json = False,
) -> None:
    """Export a trained encoder with a model card, for use with or without clue-ray."""
    from clue_ray.transfer.export import export_model

    written = export_model(run, output)
    if as_json:
        return print(json.dumps(written))
    console.print(f"{output}: {', '.join(written['files'])}", highlight=False, markup=False)
    console.print(f"ONNX file: {written['onnx']}.", highlight=False, markup=False)
    console.print("Fill in the licence in README.md.", highlight=False, markup=False)


def _describe_embedding(
    output: str, manifest: dict[str, Any], gpus_per_worker: float
) -> Iterator[str]:
    """Describe what `embed_users` wrote, and what it left out or did not expect."""
    yield f"{output}: {manifest['vectors']:,} vectors of {manifest['users']:,} users"
    if matrix := manifest.get("matrix"):
        yield (
            f"{output}/matrix: {matrix['rows']:,} users of {matrix['columns']:,} numbers, "
            f"{matrix['without_vector']:,} of them zeros, listed in without_vector.parquet"
        )
    for reason, users in manifest["left_out"].items():
        yield f"left out, {reason}: {users:,} users"
    if nameless := manifest["rows_without_user"]:
        yield f"{nameless:,} of {manifest['rows']:,} rows have no user"
    for service, rows in manifest["unknown_services"].items():
        yield (
            f"service {service!r} is unknown to the encoder: {rows:,} events were encoded with the "
            f"shared guide token"
        )
    for service in manifest["absent_services"]:
        yield f"service {service!r} was requested, but no new event of the log belongs to it"
    if gpus_per_worker and (parts := manifest["devices"].get("cpu")):
        yield (
            f"{parts} of {manifest['parts']} parts were encoded on CPUs, because torch found no "
            f"GPU there"
        )


def transfer(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|DIR",
            help="Folder of a finished run, or the directory of a study to evaluate all its runs.",
        ),
    ],
    tasks: Annotated[list[Path], typer.Argument(metavar="TASK.yaml...", help="The task files.")],
    against: Annotated[
        list[str] | None,
        typer.Option(help="Another encoder to compare with, NAME=RUN. Repeat for several."),
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option(min=0, help="GPUs per run and task, to encode users on.")
    ] = 0,
    address: Address = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Evaluate a trained encoder (frozen) on downstream tasks, next to baselines."""
    from clue_ray.transfer.tasks.spec import parse_against, read_tasks

    specs, others = read_tasks(tasks), parse_against(against or [])
    if storage or Path(run, "owner.json").is_file():
        results = _score_study(Path(run), specs, others, address, storage, gpus_per_worker)
    else:
        from clue_ray.transfer.tasks.evaluate import run_task

        results = [run_task(run, spec, others, gpus=gpus_per_worker) for spec in specs]
    if as_json:
        print(json.dumps(results))
    else:
        _show_results(results)
    if any("error" in result for result in results):
        raise typer.Exit(1)


def _score_study(
    run: Path,
    tasks: list["TaskSpec"],
    against: dict[str, str],
    address: str | None,
    storage: str | None,
    gpus_per_worker: float,
) -> list[dict[str, Any]]:
    """Evaluate every finished run of a study, and add the scores to its runs table."""
    from clue_ray.cluster.session import connect
    from clue_ray.study.scoring import score_study

    with connect(address):
        return score_study(run, tasks, against, storage, gpus_per_worker)


def _show_results(results: list[dict[str, Any]]) -> None:
    """Print a table per task, or why there is none."""
    from clue_ray.cli.tables import task_table, task_words

    for result in results:
        if "error" in result:
            console.print(
                f"{result['task']}: run {result['run_id']} has no score. {result['error']}",
                highlight=False,
                markup=False,
            )
            continue
        console.print(task_table(result))
        console.print(task_words(result), highlight=False, markup=False)
