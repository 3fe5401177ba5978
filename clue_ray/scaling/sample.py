"""What a law is fitted to: the finished runs of a table, checked, as plain arrays.

Takes a runs table (ours, a DataFrame, a mapping of arrays) and column names; gives a `Sample`, or one
sentence that says why the rows cannot be fitted. The one idea: all doubts about the data are settled here,
once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from clue_ray.errors import FitError, RunsError, nearest
from clue_ray.runs import Runs
from clue_ray.scaling.law import Floats
from clue_ray.scaling.rows import candidates_of, read_numbers

__all__ = [
    "Sample",
    "Table",
    "as_frame",
    "as_names",
    "candidates_of",
    "check_width",
    "finished",
    "is_number",
    "place_of",
    "select",
]

Table = Runs | pd.DataFrame | Mapping[str, Any]
SHORT = 60  # letters of a value that a sentence has room for


@dataclass(frozen=True)
class Sample:
    """Rows fit for fitting.

    Attributes:
        x: predictors, (predictors, n).
        y: what the law predicts, (n,).
        candidates: size of the pool on which the loss was measured, where the table has the column.
        left_out: rows that are not done.
    """

    x: Floats
    y: Floats
    candidates: int | None
    left_out: int


def select(table: Table, x: Sequence[str], y: str) -> Sample:
    """Read predictors and outcome of all done runs; raise RunsError where they cannot be fitted."""
    frame = as_frame(table)
    for column in (*x, y):
        if column not in frame:
            raise RunsError(f"The runs table has no column {column!r}; {nearest(column, list(frame.columns))}")
    done = Runs(frame).done
    if done.empty:
        raise RunsError(f"None of the {len(frame)} runs is done; a law needs finished runs.")
    candidates = candidates_of(done)
    columns = [read_numbers(done, column) for column in (*x, y)]
    return Sample(np.array(columns[:-1]), columns[-1], candidates, len(frame) - len(done))


def as_frame(table: Table) -> pd.DataFrame:
    """View any accepted table as a DataFrame; RunsError where it is none, or its columns differ in length or repeat."""
    if not isinstance(table, Runs | pd.DataFrame | Mapping):
        raise RunsError(
            f"A table is a DataFrame, Runs or a mapping of columns, not {_brief(table)}; read a file with read_runs."
        )
    if isinstance(table, Mapping):
        try:
            return pd.DataFrame({name: np.asarray(values) for name, values in table.items()})
        except ValueError as error:
            raise RunsError(f"The columns do not make a table ({error}); give arrays of one length.") from None
    frame = table.table if isinstance(table, Runs) else table
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise RunsError(f"The runs table has several columns {twice!r}; keep one of each name.")
    return frame


def finished(table: Table) -> pd.DataFrame:
    """Give the rows that a law may be fitted to, numbered as in the table."""
    return Runs(as_frame(table)).done


def place_of(columns: Sequence[str], at: Any) -> Floats:
    """Read a place, a value a predictor column -> (predictors,); FitError unless each has a positive finite number."""
    if not isinstance(at, Mapping) or set(columns) != set(at):
        named = ", ".join(map(str, at)) if isinstance(at, Mapping) else _brief(at)
        raise FitError(f"The law predicts from {', '.join(columns)}, not from {named or 'nothing'}.")
    for column in columns:
        if not (is_number(at[column]) and np.isfinite(at[column]) and at[column] > 0):
            raise FitError(
                f"Cannot predict at {column} {_brief(at[column])}; predictors are positive finite numbers, one each."
            )
    return np.array([float(at[column]) for column in columns])


def is_number(value: Any) -> bool:
    """Tell whether a value is one real number: no text, no array, no truth value."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _brief(value: Any) -> str:
    """Show a value in the room that a sentence has."""
    shown = repr(value).replace("\n", " ")
    return shown if len(shown) <= SHORT else f"a {type(value).__name__}"


def as_names(x: str | Sequence[str]) -> tuple[str, ...]:
    """Read one column or several as a tuple of names."""
    return (x,) if isinstance(x, str) else tuple(x)


def check_width(name: str, wanted: int, columns: tuple[str, ...]) -> None:
    """Raise FitError unless a law is given as many predictors as it has."""
    if wanted != len(columns):
        raise FitError(f"{name} has {wanted} predictor(s) but x names {len(columns)} ({', '.join(columns)}).")
