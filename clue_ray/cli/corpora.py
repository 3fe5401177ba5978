"""Commands that build event logs and corpora."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clue_ray.cli.options import Address, Columns, Json, console, make_corpus_spec
from clue_ray.spec.specs import CorpusSpec
from clue_ray.spec.yaml import read_yaml


def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="completejourney, a public log, or completejourney-products, its baskets and a "
            "catalogue; planted, a log drawn from a known model; or "
            "planted-recsys2025, the same in the files of the RecSys Challenge 2025."
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Parquet file to write; for a planted log, a folder of them.")
    ],
    spec: Annotated[
        Path | None,
        typer.Option(help="YAML file with the parameters of a planted log: users, services, ..."),
    ] = None,
) -> None:
    """Build a public event log from its installed package, or draw a planted one."""
    if name == "planted-recsys2025":
        from clue_ray.corpus.planted_recsys import PlantedRecsysSpec, write_planted_recsys

        drawn = PlantedRecsysSpec.parse({} if spec is None else read_yaml(spec), str(spec))
        rows, note = write_planted_recsys(drawn, output), "planted: drawn from a known model."
    elif name == "planted":
        rows = _fetch_planted(output, spec)
        note = "planted: drawn from a known model, see docs/reference/planted.md."
    else:
        from clue_ray.corpus.public import LICENCE_NOTE, fetch_source

        rows, note = fetch_source(name, output), LICENCE_NOTE
    console.print(f"{output}: {rows:,} events\n{note}", highlight=False, markup=False)


def _fetch_planted(output: Path, spec: Path | None) -> int:
    """Write a planted log and return its number of events."""
    from clue_ray.cluster.session import connect
    from clue_ray.corpus.planted import PlantedSpec, write_planted

    planted = PlantedSpec.parse({} if spec is None else read_yaml(spec), str(spec))
    with connect():
        return write_planted(planted, output)


def prepare(
    events: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, globs or URIs of logs; or SERVICE=FILES for each service."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder or URI of the corpus.", show_default="corpora/<key>")
    ] = None,
    columns: Columns = None,
    text: Annotated[
        str | None, typer.Option(help='Template of the item text, such as "{brand}; {title}".')
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(help="YAML file with further fields of a study's corpus section."),
    ] = None,
    address: Address = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Read only a sample, without Ray: print how it will be read; write nothing.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Build a corpus of training shards from event logs with Ray Data, and print its profile."""
    corpus_spec = make_corpus_spec(events or [], columns, text, spec)
    if check:
        _print_check(corpus_spec, as_json)
        return
    from clue_ray.cli.tables import report_table
    from clue_ray.cluster.session import connect, data_pool
    from clue_ray.corpus.build import build_corpus
    from clue_ray.report.profile import profile_headline, profile_tables, write_profile
    from clue_ray.storage.place import check_writable, is_uri

    if output and is_uri(output):  # before the logs are read, which can take hours
        check_writable(
            output,
            "set --output to a folder or URI that can be written, with credentials in the "
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


def _print_check(spec: CorpusSpec, as_json: bool) -> None:
    """Print how a sample of the logs will be read."""
    from clue_ray.cli.check import render_check
    from clue_ray.corpus.check import check_events

    found = check_events(spec)
    if as_json:
        print(json.dumps(found.as_json()))
    else:
        console.print(render_check(found), highlight=False)
