"""Read what a law is fitted to: the finished runs of a table, checked, as plain arrays.

All checks of the data are here. A user fixes rows, so every message names them: by run_id where
the table has one, otherwise by number from 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from clue_ray.errors import FitError, RunsError, nearest
from clue_ray.runs import Runs
from clue_ray.scaling.laws.law import Floats

if TYPE_CHECKING:  # pandas is slow to import, and `import clue_ray` should not be
    import pandas as pd

MAX_NAMED_ROWS = 4
"""Rows that a message names."""
MAX_SHOWN_CHARACTERS = 60
"""Length up to which a message shows a value."""
MIN_VALUE, MAX_VALUE = 1e-100, 1e100
"""Beyond these, squares and complex steps leave the range of floats."""
NON_NUMERIC_KINDS = {"b": "truth values", "c": "complex numbers", "m": "durations", "M": "dates"}
"""Kinds of dtype that convert to numbers without being any, in words."""

Table: TypeAlias = "Runs | pd.DataFrame | Mapping[str, Any]"


@dataclass(frozen=True)
class Sample:
    """Rows that a law can be fitted to.

    Attributes:
        x: predictors, (predictors, n).
        y: what the law predicts, (n,).
        candidates: size of the pool on which the loss was measured, where the table has it.
        left_out: the number of rows that are not done.
        ablations: the number of finished runs of one part of the encoder, which are not used.
    """

    x: Floats
    y: Floats
    candidates: int | None
    left_out: int
    ablations: int = 0


def select(table: Table, x: Sequence[str], y: str) -> Sample:
    """Read predictors and outcome of all done runs.

    Raises:
        RunsError: a column is missing, no run is done, or a value cannot be fitted.
    """
    frame = as_frame(table)
    for column in (*x, y):
        if column not in frame:
            raise RunsError(
                f"The runs table has no column {column!r}; {nearest(column, list(frame.columns))}"
            )
    runs = Runs(frame)
    done = runs.done
    if done.empty:
        found = Counter(frame["status"]) if "status" in frame else {}
        held = " and ".join(f"{name!r} {count} times" for name, count in found.items()) or "no row"
        raise RunsError(
            f"None of the {len(frame)} runs is done (column 'status' holds {held}); a law needs "
            "finished runs."
        )
    candidates = candidates_of(done)
    columns = [_read_numbers(done, column) for column in (*x, y)]
    return Sample(
        x=np.array(columns[:-1]),
        y=columns[-1],
        candidates=candidates,
        left_out=len(frame) - len(runs.finished),
        ablations=len(runs.ablations),
    )


def as_frame(table: Table) -> pd.DataFrame:
    """View any accepted table as a DataFrame.

    Raises:
        RunsError: it is not a table, or its columns differ in length or repeat.
    """
    import pandas as pd

    if not isinstance(table, Runs | pd.DataFrame | Mapping):
        raise RunsError(
            f"A table is a DataFrame, Runs or a mapping of columns, not {_brief(table)}; read a "
            f"file with read_runs."
        )
    if isinstance(table, Mapping):
        try:
            return pd.DataFrame({name: np.asarray(values) for name, values in table.items()})
        except ValueError as error:
            raise RunsError(
                f"The columns do not make a table ({error}); pass arrays of one length."
            ) from None
    frame = table.table if isinstance(table, Runs) else table
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise RunsError(f"The runs table has several columns {twice!r}; keep one of each name.")
    return frame


def finished(table: Table) -> pd.DataFrame:
    """Return the rows that a law may be fitted to, numbered as in the table."""
    return Runs(as_frame(table)).done


def check_once(done: pd.DataFrame) -> None:
    """Raise RunsError where a run_id appears in several rows, as it would count several times."""
    if "run_id" not in done:
        return
    from pandas.api.types import is_hashable

    odd = ~done["run_id"].map(is_hashable).to_numpy(dtype=bool)
    if odd.any():
        found = _cell(done["run_id"].iloc[int(odd.argmax())])
        raise RunsError(
            f"Column 'run_id' holds {found}; a run_id is text or a number: fix the column."
        )
    twice = done["run_id"].duplicated(keep=False) & done["run_id"].notna()
    if twice.any():
        rows = done[twice]
        raise RunsError(
            f"{rows['run_id'].nunique()} run_id values appear in several rows "
            f"({_name_rows(rows, by_number=True)}), first {rows['run_id'].iloc[0]!r}; "
            f"a run counts once, so keep one row of each."
        )


def candidates_of(done: pd.DataFrame) -> int | None:
    """Return the one pool size of the rows; None where no row has one.

    Raises:
        RunsError: the rows have different pool sizes, or a value that is not a pool size.
    """
    if "loss_candidates" not in done:
        return None
    filled = done[done["loss_candidates"].notna()]
    pools = _as_floats(filled["loss_candidates"])
    bad = ~(np.isfinite(pools) & (pools >= 2))
    if bad.any():
        found = _cell(filled["loss_candidates"].iloc[int(bad.argmax())])
        raise RunsError(
            f"Column 'loss_candidates' holds {found} in {_name_rows(filled[bad])}; a loss is "
            f"measured among 2 candidates or more: fix these rows, or drop the column."
        )
    sizes, counts = np.unique(pools, return_counts=True)
    if len(sizes) > 1:
        rare = sizes[np.argmin(counts)]
        raise RunsError(
            f"The runs' losses were measured on pools of "
            f"{', '.join(f'{size:g}' for size in sizes)} candidates and cannot be compared "
            f"({rare:g} in {_name_rows(filled[pools == rare])}); fit runs of one loss_candidates "
            f"at a time."
        )
    return int(sizes[0]) if len(sizes) else None


def place_of(columns: Sequence[str], at: Any) -> Floats:
    """Read the place of a prediction, a value per predictor column -> (predictors,).

    Raises:
        FitError: the columns do not match, or a value is not a positive finite number.
    """
    if not isinstance(at, Mapping) or set(columns) != set(at):
        named = ", ".join(map(str, at)) if isinstance(at, Mapping) else _brief(at)
        raise FitError(
            f"The law predicts from {', '.join(columns)}, not from {named or 'nothing'}."
        )
    for column in columns:
        if not (is_number(at[column]) and np.isfinite(at[column]) and at[column] > 0):
            raise FitError(
                f"Cannot predict at {column} {_brief(at[column])}; predictors are positive finite "
                f"numbers, one each."
            )
    return np.array([float(at[column]) for column in columns])


def is_number(value: Any) -> bool:
    """Return whether a value is one real number: not text, an array or a truth value."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def as_names(x: str | Sequence[str]) -> tuple[str, ...]:
    """Return one column or several as a tuple of names."""
    return (x,) if isinstance(x, str) else tuple(x)


