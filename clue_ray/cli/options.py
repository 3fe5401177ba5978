"""The console and the options that several commands share."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console(width=None if sys.stdout.isatty() else 160)
"""Without a terminal, as in a log, tables keep their columns."""

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Output = Annotated[Path, typer.Option(help="Folder for corpora and studies.")]
Address = Annotated[str | None, typer.Option(help="HOST:PORT of a Ray cluster; this machine when left out.")]
Storage = Annotated[
    str | None,
    typer.Option(help="URI (s3://bucket/folder) or shared folder where corpora and studies have their home."),
]
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Study file.")]
Yes = Annotated[bool, typer.Option("--yes", help="Allow axes that multiply to more than 1,000 runs.")]
StudyFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Study directory, <output>/<name>.")]
