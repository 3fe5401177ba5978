"""What is wrong with the rows of a runs table, said with the rows at fault.

Takes finished runs; gives plain arrays, or raises RunsError. The one idea: a reader mends rows, so
a sentence names
them: by run_id where the table has one, by number from 0 where not.


What a law is fitted to: the finished runs of a table, checked, as plain arrays.

Takes a runs table (ours, a DataFrame, a mapping of arrays) and column names; gives a `Sample`, or
one sentence that says why the rows cannot be fitted. The one idea: all doubts about the data are
settled here, once.


What keeps a law from being fitted: arguments that cannot be meant, too few runs, a function that is
    none.

Takes a law and its data; raises FitError or returns. The one idea: what would end in a traceback,
or in numbers that mean nothing, is refused in one sentence before it is tried. What is wrong with
rows, `rows.py` says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from clue_ray.errors import FitError, RunsError, nearest
from clue_ray.runs import Runs
from clue_ray.scaling.fitting.problem import Problem, differentiate
from clue_ray.scaling.laws.law import Floats, Law

SHOWN = 4  # rows that a sentence names
SMALLEST, LARGEST = 1e-100, 1e100  # beyond, squares and complex steps leave the range of floats
NO_NUMBERS = {
    "b": "truth values",
    "c": "complex numbers",
    "m": "durations",
    "M": "dates",
}  # by kind of dtype


def check_once(done: pd.DataFrame) -> None:
    """Raise RunsError where a run_id stands in several rows, as it would count several times."""
    if "run_id" not in done:
        return
    odd = ~done["run_id"].map(pd.api.types.is_hashable).to_numpy(dtype=bool)
    if odd.any():
        raise RunsError(
            f"Column 'run_id' holds {_shown(done['run_id'].iloc[int(odd.argmax())])}; a run_id is "
            f"text or a number: "
            "mend the column."
        )
    twice = done["run_id"].duplicated(keep=False) & done["run_id"].notna()
    if twice.any():
        rows = done[twice]
        raise RunsError(
            f"{rows['run_id'].nunique()} run_id stand in several rows "
            f"({_name_rows(rows, by_number=True)}), first "
            f"{rows['run_id'].iloc[0]!r}; a run counts once, so keep one row of each."
        )


def _read_numbers(done: pd.DataFrame, column: str) -> Floats:
    """Read a column as positive finite numbers (n,) that floats can square; RunsError names the
    other rows.
    """
    kind = NO_NUMBERS.get(getattr(done[column].dtype, "kind", ""))
    if kind:
        raise RunsError(
            f"Column {column!r} holds {kind}; laws need positive finite numbers: convert the "
            f"column."
        )
    values = _as_floats(done[column])
    bad = ~((values >= SMALLEST) & (values <= LARGEST))
    if bad.any():
        raise RunsError(
            f"Column {column!r} holds {_shown(done[column].iloc[int(bad.argmax())])} in "
            f"{_name_rows(done[bad])} "
            f"({int(bad.sum())} of {len(bad)} finished runs); laws need positive finite numbers, "
            f"{SMALLEST:g} to "
            f"{LARGEST:g}: mend these rows, drop them or change the unit."
        )
    return values


def candidates_of(done: pd.DataFrame) -> int | None:
    """Return the one pool size of the rows, None when they do not say; RunsError where they
    disagree or hold none.
    """
    if "loss_candidates" not in done:
        return None
    filled = done[done["loss_candidates"].notna()]
    pools = _as_floats(filled["loss_candidates"])
    bad = ~(np.isfinite(pools) & (pools >= 2))
    if bad.any():
        found = _shown(filled["loss_candidates"].iloc[int(bad.argmax())])
        raise RunsError(
            f"Column 'loss_candidates' holds {found} in {_name_rows(filled[bad])}; a loss is "
            f"measured among 2 "
            "candidates or more: mend these rows, or drop the column."
        )
    sizes, counts = np.unique(pools, return_counts=True)
    if len(sizes) > 1:
        rare = sizes[np.argmin(counts)]
        raise RunsError(
            f"The runs' losses were measured on pools of "
            f"{', '.join(f'{size:g}' for size in sizes)} candidates and "
            f"cannot be compared ({rare:g} in {_name_rows(filled[pools == rare])}); fit runs of "
            f"one loss_candidates "
            "at a time."
        )
    return int(sizes[0]) if len(sizes) else None


def _as_floats(column: pd.Series) -> Floats:
    """Read cells as floats (n,), nan where a cell is no number."""
    return np.asarray(pd.to_numeric(column, errors="coerce").to_numpy(dtype=float, na_value=np.nan))


def _shown(value: Any) -> str:
    """Say what a cell holds: a number as it stands, the text 'n/a', a list."""
    if isinstance(value, str):
        return f"the text {value!r}"
    return f"a {type(value).__name__}" if hasattr(value, "__len__") else f"{value}"


def _name_rows(rows: pd.DataFrame, by_number: bool = False) -> str:
    """Name rows by run_id, or by number: run a1f3; rows 0, 3 and 12 more."""
    numbered = by_number or "run_id" not in rows
    names = [str(name) for name in (rows.index if numbered else rows["run_id"])]
    kind = ("row" if numbered else "run") + ("s" if len(names) > 1 else "")
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{kind} {', '.join(names[:SHOWN])}{more}"


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
            raise RunsError(
                f"The runs table has no column {column!r}; {nearest(column, list(frame.columns))}"
            )
    done = Runs(frame).done
    if done.empty:
        raise RunsError(f"None of the {len(frame)} runs is done; a law needs finished runs.")
    candidates = candidates_of(done)
    columns = [_read_numbers(done, column) for column in (*x, y)]
    return Sample(np.array(columns[:-1]), columns[-1], candidates, len(frame) - len(done))


def as_frame(table: Table) -> pd.DataFrame:
    """View any accepted table as a DataFrame; RunsError where it is none, or its columns differ in
    length or repeat.
    """
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
                f"The columns do not make a table ({error}); give arrays of one length."
            ) from None
    frame = table.table if isinstance(table, Runs) else table
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise RunsError(f"The runs table has several columns {twice!r}; keep one of each name.")
    return frame


def finished(table: Table) -> pd.DataFrame:
    """Give the rows that a law may be fitted to, numbered as in the table."""
    return Runs(as_frame(table)).done


def place_of(columns: Sequence[str], at: Any) -> Floats:
    """Read a place, a value a predictor column -> (predictors,); FitError unless each has a
    positive finite number.
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
        raise FitError(
            f"{name} has {wanted} predictor(s) but x names {len(columns)} ({', '.join(columns)})."
        )


