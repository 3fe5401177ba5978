"""Weigh laws by BIC: how well each fits for the parameters it spends.

Takes laws and a runs table; gives one row a law. The one idea: differences under 2 mean nothing
(Raftery 1995), so laws get weights and none is crowned; the backtest, not BIC, chooses what speaks.


How far the answer depends on choices that the data do not make: loss, delta, counting, outliers,
    law.

Takes a law, a runs table and a place to predict; gives one row a choice. The one idea: an interval
holds only for the form and the cost chosen; what other defensible choices answer is shown beside
it, and is often the larger doubt.


Which single run moves the answer most: the fit repeated without each run in turn.

Takes a law, a runs table and a place to predict; gives one row a run. The one idea: an answer that
hangs on one run is shown with that run's name, so that it can be repeated before money is spent on
it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clue_ray.errors import FitError
from clue_ray.scaling.fitting.fit import Fit, fit_law
from clue_ray.scaling.fitting.intervals import SMALLEST_NOISE
from clue_ray.scaling.fitting.table import Table, as_names, check_law, finished, place_of
from clue_ray.scaling.laws.catalogue import find_law
from clue_ray.scaling.laws.law import Law

BIC_COLUMNS = ["law", "num_parameters", "bic", "difference", "weight"]


def compare_bic(
    laws: Sequence[str | Law], table: Table, *, x: str | Sequence[str], y: str
) -> pd.DataFrame:
    """Tabulate law, num_parameters, bic, difference from the lowest and weight, the lowest BIC
    first.

    BIC = n ln(RSS / n) + (p + 1) ln n, of log residuals at their least squares, the noise being the
    parameter counted beside the law's p (Schwarz 1978); weight = exp(-difference / 2), normalised,
    which is about the law's posterior probability where all were equally likely before (Kass and
    Raftery 1995). Laws that the runs cannot identify are left out. Raises RunsError as `fit_law`
    does.
    """
    fits = []
    for law in laws:
        try:
            fits.append(fit_law(law, table, x=as_names(x), y=y, loss="log_least_squares"))
        except FitError:
            continue
    rows = [[fit.law.name, len(fit.parameters), _bic(fit)] for fit in fits]
    frame = pd.DataFrame(rows, columns=BIC_COLUMNS[:3]).sort_values(
        "bic", kind="stable", ignore_index=True
    )
    difference = frame["bic"] - frame["bic"].min()
    weight = np.exp(-difference / 2)
    return frame.assign(difference=difference, weight=weight / weight.sum())


def _bic(fit: Fit) -> float:
    """Give a least-squares fit's BIC; exact data count as noise of `SMALLEST_NOISE`."""
    residual = fit.problem.log_values(fit.theta) - fit.problem.log_y
    variance = max(float(np.mean(residual**2)), SMALLEST_NOISE**2)
    return len(residual) * float(np.log(variance)) + (len(fit.parameters) + 1) * float(
        np.log(len(residual))
    )


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
    """Refit the prediction at `at` (a value a predictor) under other choices, the fit as it stands
    first.

    Columns: variant; law; num_runs; exponent (of the law's first term, None without one); predicted
    (in units of y); change (predicted over that of the fit as it stands, - 1); reason (why a
    variant could not be fitted, else empty). Counting embeddings multiplies the size, or the
    compute 6 N D, of every run by total_params over non_embedding_params, and the place by that
    ratio at the largest run; it needs both columns, filled. Raises FitError or RunsError as
    `fit_law` does where the law itself cannot be fitted, FitError for a bad `at`.
    """
    base = fit_law(
        law, table, x=as_names(x), y=y
    )  # of the whole table, so that a bad row is named by its number there
    place_of(base.x, at)
    done = finished(table)
    question = _Question(law, done, base.x, y, dict(at))
    rows = [_row("as fitted", question, base)]
    rows += [_tried(name, question, **options) for name, options in _costs(base.delta).items()]
    rows.append(_tried("without the worst run", question._replace(done=_without_worst(base, done))))
    if (
        {SIZE, WHOLE} <= set(done)
        and done[[SIZE, WHOLE]].notna().all(axis=None)
        and {SIZE, COMPUTE} & set(question.x)
    ):
        rows.append(_tried("embeddings counted", _with_embeddings(question)))
    for other in laws:
        check_law(other)
    others = [other for other in laws if find_law(other).name != find_law(law).name]
    rows += [_tried("another law", question._replace(law=other)) for other in others]
    frame = pd.DataFrame(rows, columns=SENSITIVITY_COLUMNS)
    return frame.assign(change=frame["predicted"] / frame["predicted"].iloc[0] - 1)


def _costs(delta: float) -> dict[str, dict[str, Any]]:
    """Name the other costs: least squares, and Huber's with a delta ten times larger or smaller
    than the fit's.
    """
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
    return [
        variant,
        fit.law.name,
        fit.num_runs,
        _first_exponent(fit),
        _value_at(fit, question.at),
        np.nan,
        "",
    ]


def _first_exponent(fit: Fit) -> float | None:
    """Give the exponent of the law's first term; None for a law without terms."""
    return fit.parameters[fit.law.exponents[0]] if fit.law.exponents else None


def _value_at(fit: Fit, at: Mapping[str, float]) -> float:
    """Evaluate the fitted law at a value a predictor, in the table's units; nan where it has no
    positive value.
    """
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


INFLUENCE_COLUMNS = ["run", "residual", "exponent", "predicted", "change"]


def influence(
    law: str | Law, table: Table, *, x: str | Sequence[str], y: str, at: Mapping[str, float]
) -> pd.DataFrame:
    """Leave each run out and refit: how the prediction at `at` (a value a predictor) moves, the
    largest move first.

    Columns: run (its run_id, or its row number where the table has none); residual (log of measured
    over fitted, all runs in); exponent (of the first term) and predicted, without the run; change
    (predicted over that of all runs, - 1; nan where the law cannot be fitted without the run).
    Raises FitError or RunsError as `fit_law` does where the law cannot be fitted to all runs,
    FitError for a bad `at`.
    """
    fit = fit_law(law, table, x=as_names(x), y=y)
    place_of(fit.x, at)
    done = finished(table)
    missed = fit.problem.log_y - fit.problem.log_values(fit.theta)
    names = done["run_id"] if "run_id" in done else pd.Series(done.index, index=done.index)
    rows: list[list[Any]] = []
    for place, (name, residual) in enumerate(zip(names, missed, strict=True)):
        rows.append(
            [name, float(residual), *_without(fit, law, done.drop(index=done.index[place]), at)]
        )
    frame = pd.DataFrame(rows, columns=INFLUENCE_COLUMNS[:4])
    frame = frame.assign(change=frame["predicted"] / _value_at(fit, at) - 1)
    return frame.sort_values(
        "change", key=lambda change: -change.abs(), kind="stable", ignore_index=True
    )


def _without(
    fit: Fit, law: str | Law, rest: pd.DataFrame, at: Mapping[str, float]
) -> tuple[float | None, float]:
    """Refit to the other runs; give exponent and prediction, nan where they do not identify the
    law.
    """
    try:
        refit = fit_law(law, rest, x=fit.x, y=fit.y)
    except FitError:
        return np.nan, np.nan
    return _first_exponent(refit), _value_at(refit, at)
