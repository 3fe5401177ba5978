"""How far the answer depends on choices that the data do not make: loss, delta, counting, outliers, law.

Takes a law, a runs table and a place to predict; gives one row a choice. The one idea: an interval holds only for the
form and the cost chosen; what other defensible choices answer is shown beside it, and is often the larger doubt.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clue_ray.errors import FitError
from clue_ray.scaling.checks import check_law
from clue_ray.scaling.fit import fit_law
from clue_ray.scaling.fitted import Fit
from clue_ray.scaling.law import Law
from clue_ray.scaling.laws import find_law
from clue_ray.scaling.sample import Table, as_names, finished, place_of

SIZE, WHOLE, COMPUTE = "non_embedding_params", "total_params", "train_flops"
SENSITIVITY_COLUMNS = ["variant", "law", "num_runs", "exponent", "predicted", "change", "reason"]
RESULTS = SENSITIVITY_COLUMNS[2:5]


class _Question(NamedTuple):
    """A law, the rows it is fitted to, and where its prediction is wanted."""

    law: str | Law
    done: pd.DataFrame
    x: tuple[str, ...]
    y: str
    at: dict[str, float]


def sensitivity(
    law: str | Law,
    table: Table,
    *,
    x: str | Sequence[str],
    y: str,
    at: Mapping[str, float],
    laws: Sequence[str | Law] = (),
) -> pd.DataFrame:
    """Refit the prediction at `at` (a value a predictor) under other choices, the fit as it stands first.

    Columns: variant; law; num_runs; exponent (of the law's first term, None without one); predicted (in units of y);
    change (predicted over that of the fit as it stands, - 1); reason (why a variant could not be fitted, else empty).
    Counting embeddings multiplies the size, or the compute 6 N D, of every run by total_params over
    non_embedding_params, and the place by that ratio at the largest run; it needs both columns, filled.
    Raises FitError or RunsError as `fit_law` does where the law itself cannot be fitted, FitError for a bad `at`.
    """
    base = fit_law(law, table, x=as_names(x), y=y)  # of the whole table, so that a bad row is named by its number there
    place_of(base.x, at)
    done = finished(table)
    question = _Question(law, done, base.x, y, dict(at))
    rows = [_row("as fitted", question, base)]
    rows += [_tried(name, question, **options) for name, options in _costs(base.delta).items()]
    rows.append(_tried("without the worst run", question._replace(done=_without_worst(base, done))))
    if {SIZE, WHOLE} <= set(done) and done[[SIZE, WHOLE]].notna().all(axis=None) and {SIZE, COMPUTE} & set(question.x):
        rows.append(_tried("embeddings counted", _with_embeddings(question)))
    for other in laws:
        check_law(other)
    others = [other for other in laws if find_law(other).name != find_law(law).name]
    rows += [_tried("another law", question._replace(law=other)) for other in others]
    frame = pd.DataFrame(rows, columns=SENSITIVITY_COLUMNS)
    return frame.assign(change=frame["predicted"] / frame["predicted"].iloc[0] - 1)


def _costs(delta: float) -> dict[str, dict[str, Any]]:
    """Name the other costs: least squares, and Huber's with a delta ten times larger or smaller than the fit's."""
    return {
        "log least squares": {"loss": "log_least_squares"},
        "delta x 10": {"delta": 10 * delta},
        "delta / 10": {"delta": delta / 10},
    }


def _fit(question: _Question, **options: Any) -> Fit:
    return fit_law(question.law, question.done, x=question.x, y=question.y, **options)


def _tried(variant: str, question: _Question, **options: Any) -> list[Any]:
    """Refit under one choice; where that cannot be done, say why instead of leaving the row out."""
    try:
        return _row(variant, question, _fit(question, **options))
    except FitError as error:
        return [variant, find_law(question.law).name, *[np.nan] * len(RESULTS), np.nan, str(error)]


def _row(variant: str, question: _Question, fit: Fit) -> list[Any]:
    return [variant, fit.law.name, fit.num_runs, first_exponent(fit), value_at(fit, question.at), np.nan, ""]


def first_exponent(fit: Fit) -> float | None:
    """Give the exponent of the law's first term; None for a law without terms."""
    return fit.parameters[fit.law.exponents[0]] if fit.law.exponents else None


def value_at(fit: Fit, at: Mapping[str, float]) -> float:
    """Evaluate the fitted law at a value a predictor, in the table's units; nan where it has no positive value."""
    x = np.array([at[column] for column in fit.x]) / fit.problem.scales
    return float(np.exp(fit.problem.log_values(fit.theta, x[:, None])[0]))


def _without_worst(fit: Fit, done: pd.DataFrame) -> pd.DataFrame:
    """Drop the run that the law misses by most, in log units."""
    missed = np.abs(fit.problem.log_values(fit.theta) - fit.problem.log_y)
    return done.drop(index=done.index[int(np.argmax(missed))])


def _with_embeddings(question: _Question) -> _Question:
    """Count token tables in the size, and so in the compute 6 N D, of the rows and of the place."""
    done = question.done
    ratio = done[WHOLE].astype(float) / done[SIZE].astype(float)
    counted = [column for column in (SIZE, COMPUTE) if column in question.x]
    largest = float(ratio.iloc[int(np.argmax(done[counted[0]].astype(float)))])
    grown = {column: done[column].astype(float) * ratio for column in counted}
    at = question.at | {column: question.at[column] * largest for column in counted}
    return question._replace(done=done.assign(**grown), at=at)