STEP = 1e-6  # of a central difference, over 1 + the coordinate's size
FAR_OFF = 1e-2  # difference of two derivatives, over the largest, that rounding cannot explain


def check_law(law: object) -> None:
    """Raise FitError unless a law is one's name or a `Law`."""
    if not isinstance(law, str | Law):
        raise FitError(
            f"A law is a name, such as 'power_law', or a Law, not a {type(law).__name__}; make a "
            f"Law of a function."
        )


def check_delta(delta: object) -> None:
    """Raise FitError unless delta is a number; whether it may be of that size the cost decides."""
    if not is_number(delta):
        raise FitError(f"delta is {delta!r}; it is a positive number in log units, such as 0.001.")


def check_design(law: Law, sample: Sample, x: tuple[str, ...]) -> None:
    """Raise FitError where runs, or distinct values of a predictor, are fewer than the law's
    parameters need.
    """
    runs, count = len(sample.y), len(law.parameters)
    if runs <= count:
        raise FitError(
            f"{law.name} has {count} parameters but only {runs} runs are done; it needs "
            f"{count + 1}."
        )
    values = [np.unique(column) for column in sample.x]
    least = int(np.argmin([len(found) for found in values]))
    distinct, places = len(values[least]), len(np.unique(sample.x, axis=1).T)
    if distinct < 2 or places < count:
        only = f" ({values[least][0]:g})" if distinct == 1 else ""
        raise FitError(
            f"{law.name} has {count} parameters, which {places} distinct places with {distinct} "
            f"distinct values of "
            f"{x[least]}{only} cannot identify; add runs at other values."
        )


def check_callable(problem: Problem) -> None:
    """Raise FitError unless a law's function takes arrays of its predictors and parameters and
    works elementwise.
    """
    law, points = problem.law, np.ones((2, len(problem.law.parameters)), dtype=complex)
    wanted = (2, len(problem.log_y))
    try:
        found = np.shape(problem.values(points))
    except (TypeError, ValueError) as error:
        raise FitError(
            f"The function of {law.name} cannot be called with {law.num_predictors} predictor(s), "
            f"then "
            f"{', '.join(law.parameters)}, as numpy arrays ({error}); write it in numpy with these "
            f"arguments."
        ) from None
    if found != wanted:
        raise FitError(
            f"The function of {law.name} gives an array of shape {found} where {wanted} is due; "
            f"write it elementwise, "
            "with every predictor in it."
        )


def check_smooth(problem: Problem, theta: Floats) -> None:
    """Raise FitError where a law's derivatives by complex step are wrong at theta (p,): its
    function is not smooth.
    """
    moves = STEP * (1 + np.abs(theta)) * np.eye(len(theta))
    ahead, behind = problem.values(theta + moves), problem.values(theta - moves)
    rough = (ahead - behind) / (2 * np.diag(moves)[:, None])
    exact = differentiate(problem.values, theta[None])[1][0].T
    gap, size = np.abs(rough - exact).max(axis=1), np.abs(rough).max(axis=1)
    wrong = np.isfinite(gap) & (gap > FAR_OFF * size + STEP * np.abs(ahead).max(axis=1))
    if wrong.any():
        name = problem.law.parameters[int(wrong.argmax())]
        raise FitError(
            f"The function of {problem.law.name} is not smooth in {name}, so it cannot be fitted; "
            f"write it in numpy "
            "without abs, maximum or real parts of parameters, and bound parameters instead."
        )
