"""The console and the options that several commands share."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from clue_ray.errors import SpecError

console = Console(width=None if sys.stdout.isatty() else 160)
"""Without a terminal, as in a log, tables keep their columns."""

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Output = Annotated[Path, typer.Option(help="Folder for corpora and studies.")]
Address = Annotated[str | None, typer.Option(help="HOST:PORT of a Ray cluster; this machine when left out.")]
Storage = Annotated[
    str | None,
    typer.Option(help="URI (s3://bucket/folder) or shared folder where corpora and studies have their home."),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Train again what failed before.")]
Grow = Annotated[float | None, typer.Option(min=1, help="FLOP to spend on runs beyond the grid.")]
PredictAt = Annotated[float | None, typer.Option(min=1, help="Compute whose loss they are to narrow, FLOP.")]
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Study file.")]
Yes = Annotated[bool, typer.Option("--yes", help="Allow axes that multiply to more than 1,000 runs.")]
StudyFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Study directory, <output>/<name>.")]


def check_growth(grow: float | None, predict_at: float | None) -> None:
    """Refuse a compute to predict at where no runs are added."""
    if predict_at and not grow:
        raise SpecError("--predict-at says what added runs are to narrow; give --grow FLOPS too, or leave it out.")