def check_width(name: str, wanted: int, columns: tuple[str, ...]) -> None:
    """Raise FitError unless there are as many predictor columns as a law has predictors."""
    if wanted != len(columns):
        raise FitError(
            f"{name} has {wanted} predictor(s) but x names {len(columns)} ({', '.join(columns)})."
        )


def _read_numbers(done: pd.DataFrame, column: str) -> Floats:
    """Read a column as positive numbers (n,) in the allowed range; RunsError names other rows."""
    kind = NON_NUMERIC_KINDS.get(getattr(done[column].dtype, "kind", ""))
    if kind:
        raise RunsError(
            f"Column {column!r} holds {kind}; laws need positive finite numbers: convert the "
            f"column."
        )
    values = _as_floats(done[column])
    bad = ~((values >= MIN_VALUE) & (values <= MAX_VALUE))
    if bad.any():
        raise RunsError(
            f"Column {column!r} holds {_cell(done[column].iloc[int(bad.argmax())])} in "
            f"{_name_rows(done[bad])} ({int(bad.sum())} of {len(bad)} finished runs); laws need "
            f"positive finite numbers, {MIN_VALUE:g} to {MAX_VALUE:g}: fix these rows, drop them "
            f"or change the unit."
        )
    return values


def _as_floats(column: pd.Series) -> Floats:
    """Read cells as floats (n,), nan where a cell is not a number."""
    from pandas import to_numeric

    numbers = to_numeric(column, errors="coerce")
    return np.asarray(numbers.to_numpy(dtype=float, na_value=np.nan))


def _cell(value: Any) -> str:
    """Describe what a cell holds: a number as it is, the text 'n/a', a list."""
    if isinstance(value, str):
        return f"the text {value!r}"
    return f"a {type(value).__name__}" if hasattr(value, "__len__") else f"{value}"


def _brief(value: Any) -> str:
    """Return the repr of a value, or its type where the repr is long."""
    shown = repr(value).replace("\n", " ")
    return shown if len(shown) <= MAX_SHOWN_CHARACTERS else f"a {type(value).__name__}"


def _name_rows(rows: pd.DataFrame, by_number: bool = False) -> str:
    """Name rows by run_id, or by number: run a1f3; rows 0, 3 and 12 more."""
    numbered = by_number or "run_id" not in rows
    names = [str(name) for name in (rows.index if numbered else rows["run_id"])]
    kind = ("row" if numbered else "run") + ("s" if len(names) > 1 else "")
    more = f" and {len(names) - MAX_NAMED_ROWS} more" if len(names) > MAX_NAMED_ROWS else ""
    return f"{kind} {', '.join(names[:MAX_NAMED_ROWS])}{more}"
