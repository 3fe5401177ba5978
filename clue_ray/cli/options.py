"""What several commands share: the console, options, and the arguments that name event logs."""

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from clue_ray.errors import SpecError
from clue_ray.spec.specs import CorpusSpec
from clue_ray.spec.yaml import read_yaml


class HomeGroup(TyperGroup):
    """Commands with `~` expanded where a shell does not do it: --output=~/a, shop=~/b."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Expand the home folder, then parse."""
        return list(super().parse_args(ctx, [_expand_home(argument) for argument in args]))


def _expand_home(argument: str) -> str:
    """Expand `~` at the start of an argument or behind its first equals sign."""
    found = re.fullmatch(r"((?:--?)?[^=~/]*=)?(~(?:/.*)?)", argument, re.DOTALL)
    return (found[1] or "") + os.path.expanduser(found[2]) if found else argument


console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)
"""Prints results as they are, brackets in paths included.

Without a terminal, as in a log file, it is wide enough for tables.
"""

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Output = Annotated[Path, typer.Option(help="Folder of corpora and studies.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(help="Names of columns in the logs, such as user_id=author,text=title."),
]
Address = Annotated[
    str | None,
    typer.Option(help="Address of a Ray cluster, HOST:PORT.", show_default="this machine"),
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="URI (s3://bucket/folder) or shared folder in which corpora and studies are kept."
    ),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Train failed runs again.")]
Grow = Annotated[
    float | None,
    typer.Option(min=1, help="Budget for runs added beyond the grid, training FLOPs."),
]
PredictAt = Annotated[
    float | None,
    typer.Option(
        min=1,
        help="Training FLOPs at which added runs narrow the predicted loss.",
        show_default="100 times the largest run",
    ),
]
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.")]
RunsOf = Annotated[
    Path,
    typer.Argument(
        metavar="RUNS",
        help="A study's directory, a table of runs (CSV, JSON Lines, Parquet), or what W&B, "
        "MLflow, TensorBoard or Ray Tune wrote.",
    ),
]
X = Annotated[
    str | None,
    typer.Option(help="Column that the loss falls with.", show_default="compute, by its name"),
]
Y = Annotated[
    str | None,
    typer.Option(help="Column of the loss; lower is better.", show_default="the loss, by its name"),
]
Where = Annotated[
    str | None,
    typer.Option(help="Condition that runs must meet, such as \"group == 'dense'\"."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Allow studies of more than 1,000 runs.")]
StudyFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The study's directory, <output>/<name>.")
]


def check_predict_at(grow: float | None, predict_at: float | None) -> None:
    """Raise SpecError where --predict-at is given without --grow."""
    if predict_at and not grow:
        raise SpecError(
            "--predict-at has no effect without added runs; give --grow FLOPS too, or leave it out."
        )


def make_corpus_spec(
    events: list[str], columns: list[str] | None, text: str | None, spec: Path | None
) -> CorpusSpec:
    """Build a corpus spec from EVENTS, --columns, --text and the file of --spec.

    Raises:
        SpecError: EVENTS are given twice or not at all, or a value cannot be parsed.
    """
    document: Any = {} if spec is None else read_yaml(spec)
    if not isinstance(document, dict):
        raise SpecError(
            f"Corpus file {spec} holds a {type(document).__name__}; write the keys of a study's "
            f"corpus section."
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
    if columns:
        document["columns"] = _parse_columns(",".join(columns))
    return CorpusSpec.parse(document, str(spec or "prepare"))


def _parse_events(events: list[str]) -> list[str] | dict[str, list[str]]:
    """Parse EVENTS: files, or SERVICE=FILES with one log per service."""
    named = [(place.split("=", 1) if _is_named(place) else ["", place]) for place in events]
    if not any(name for name, _ in named):
        return list(events)
    if not all(name for name, _ in named):
        raise SpecError(
            f"EVENTS are {' '.join(events)!r}; name a service before each, SERVICE=FILES, or "
            f"before none of them."
        )
    names = dict.fromkeys(name for name, _ in named)
    return {name: [place for other, place in named if other == name] for name in names}


def _is_named(place: str) -> bool:
    """Return whether an argument is SERVICE=FILES; a path may contain an = sign too."""
    name, equals, _ = place.partition("=")
    return bool(equals) and not set(name) & set("/\\:*?.") and not Path(place).exists()


def _parse_columns(columns: str) -> dict[str, str]:
    """Parse renamed columns, such as user_id=author,text=title."""
    pairs = [part.split("=", 1) for part in columns.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise SpecError(f"--columns is {columns!r}; write it as user_id=author,text=title.")
    return {role.strip(): column.strip() for role, column in pairs}
