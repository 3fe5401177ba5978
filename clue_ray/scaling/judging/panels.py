"""Panels next to an answer: BIC, sensitivity and influence, one table each.

- `compare_bic` compares how well laws fit for the number of their parameters. Differences under 2
  mean nothing (Raftery 1995), so laws get weights. The preferred law is chosen by the backtest.
- `sensitivity` repeats the prediction under other defensible choices (cost, delta, how parameters
  are counted, outliers, law). An interval holds only for the choices made, and these often move the
  answer more.
- `influence` repeats the prediction without each run. A run that carries the answer alone should be
  repeated before money is spent on it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clue_ray.errors import FitError
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.intervals import MIN_NOISE
from clue_ray.scaling.fitting.result import Fit
from clue_ray.scaling.fitting.table import Table, as_names, finished, place_of
from clue_ray.scaling.laws.catalogue import find_law
from clue_ray.scaling.laws.law import Law
from clue_ray.spec.columns import SIZE

BIC_COLUMNS = ["law", "num_parameters", "bic", "difference", "weight"]
SENSITIVITY_COLUMNS = ["variant", "law", "num_runs", "exponent", "predicted", "change", "reason"]
INFLUENCE_COLUMNS = ["run", "residual", "exponent", "predicted", "change"]
TOTAL_SIZE, COMPUTE = "total_params", "train_flops"


def compare_bic(
    laws: Sequence[str | Law], table: Table, *, x: str | Sequence[str], y: str
) -> pd.DataFrame:
    """Tabulate the BIC of laws, the lowest first.

    BIC = n ln(RSS / n) + (p + 1) ln n of log residuals at their least squares (Schwarz 1978). The
    noise is the parameter counted next to the p of the law. weight = exp(-difference / 2),
    normalised, is about the posterior probability of the law if all were equally likely before
    (Kass and Raftery 1995).

    Returns:
        Columns law, num_parameters, bic, difference from the lowest, weight. Laws that the runs
        cannot identify are left out.

    Raises:
        RunsError: as by `fit_law`.
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
    """Compute the BIC of a least-squares fit; exact data count as noise of `MIN_NOISE`."""
    residual = fit.problem.log_values(fit.theta) - fit.problem.log_y
    variance = max(float(np.mean(residual**2)), MIN_NOISE**2)
    runs, count = len(residual), len(fit.parameters)
    return runs * float(np.log(variance)) + (count + 1) * float(np.log(runs))


class _Question(NamedTuple):
    """A law, the rows it is fitted to, and the place of the prediction."""

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
    """Repeat the prediction at `at` (a value per predictor) under other choices.

    Counting embeddings multiplies the size, or the compute 6 N D, of every run by total_params over
    non_embedding_params, and the place by that ratio at the largest run. It needs both columns,
    filled.

    Returns:
        One row per choice, the fit as it is first. Columns: variant; law; num_runs; exponent (of
        the first term, None without one); predicted (in units of y); change (predicted over that of
        the first row, - 1); reason (why a variant could not be fitted, otherwise empty).

    Raises:
        FitError: the law itself cannot be fitted, or `at` does not match x.
        RunsError: as by `fit_law`.

    Example:
        >>> from clue_ray import sensitivity
        >>> flops = [1e12, 1e13, 1e14, 1e15, 1e16, 1e17]
        >>> table = {"flops": flops, "loss": [2 + 3 * (c / 1e12) ** -0.2 for c in flops]}
        >>> question = {"x": "flops", "y": "loss", "at": {"flops": 1e18}}
        >>> found = sensitivity("power_law_plus_constant", table, **question, laws=["power_law"])
        >>> found[["variant", "predicted"]].round(2).tail(2)
                         variant  predicted
        4  without the worst run       2.19
        5            another law       1.83
    """
    # The first fit sees the whole table, so that a message names a bad row by its number there.
    base = fit_law(law, table, x=as_names(x), y=y)
    place_of(base.x, at)
    question = _Question(law, finished(table), base.x, y, dict(at))
    rows = [
        _row("as fitted", question, base),
        _try("log least squares", question, loss="log_least_squares"),
        _try("delta x 10", question, delta=10 * base.delta),
        _try("delta / 10", question, delta=base.delta / 10),
        _try("without the worst run", question._replace(done=_without_worst(base, question.done))),
    ]
    if _counts_embeddings(question):
        rows.append(_try("embeddings counted", _with_embeddings(question)))
    name = find_law(law).name
    others = [other for other in laws if find_law(other).name != name]
    rows += [_try("another law", question._replace(law=other)) for other in others]
    frame = pd.DataFrame(rows, columns=SENSITIVITY_COLUMNS)
    return frame.assign(change=frame["predicted"] / frame["predicted"].iloc[0] - 1)


