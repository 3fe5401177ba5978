"""Commands that use a trained encoder: vectors of users, and what they are worth on other tasks."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clue_ray.cli.options import Address, Json, Storage, console

if TYPE_CHECKING:
    from clue_ray.transfer.tasks.spec import TaskSpec


RunFolder = Annotated[
    str, typer.Argument(metavar="RUN", help="Folder or URI of a finished run, or of its encoder.")
]


class Precision(StrEnum):
    """Numbers of a vector."""

    float32 = "float32"
    float16 = "float16"


def embed(
    run: RunFolder,
    output: Annotated[str, typer.Option(help="Folder or URI to fill.")],
    events: Annotated[
        list[str] | None, typer.Argument(help="Files, folders, globs or URIs; or NAME=FILES.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Renames: user_id=author,text=title")] = None,
    text: Annotated[
        str | None, typer.Option(help="Template of the item text; the encoder's when left out.")
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(help="YAML file: events, columns, text, services.")
    ] = None,
    per_service: Annotated[
        bool, typer.Option("--per-service", help="One vector a user and service.")
    ] = False,
    precision: Annotated[Precision, typer.Option(help="Numbers of a vector.")] = Precision.float32,
    since: Annotated[
        str | None, typer.Option(help="An earlier embedding: only users with new events.")
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option(min=0, help="GPUs an encoding actor holds; 0: tasks on CPUs.")
    ] = 0,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Turn the users of a log into vectors with a trained encoder. The same command again
    resumes.
    """
    from clue_ray.cli.options import make_corpus_spec

    corpus_spec = make_corpus_spec(events or [], columns, text, spec)
    from clue_ray.transfer.encoder_file import read_encoder

    read_encoder(run)  # a wrong folder is told before Ray starts
    from clue_ray.cluster.session import connect
    from clue_ray.transfer.embed.embed import embed_users

    settings = {"per_service": per_service, "since": since, "gpus_per_worker": gpus_per_worker}
    with connect(address):
        # type: ignore[arg-type]
        manifest = embed_users(run, corpus_spec, output, precision=precision.value, **settings)
    if as_json:
        return print(json.dumps(manifest))
    console.print(
        f"{output}: {manifest['vectors']:,} vectors of {manifest['users']:,} users", highlight=False
    )
    for reason, users in manifest["left_out"].items():
        console.print(f"left out, {reason}: {users:,} users", highlight=False, markup=False)
    if nameless := manifest["rows_without_user"]:
        console.print(f"{nameless:,} of {manifest['rows']:,} rows name no user", highlight=False)
    for service, rows in manifest["unknown_services"].items():
        note = f"service {service!r} is unknown to the encoder: {rows:,} events read under the shared guide token"
        console.print(note, highlight=False, markup=False)
    for service in manifest["absent_services"]:
        note = f"service {service!r} was asked for, and no new event of the log names it"
        console.print(note, highlight=False, markup=False)
    if gpus_per_worker and (parts := manifest["devices"].get("cpu")):
        console.print(
            f"torch saw no GPU where {parts} of {manifest['parts']} parts were encoded: they were "
            f"on CPUs"
        )


def transfer(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|DIR", help="A finished run, or a study directory: all its runs."
        ),
    ],
    tasks: Annotated[list[Path], typer.Argument(metavar="TASK.yaml...", help="Task files.")],
    against: Annotated[
        list[str] | None,
        typer.Option(help="NAME=RUN, another run's encoder beside it; repeat for several."),
    ] = None,
    address: Address = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Put a trained encoder, or each of a study's, to downstream tasks, features frozen, beside the
    baselines.
    """
    from clue_ray.transfer.tasks.spec import parse_against, read_tasks

    specs, others = read_tasks(tasks), parse_against(against or [])
    if storage or Path(run, "owner.json").is_file():
        results = _score_study(Path(run), specs, others, address, storage)
    else:
        from clue_ray.transfer.tasks.evaluate import run_task

        results = [run_task(run, spec, others) for spec in specs]
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
) -> list[dict[str, Any]]:
    """Put every finished run of a study to the tasks, and add their columns to its table."""
    from clue_ray.cluster.session import connect
    from clue_ray.study.scoring import score_study

    with connect(address):
        return score_study(run, tasks, against, storage)


def _show_results(results: list[dict[str, Any]]) -> None:
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
