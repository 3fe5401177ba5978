"""What keeps a law from being fitted to a table, said with the rows at fault.

Takes a runs table and column names; raises RunsError or returns. The one idea: a reader mends rows, so a sentence
names them: by run_id where the table has one, by number from 0 where not.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from clue_ray.errors import FitError, RunsError
from clue_ray.runs import Runs
from clue_ray.scaling.law import Floats, Law
from clue_ray.scaling.problem import Problem, differentiate
from clue_ray.scaling.sample import Sample, Table, as_frame

SHOWN = 4  # rows that a sentence names
STEP = 1e-6  # of a central difference, over 1 + the coordinate's size
FAR_OFF = 1e-2  # difference of two derivatives, over the largest, that rounding cannot explain


def check_rows(table: Table, columns: Sequence[str]) -> None:
    """Raise RunsError naming the rows: a run listed twice, several pools, text or no positive number in a column.

    Only finished runs are looked at; columns that the table lacks are left to `select`.
    """
    done = Runs(as_frame(table)).done
    _check_runs(done)
    _check_candidates(done)
    for column in columns:
        if column in done:
            _check_numbers(done, column)


def _check_runs(done: pd.DataFrame) -> None:
    if "run_id" not in done:
        return
    twice = done["run_id"].duplicated(keep=False) & done["run_id"].notna()
    if twice.any():
        rows = done[twice]
        raise RunsError(
            f"{rows['run_id'].nunique()} run_id stand in several rows ({_name_rows(rows, by_number=True)}), first "
            f"{rows['run_id'].iloc[0]!r}; a run counts once, so keep one row of each."
        )


def _check_candidates(done: pd.DataFrame) -> None:
    if "loss_candidates" not in done:
        return
    pools = done["loss_candidates"].dropna()
    if pools.nunique() < 2:
        return
    shown = ", ".join(f"{value:g}" for value in sorted(pools.unique()))
    rare = pools.value_counts().idxmin()
    raise RunsError(
        f"The runs' losses were measured on pools of {shown} candidates and cannot be compared "
        f"({rare:g} in {_name_rows(done[done['loss_candidates'] == rare])}); fit runs of one loss_candidates at a time."
    )


def _check_numbers(done: pd.DataFrame, column: str) -> None:
    values = pd.to_numeric(done[column], errors="coerce").to_numpy(dtype=float)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        first = done[column].iloc[int(bad.argmax())]
        found = f"the text {first!r}" if isinstance(first, str) else f"{first}"
        raise RunsError(
            f"Column {column!r} holds {found} in {_name_rows(done[bad])} ({int(bad.sum())} of {len(bad)} finished "
            "runs); laws need positive finite numbers: mend these rows or drop them."
        )


def _name_rows(rows: pd.DataFrame, by_number: bool = False) -> str:
    """Name rows by run_id, or by number: run a1f3; rows 0, 3 and 12 more."""
    numbered = by_number or "run_id" not in rows
    names = [str(name) for name in (rows.index if numbered else rows["run_id"])]
    kind = ("row" if numbered else "run") + ("s" if len(names) > 1 else "")
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{kind} {', '.join(names[:SHOWN])}{more}"


def check_design(law: Law, sample: Sample, x: tuple[str, ...]) -> None:
    """Raise FitError where runs, or distinct values of a predictor, are fewer than the law's parameters need."""
    runs, count = len(sample.y), len(law.parameters)
    if runs <= count:
        raise FitError(f"{law.name} has {count} parameters but only {runs} runs are done; it needs {count + 1}.")
    values = [np.unique(column) for column in sample.x]
    least = int(np.argmin([len(found) for found in values]))
    distinct, places = len(values[least]), len(np.unique(sample.x, axis=1).T)
    if distinct < 2 or places < count:
        only = f" ({values[least][0]:g})" if distinct == 1 else ""
        raise FitError(
            f"{law.name} has {count} parameters, which {places} distinct places with {distinct} distinct values of "
            f"{x[least]}{only} cannot identify; add runs at other values."
        )


def check_callable(problem: Problem) -> None:
    """Raise FitError unless a law's function takes arrays of its predictors and parameters and works elementwise."""
    law, points = problem.law, np.ones((2, len(problem.law.parameters)), dtype=complex)
    wanted = (2, len(problem.log_y))
    try:
        found = np.shape(problem.values(points))
    except (TypeError, ValueError) as error:
        raise FitError(
            f"The function of {law.name} cannot be called with {law.num_predictors} predictor(s), then "
            f"{', '.join(law.parameters)}, as numpy arrays ({error}); write it in numpy with these arguments."
        ) from None
    if found != wanted:
        raise FitError(
            f"The function of {law.name} gives an array of shape {found} where {wanted} is due; write it elementwise, "
            "with every predictor in it."
        )


def check_smooth(problem: Problem, theta: Floats) -> None:
    """Raise FitError where a law's derivatives by complex step are wrong at theta (p,): its function is not smooth."""
    moves = STEP * (1 + np.abs(theta)) * np.eye(len(theta))
    ahead, behind = problem.values(theta + moves), problem.values(theta - moves)
    rough = (ahead - behind) / (2 * np.diag(moves)[:, None])
    exact = differentiate(problem.values, theta[None])[1][0].T
    gap, size = np.abs(rough - exact).max(axis=1), np.abs(rough).max(axis=1)
    wrong = np.isfinite(gap) & (gap > FAR_OFF * size + STEP * np.abs(ahead).max(axis=1))
    if wrong.any():
        name = problem.law.parameters[int(wrong.argmax())]
        raise FitError(
            f"The function of {problem.law.name} is not smooth in {name}, so it cannot be fitted; write it in numpy "
            "without abs, maximum or real parts of parameters, and bound parameters instead."
        )
