"""Open the runs that a command is given: of a study, or of another tool with a note per choice."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clue_ray.errors import RunsError
from clue_ray.foreign.study import is_study, usable_source

if TYPE_CHECKING:
    from rich.console import Console

    from clue_ray.foreign.table import ImportedRuns
    from clue_ray.runs import Runs

X, Y = "train_flops", "loss"
LEFT_OUT = re.compile(r" and (is|are) left out of the fit\.")
"""End of a note on runs that cannot be used."""


@dataclass(frozen=True)
class OpenedRuns:
    """Runs, and the columns to fit.

    Attributes:
        runs: the table.
        x, y: predictor columns and the column to predict, as the table has them.
        called_x, called_y: what the first two are called where the user reads them.
        notes: how the runs of another tool were read; empty for a table of clue-ray.
    """

    runs: "Runs"
    x: list[str]
    y: str
    called_x: str
    called_y: str
    notes: tuple[str, ...] = ()

    def print_notes(self, console: "Console") -> None:
        """Print how the runs were read."""
        for note in self.notes:
            console.print(f"note: {note}", style="dim", highlight=False)


def open_runs(path: Path, x: Sequence[str] | None, y: str | None, where: str | None) -> OpenedRuns:
    """Read runs; a table that has the columns as they are asked for is taken as it is.

    Compute in another unit is converted to FLOP in any case.

    Raises:
        RunsError: nothing can be read, or a column is not there.
    """
    from clue_ray.foreign.names import converted, flop_per_unit
    from clue_ray.foreign.read import one_row_per_run
    from clue_ray.foreign.table import import_runs, select_rows
    from clue_ray.runs import Runs, read_runs

    columns, loss = list(x or [X]), y or Y
    own = read_runs(path) if is_study(path) or _is_table(path) else None
    other_units = [name for name in columns if flop_per_unit(name) != 1]
    as_asked = own is not None and {*columns, loss} <= set(map(str, own.table))
    if own is not None and (is_study(path) or (as_asked and not other_units)):
        table, notes = (own.table, []) if is_study(path) else one_row_per_run(own.table, path)
        kept = Runs(select_rows(table, where))
        return OpenedRuns(kept, columns, loss, columns[0], loss, tuple(notes))
    found = import_runs(path, x=x[0] if x else None, y=y, where=where)
    _check_usable(found)
    if not x or len(x) == 1:
        return OpenedRuns(found.runs, [X], Y, found.x.label, found.y.label, found.notes)
    _check_present(found.runs, x[1:])
    spent = [found.x.column, *x[1:]]
    table = found.runs.table
    table = table.assign(**{name: table[name] * flop_per_unit(name) for name in spent})
    notes = [*found.notes, *(converted(name) for name in x[1:] if name in other_units)]
    return OpenedRuns(Runs(table), spent, Y, found.x.label, found.y.label, tuple(notes))


def _check_usable(found: "ImportedRuns") -> None:
    """Raise RunsError where all runs are left out of the fit, with the reasons."""
    if found.runs.finished.empty:
        reasons = [LEFT_OUT.sub("", note) for note in found.notes if LEFT_OUT.search(note)]
        raise RunsError(f"No run can be fitted: {'; '.join(reasons)}; give other --x or --y.")


def _check_present(runs: "Runs", columns: Sequence[str]) -> None:
    """Raise RunsError where the table lacks one of several predictors."""
    absent = [name for name in columns if name not in runs.table]
    if absent:
        raise RunsError(
            f"The runs have no column {absent[0]!r}; with several --x, write each as the table "
            "does."
        )


def _is_table(path: Path) -> bool:
    """Return whether a file is a table, not a database or an event file of a tracker."""
    from clue_ray.foreign.read import DATABASES

    return (
        path.is_file() and path.suffix not in {*DATABASES, ".wandb"} and "tfevents" not in path.name
    )


def write_directory(
    path: Path, x: str | None, y: str | None, where: str | None, output: Path
) -> Path:
    """Write the runs of another tool as a directory that reports are made from; return it.

    Raises:
        RunsError: the runs cannot be read, or something else is in the place of the directory.
    """
    from clue_ray.foreign.table import import_runs
    from clue_ray.report.read import SOURCE
    from clue_ray.storage.files import write_json

    found = import_runs(path, x=x, y=y, where=where)
    home = output / (path.resolve().name.split(".")[0] or "runs")
    _check_place(home, path)
    home.mkdir(parents=True, exist_ok=True)
    found.runs.write(home)
    source = {
        "name": home.name,
        "path": str(path.resolve()),
        "names": found.naming(),
        "notes": list(found.notes),
        "warnings": list(found.warnings),
    }
    write_json(home / SOURCE, source)
    return home


def _check_place(home: Path, path: Path) -> None:
    """Raise RunsError where a directory holds anything but an earlier page of the same runs."""
    if (home / "plan.json").exists() or home.resolve() == path.resolve():
        raise RunsError(f"{home} is the directory of a study; give another --output.")
    other = read_source(home).get("path")
    if other is not None and Path(other).resolve() != path.resolve():
        raise RunsError(f"{home} is the page of {other}; give another --output, or delete it.")


def read_source(directory: Path) -> dict[str, Any]:
    """Return how the runs of another tool were read; nothing for a study."""
    from clue_ray.report.read import SOURCE
    from clue_ray.storage.files import read_json

    file = directory / SOURCE
    return usable_source(read_json(file)) if file.is_file() else {}