def _try(variant: str, question: _Question, **options: Any) -> list[Any]:
    """Fit again under one choice; the row has the reason where that cannot be done."""
    try:
        fit = fit_law(question.law, question.done, x=question.x, y=question.y, **options)
        return _row(variant, question, fit)
    except FitError as error:
        name = find_law(question.law).name
        return [variant, name, np.nan, np.nan, np.nan, np.nan, str(error)]


def _row(variant: str, question: _Question, fit: Fit) -> list[Any]:
    """Build one row of `SENSITIVITY_COLUMNS`; the change is filled in for all rows together."""
    exponent, predicted = _first_exponent(fit), _value_at(fit, question.at)
    return [variant, fit.law.name, fit.num_runs, exponent, predicted, np.nan, ""]


def _first_exponent(fit: Fit) -> float | None:
    """Return the exponent of the law's first term; None for a law without terms."""
    return fit.parameters[fit.law.exponents[0]] if fit.law.exponents else None


def _value_at(fit: Fit, at: Mapping[str, float]) -> float:
    """Evaluate a fitted law at a value per predictor; nan where it is not positive."""
    x = np.array([at[column] for column in fit.x]) / fit.problem.scales
    return float(np.exp(fit.problem.log_values(fit.theta, x[:, None])[0]))


def _without_worst(fit: Fit, done: pd.DataFrame) -> pd.DataFrame:
    """Drop the run with the largest log residual."""
    residual = np.abs(fit.problem.log_values(fit.theta) - fit.problem.log_y)
    return done.drop(index=done.index[int(np.argmax(residual))])


def _counts_embeddings(question: _Question) -> bool:
    """Return whether embeddings can be counted: both sizes are known and the law has one."""
    sizes = {SIZE, TOTAL_SIZE}
    if not (sizes <= set(question.done) and {SIZE, COMPUTE} & set(question.x)):
        return False
    return bool(question.done[[SIZE, TOTAL_SIZE]].notna().all(axis=None))


def _with_embeddings(question: _Question) -> _Question:
    """Count token tables in the size, and so in the compute 6 N D, of the rows and of the place."""
    done = question.done
    ratio = done[TOTAL_SIZE].astype(float) / done[SIZE].astype(float)
    counted = [column for column in (SIZE, COMPUTE) if column in question.x]
    largest = float(ratio.iloc[int(np.argmax(done[counted[0]].astype(float)))])
    columns = {column: done[column].astype(float) * ratio for column in counted}
    at = question.at | {column: question.at[column] * largest for column in counted}
    return question._replace(done=done.assign(**columns), at=at)


def influence(
    law: str | Law, table: Table, *, x: str | Sequence[str], y: str, at: Mapping[str, float]
) -> pd.DataFrame:
    """Repeat the prediction at `at` (a value per predictor) without each run in turn.

    Returns:
        One row per run, the largest change first. Columns: run (its run_id, or its row number where
        the table has none); residual (log of measured over fitted, with all runs); exponent (of the
        first term) and predicted, without the run; change (predicted over that of all runs, - 1;
        nan where the law cannot be fitted without the run).

    Raises:
        FitError: the law cannot be fitted to all runs, or `at` does not match x.
        RunsError: as by `fit_law`.

    Example:
        >>> from clue_ray import influence
        >>> flops = [1e12, 1e13, 1e14, 1e15, 1e16, 1e17]
        >>> table = {"flops": flops, "loss": [2 + 3 * (c / 1e12) ** -0.2 for c in flops]}
        >>> table["loss"][5] *= 1.05
        >>> found = influence("power_law", table, x="flops", y="loss", at={"flops": 1e18})
        >>> found[["run", "change"]].round(3).head(2)
           run  change
        0    5  -0.105
        1    4   0.065
    """
    fit = fit_law(law, table, x=as_names(x), y=y)
    place_of(fit.x, at)
    done = finished(table)
    residuals = fit.problem.log_y - fit.problem.log_values(fit.theta)
    names = done["run_id"] if "run_id" in done else pd.Series(done.index, index=done.index)
    rows = [
        [name, float(residual), *_refit_without(fit, law, done.drop(index=index), at)]
        for index, name, residual in zip(done.index, names, residuals, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=INFLUENCE_COLUMNS[:4])
    frame = frame.assign(change=frame["predicted"] / _value_at(fit, at) - 1)
    return frame.sort_values(
        "change", key=lambda change: -change.abs(), kind="stable", ignore_index=True
    )


def _refit_without(
    fit: Fit, law: str | Law, rest: pd.DataFrame, at: Mapping[str, float]
) -> tuple[float | None, float]:
    """Fit the other runs: exponent and prediction, nan where they do not identify the law."""
    try:
        refit = fit_law(law, rest, x=fit.x, y=fit.y)
    except FitError:
        return np.nan, np.nan
    return _first_exponent(refit), _value_at(refit, at)
