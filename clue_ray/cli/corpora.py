"""Commands that make event logs and corpora."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clue_ray.cli.options import Address, Json, console
from clue_ray.spec.yaml import read_yaml


def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="A known public log, completejourney, or planted: one with a known law."
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Parquet file to write; a folder of them for a planted log.")
    ],
    spec: Annotated[
        Path | None, typer.Option(help="YAML file: users, services, topics ... of a planted log.")
    ] = None,
) -> None:
    """Build a public event log from its installed package, or a planted one from a spec."""
    if name == "planted":
        rows, note = (
            _fetch_planted(output, spec),
            "planted: users with known tastes; docs/reference/planted.md says how.",
        )
    else:
        from clue_ray.corpus.public import LICENCE_NOTE, fetch_source

        rows, note = fetch_source(name, output), LICENCE_NOTE
    console.print(f"{output}: {rows:,} events\n{note}", highlight=False, markup=False)


def _fetch_planted(output: Path, spec: Path | None) -> int:
    """Write a planted log and return its events."""
    from clue_ray.cluster.session import connect
    from clue_ray.corpus.planted import PlantedSpec, write_planted

    planted = PlantedSpec.parse({} if spec is None else read_yaml(spec), str(spec))
    with connect():
        return write_planted(planted, output)


def prepare(
    events: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, globs or URIs; or NAME=FILES, a log for each service."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder or URI to make; corpora/<key> when left out.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Renames: user_id=author,text=title")] = None,
    text: Annotated[
        str | None, typer.Option(help='Template of the item text: "{brand}; {title}"')
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(help="YAML file with more of a study's corpus section.")
    ] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Turn event logs into a corpus of training shards, with Ray Data, and tell what is in them."""
    from clue_ray.cli.options import make_corpus_spec

    corpus_spec = make_corpus_spec(events or [], columns, text, spec)
    from clue_ray.cli.tables import report_table
    from clue_ray.cluster.session import connect, data_pool
    from clue_ray.corpus.build import build_corpus
    from clue_ray.report.profile import profile_headline, profile_tables, write_profile
    from clue_ray.storage.place import check_writable, is_uri

    if output and is_uri(output):
        check_writable(
            output,
            "give --output a folder or URI that can be written, with credentials in the "
            "environment",
        )
    with connect(address), data_pool():
        corpus = build_corpus(corpus_spec, output)
    page, profile = write_profile(corpus.path), corpus.profile()
    if as_json:
        print(json.dumps({"path": corpus.place, "digest": corpus.digest, **profile}))
        return
    console.print(profile_headline(profile), highlight=False)
    for title, table in profile_tables(profile).items():
        console.print(report_table(title, table))
        if table.note:
            console.print(table.note, highlight=False, markup=False)
    where = f"Corpus: {corpus.place}, digest {corpus.digest}\nProfile: {page}"
    console.print(where, highlight=False, soft_wrap=True, markup=False)
