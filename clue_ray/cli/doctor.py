"""The command that examines a machine or a cluster."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from clue_ray.cli.options import Address, Json, Storage, console

if TYPE_CHECKING:
    from clue_ray.cluster.diagnose import Finding

STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(
    address: Address = None,
    storage: Storage = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of corpora and studies that all nodes share.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check versions, ports, places, GPUs, limits, disks and clocks of every node of a cluster.

    The exit code is 1 if a problem is found that stops studies; warnings leave it 0.
    """
    from clue_ray.cluster.diagnose import ORDER, worst
    from clue_ray.study.doctor import examine

    findings = examine(address, [str(place) for place in (storage, output) if place])
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        console.print(_render(findings))
        counts = Counter(finding.verdict for finding in findings)
        console.print(", ".join(f"{counts[verdict]} {verdict}" for verdict in ORDER))
    if worst(findings) == "problem":
        raise typer.Exit(1)


def _render(findings: list["Finding"]) -> Table:
    """Return the findings as a table."""
    table = Table()
    for head in ("node", "check", "verdict", "found", "what to do"):
        table.add_column(head, overflow="fold")
    for finding in findings:
        verdict = Text(finding.verdict, style=STYLES[finding.verdict])
        cells = (finding.node, finding.check, verdict, finding.found, finding.remedy)
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
    return table
