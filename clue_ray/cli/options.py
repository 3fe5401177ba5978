"""The console and the options that several commands share.

What `clue-ray prepare` is given, as a corpus spec: EVENTS, --columns, --text and a --spec file
joined.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from clue_ray.errors import SpecError
from clue_ray.spec.specs import CorpusSpec
from clue_ray.spec.yaml import read_yaml

console = Console(width=None if sys.stdout.isatty() else 160)
"""Without a terminal, as in a log, tables keep their columns."""


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Output = Annotated[Path, typer.Option(help="Folder for corpora and studies.")]
Address = Annotated[
    str | None, typer.Option(help="HOST:PORT of a Ray cluster; this machine when left out.")
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="URI (s3://bucket/folder) or shared folder where corpora and studies have their home."
    ),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Train again what failed before.")
]
Grow = Annotated[float | None, typer.Option(min=1, help="FLOP to spend on runs beyond the grid.")]
PredictAt = Annotated[
    float | None, typer.Option(min=1, help="Compute whose loss they are to narrow, FLOP.")
]
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Study file.")]
Yes = Annotated[
    bool, typer.Option("--yes", help="Allow axes that multiply to more than 1,000 runs.")
]
StudyFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Study directory, <output>/<name>.")
]


def check_growth(grow: float | None, predict_at: float | None) -> None:
    """Refuse a compute to predict at where no runs are added."""
    if predict_at and not grow:
        raise SpecError(
            "--predict-at says what added runs are to narrow; give --grow FLOPS too, or leave it "
            "out."
        )


def make_corpus_spec(
    events: list[str], columns: str | None, text: str | None, spec: Path | None
) -> CorpusSpec:
    """Join the command line's own settings with those of a corpus file."""
    document: Any = {} if spec is None else read_yaml(spec)
    if not isinstance(document, dict):
        raise SpecError(
            f"Corpus file {spec} holds {type(document).__name__}, not the keys of a study's corpus "
            f"section."
        )
    if bool(events) == ("events" in document):
        where = (
            f"both as arguments and in {spec}"
            if events
            else "neither as arguments nor by a --spec file"
        )
        raise SpecError(f"EVENTS are given {where}; give them once.")
    if events:
        document["events"] = _parse_events(events)
    if text is not None:
        document["text"] = text
    if columns is not None:
        document["columns"] = _parse_columns(columns)
    return CorpusSpec.parse(document, str(spec or "prepare"))


def _parse_events(events: list[str]) -> list[str] | dict[str, list[str]]:
    """Tell NAME=FILES, a log for each service, from files; a path may hold an = sign itself."""
    named = [(place.split("=", 1) if _is_named(place) else ["", place]) for place in events]
    if not any(name for name, _ in named):
        return list(events)
    if not all(name for name, _ in named):
        raise SpecError(
            f"EVENTS are {' '.join(events)!r}; name a service before each, NAME=FILES, or before "
            f"none."
        )
    names = dict.fromkeys(name for name, _ in named)
    return {name: [place for other, place in named if other == name] for name in names}


def _is_named(place: str) -> bool:
    """Tell whether an argument reads NAME=FILES."""
    name, equals, _ = place.partition("=")
    return bool(equals) and not set(name) & set("/\\:*?.") and not Path(place).exists()


def _parse_columns(columns: str) -> dict[str, str]:
    """Parse user_id=author,text=title."""
    pairs = [part.split("=", 1) for part in columns.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise SpecError(f"--columns is {columns!r}; write it as user_id=author,text=title.")
    return {role.strip(): column.strip() for role, column in pairs}
