"""Which single run moves the answer most: the fit repeated without each run in turn.

Takes a law, a runs table and a place to predict; gives one row a run. The one idea: an answer that hangs on one run is
shown with that run's name, so that it can be repeated before money is spent on it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clue_ray.errors import FitError
from clue_ray.scaling.fit import fit_law
from clue_ray.scaling.fitted import Fit
from clue_ray.scaling.law import Law
from clue_ray.scaling.sample import Table, as_names, finished, place_of
from clue_ray.scaling.sensitivity import first_exponent, value_at

INFLUENCE_COLUMNS = ["run", "residual", "exponent", "predicted", "change"]


def influence(law: str | Law, table: Table, *, x: str | Sequence[str], y: str, at: Mapping[str, float]) -> pd.DataFrame:
    """Leave each run out and refit: how the prediction at `at` (a value a predictor) moves, the largest move first.

    Columns: run (its run_id, or its row number where the table has none); residual (log of measured over fitted, all
    runs in); exponent (of the first term) and predicted, without the run; change (predicted over that of all runs, - 1;
    nan where the law cannot be fitted without the run).
    Raises FitError or RunsError as `fit_law` does where the law cannot be fitted to all runs, FitError for a bad `at`.
    """
    fit = fit_law(law, table, x=as_names(x), y=y)
    place_of(fit.x, at)
    done = finished(table)
    missed = fit.problem.log_y - fit.problem.log_values(fit.theta)
    names = done["run_id"] if "run_id" in done else pd.Series(done.index, index=done.index)
    rows: list[list[Any]] = []
    for place, (name, residual) in enumerate(zip(names, missed, strict=True)):
        rows.append([name, float(residual), *_without(fit, law, done.drop(index=done.index[place]), at)])
    frame = pd.DataFrame(rows, columns=INFLUENCE_COLUMNS[:4])
    frame = frame.assign(change=frame["predicted"] / value_at(fit, at) - 1)
    return frame.sort_values("change", key=lambda change: -change.abs(), kind="stable", ignore_index=True)


def _without(fit: Fit, law: str | Law, rest: pd.DataFrame, at: Mapping[str, float]) -> tuple[float | None, float]:
    """Refit to the other runs; give exponent and prediction, nan where they do not identify the law."""
    try:
        refit = fit_law(law, rest, x=fit.x, y=fit.y)
    except FitError:
        return np.nan, np.nan
    return first_exponent(refit), value_at(refit, at)
