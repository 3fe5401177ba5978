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
from clue_ray.scaling.laws import Floats

Table = Runs | pd.DataFrame | Mapping[str, Any]


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
    columns = [_positive(done, column) for column in (*x, y)]
    return Sample(np.array(columns[:-1]), columns[-1], candidates_of(done), len(frame) - len(done))


def as_frame(table: Table) -> pd.DataFrame:
    """View any accepted table as a DataFrame; raise RunsError when its columns differ in length."""
    if isinstance(table, Runs):
        return table.table
    if isinstance(table, pd.DataFrame):
        return table
    try:
        return pd.DataFrame({name: np.asarray(values) for name, values in table.items()})
    except ValueError as error:
        raise RunsError(f"The columns do not make a table ({error}); give arrays of one length.") from None


def candidates_of(done: pd.DataFrame) -> int | None:
    """Return the one pool size of the rows, None when they do not say; raise RunsError when they disagree."""
    if "loss_candidates" not in done:
        return None
    found = sorted(done["loss_candidates"].dropna().unique())
    if len(found) > 1:
        shown = ", ".join(f"{value:g}" for value in found)
        raise RunsError(
            f"The runs' losses were measured on pools of {shown} candidates and cannot be compared; "
            "fit runs of one loss_candidates at a time."
        )
    return int(found[0]) if found else None


def as_names(x: str | Sequence[str]) -> tuple[str, ...]:
    """Read one column or several as a tuple of names."""
    return (x,) if isinstance(x, str) else tuple(x)


def check_width(name: str, wanted: int, columns: tuple[str, ...]) -> None:
    """Raise FitError unless a law is given as many predictors as it has."""
    if wanted != len(columns):
        raise FitError(f"{name} has {wanted} predictor(s) but x names {len(columns)} ({', '.join(columns)}).")


def _positive(done: pd.DataFrame, column: str) -> Floats:
    """Read a column as positive finite numbers."""
    values: Floats = pd.to_numeric(done[column], errors="coerce").to_numpy(dtype=float)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        raise RunsError(
            f"Column {column!r} holds {done[column].iloc[int(bad.argmax())]!r} in a finished run "
            f"({int(bad.sum())} such rows of {len(bad)}); laws need positive finite numbers; mend them."
        )
    return values
