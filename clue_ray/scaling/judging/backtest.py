"""Backtest of laws, and the choice of the law that answers for a study.

A backtest fits each law to the runs below a cut of compute and scores its predictions above the
cut. A law is preferred for its predictions of runs larger than any it saw, never for its fit.

Where the backtest cannot tell laws apart, the best law with a floor is preferred. Far beyond the
runs, leaving out a floor that exists errs ten times more than keeping one that does not (planted
power laws, 6 to 12 runs over 2 to 3 decades: 4 to 21 % against under 1 % at ten times the compute).
An exception is a law with a floor that erred more than the plain power law: then the law with the
lowest error is preferred (docs/reference/statistics.md).

The preferred law answers only if it says that compute lowers the loss. A law that rises or stays
flat describes runs that overfit or do not learn, and is no reason to spend ten times the compute.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from clue_ray.errors import FitError
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.result import Fit, Prediction
from clue_ray.scaling.fitting.table import Table, as_names, check_once, finished, select
from clue_ray.scaling.laws.catalogue import find_law
from clue_ray.scaling.laws.law import Floats, Law

LOOK_AHEAD = 10
"""How many times more compute the answer looks ahead, and so the backtest too."""
BASELINE_LAW = "power_law"
"""No preferred law may have a larger backtest error than this one."""
ROW_COLUMNS = [
    "law",
    "num_fitted",
    "x",
    "actual",
    "predicted",
    "low",
    "high",
    "relative_error",
    "covered",
]
SUMMARY_COLUMNS = [
    "law",
    "mean_absolute_relative_error",
    "mean_absolute_error",
    "coverage",
    "num_predictions",
]
EQUAL_ERROR = 1e-6
"""Relative difference up to which two mean errors are equal; the convergence of fits makes up to
4e-8."""
EQUAL_LOG_SIZE = 1e-9
"""Difference of logs of compute up to which two runs have one size; rounding of a product."""
FLAT_CHANGE = 1e-6
"""Relative change of the loss up to which a law is flat."""


@dataclass(frozen=True, kw_only=True)
class Backtest:
    """What each law predicted and its errors.

    Attributes:
        rows: one row per prediction: law, num_fitted, x, actual, predicted, low, high (95 %, noise
            included), relative_error (predicted over actual - 1), covered. low and high are nan
            where a law is not positive.
        summary: one row per law, lowest relative error first: law, mean_absolute_relative_error,
            mean_absolute_error (in units of y), coverage, num_predictions.
        preferred: the law with the lowest mean absolute relative error; or, of the laws with a
            floor with equal error that erred no more than `power_law`, the one with the
            lowest error. Empty without predictions.
        tied: the other laws whose error equals that of the one with the lowest error.
    """

    rows: pd.DataFrame
    summary: pd.DataFrame
    preferred: str
    tied: tuple[str, ...]


def backtest(
    laws: Sequence[str | Law], table: Table, *, x: str | Sequence[str], y: str
) -> Backtest:
    """Fit every law below each cut of x and predict two runs above it.

    The two are the next run and the largest run within `LOOK_AHEAD` times the largest fitted one,
    as far as the answer looks ahead. Errors at hundreds of times the fitted runs would otherwise
    hide the errors at the distance that matters.

    Cuts start at the fewest runs and distinct sizes that every law can be fitted to. Runs are
    ordered by x, or by the product of several.

    Raises:
        FitError: no cut leaves enough runs.
        RunsError: as by `fit_law`.

    Example:
        >>> from clue_ray import backtest
        >>> flops = [1e12, 1e13, 1e14, 1e15, 1e16, 1e17]
        >>> table = {"flops": flops, "loss": [2 + 3 * (c / 1e12) ** -0.2 for c in flops]}
        >>> laws = ["power_law", "power_law_plus_constant"]
        >>> backtest(laws, table, x="flops", y="loss").preferred
        'power_law_plus_constant'
    """
    columns = as_names(x)
    found = [find_law(law) for law in laws]
    done = finished(table)
    check_once(done)  # on all rows, as a cut could separate two rows of one run
    size = np.log(select(table, columns, y).x).sum(axis=0)
    done, size = done.iloc[np.argsort(size, kind="stable")], np.sort(size)
    cuts = _cuts(found, size)
    if not cuts:
        fewest = _fewest_runs(found)
        raise FitError(
            f"A backtest of {len(found)} laws needs more than {fewest} finished runs of different "
            f"compute, but the table has {len(done)}; add runs or laws."
        )
    scored = [
        row
        for cut in cuts
        for law in found
        for row in _score(law, done, cut, _targets(size, cut), columns, y)
    ]
    rows = pd.DataFrame(scored, columns=ROW_COLUMNS)
    return _judge(rows, {law.name for law in found if law.floor})


def no_backtest() -> Backtest:
    """Return the backtest of a table too small for one: no rows, no preferred law."""
    return Backtest(
        rows=pd.DataFrame(columns=ROW_COLUMNS),
        summary=pd.DataFrame(columns=SUMMARY_COLUMNS),
        preferred="",
        tied=(),
    )


def select_law(judged: Backtest, fits: dict[str, Fit], compute: pd.Series) -> tuple[str, str]:
    """Select the law that answers over training compute (runs,).

    It is the preferred law if it falls. Otherwise it is a falling law that the backtest cannot tell
    from it and that has no larger error than the plain power law.

    Returns:
        The law and the reason for no answer. The reason is empty where the law answers; otherwise
        the law is only the one to draw. There is no answer without a backtest, as nothing is known
        of how the laws predict.
    """
    order = _order(judged, fits)
    if not judged.preferred:
        return order[0], (
            "There is no answer yet for more compute: the runs are too few to test any law on a "
            "larger run than it was fitted to; add runs at other computes."
        )
    tied = [law for law in order[1:] if law in judged.tied and not _loses(judged.summary, law)]
    falling = [law for law in (order[0], *tied) if trend(fits[law], compute) < 0]
    if falling:
        return falling[0], ""
    says = "rises" if trend(fits[order[0]], compute) > 0 else "does not fall"
    drawn = next((law for law in order if trend(fits[law], compute) <= 0), order[0])
    return drawn, (
        f"There is no answer yet for more compute: the law that describes these runs best, the "
        f"{fits[order[0]].law.words}, says that held-out loss {says} with it."
    )


def trend(fit: Fit, compute: pd.Series) -> int:
    """Return whether a law of compute rises (1), falls (-1) or stays flat (0).

    It is judged from the least compute to `LOOK_AHEAD` times the largest. A law that falls within
    the runs and rises beyond them rises, as the answer is about what lies beyond.
    """
    least, most = float(compute.min()), float(compute.max())
    first, last, beyond = fit.curve([least, most, LOOK_AHEAD * most])
    if beyond > min(first, last) * (1 + FLAT_CHANGE):
        return 1
    return -1 if beyond < first * (1 - FLAT_CHANGE) else 0


def _fewest_runs(laws: Sequence[Law]) -> int:
    """Return the fewest runs that every law can be fitted to."""
    return max((len(law.parameters) for law in laws), default=0) + 1


def _cuts(laws: Sequence[Law], size: Floats) -> list[int]:
    """List the numbers of runs to fit, given the logs of x (runs,), ascending.

    Seeds of one size are never on both sides of a cut, and count as one size.
    """
    if not laws:
        return []
    fewest = _fewest_runs(laws)
    larger = np.append(True, np.diff(size) > EQUAL_LOG_SIZE)
    sizes = np.cumsum(larger)
    return [n for n in range(fewest, len(size)) if larger[n] and sizes[n - 1] >= fewest - 1]


def _targets(size: Floats, cut: int) -> list[int]:
    """List the runs that a law of the first `cut` runs predicts; see `_cuts` for `size`."""
    reach = size[cut - 1] + np.log(LOOK_AHEAD) + EQUAL_LOG_SIZE
    within = int(np.searchsorted(size, reach, side="right"))
    return sorted({cut, max(cut, within - 1)})


def _score(
    law: Law, done: pd.DataFrame, cut: int, targets: list[int], columns: tuple[str, ...], y: str
) -> Iterator[list[Any]]:
    """Fit a law to the first `cut` runs; yield one row of `ROW_COLUMNS` per target."""
    fit = fit_law(law, done.iloc[:cut], x=columns, y=y)
    for target in targets:
        place = {column: float(done[column].iloc[target]) for column in columns}
        actual = float(done[y].iloc[target])
        value, low, high = _predict(fit, place)
        size = float(np.prod(list(place.values())))
        error, covered = value / actual - 1, low <= actual <= high
        yield [law.name, cut, size, actual, value, low, high, error, covered]


def _predict(fit: Fit, place: dict[str, float]) -> Prediction:
    """Predict a run, with an interval of nan where the law is not positive.

    Such a law is scored by its value, so that it is not rewarded for leaving its domain.
    """
    try:
        return fit.predict_run(**place)
    except FitError:
        scaled = np.array([place[column] for column in fit.x]) / fit.problem.scales
        value = float(np.nan_to_num(fit.problem.values(fit.theta, scaled[:, None])[0]))
        return Prediction(value, np.nan, np.nan)


def _judge(rows: pd.DataFrame, with_floor: set[str]) -> Backtest:
    """Rank laws by mean absolute relative error and choose the preferred one."""
    summary = _summarise(rows)
    best, *others = summary["law"]
    level = [best, *(law for law in others if not _distinct(rows, best, law))]
    cautious = [law for law in level if law in with_floor and not _loses(summary, law)]
    preferred = next(iter(cautious), best)
    return Backtest(
        rows=rows,
        summary=summary,
        preferred=preferred,
        tied=tuple(law for law in level if law != preferred),
    )


def _summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute the columns of `SUMMARY_COLUMNS`, lowest relative error first."""
    missed = (rows["predicted"] - rows["actual"]).abs()
    errors = rows.assign(error=rows["relative_error"].abs(), missed=missed).groupby(
        "law", sort=False
    )
    summary = pd.DataFrame(
        {
            "mean_absolute_relative_error": errors["error"].mean(),
            "mean_absolute_error": errors["missed"].mean(),
            "coverage": errors["covered"].mean(),
            "num_predictions": errors.size(),
        }
    )
    order = summary.sort_values("mean_absolute_relative_error", kind="stable")
    return order.reset_index()[SUMMARY_COLUMNS]


def _loses(summary: pd.DataFrame, law: str) -> bool:
    """Return whether a law has a larger mean error than the plain power law."""
    error = summary.set_index("law")["mean_absolute_relative_error"]
    return BASELINE_LAW in error and bool(error[law] > error[BASELINE_LAW] * (1 + EQUAL_ERROR))


def _distinct(rows: pd.DataFrame, best: str, other: str) -> bool:
    """Return whether a law errs more than the best by over two standard errors.

    The difference is paired, as both predict the same runs.
    """
    size = rows["relative_error"].abs()
    gap = size[rows["law"] == other].to_numpy() - size[rows["law"] == best].to_numpy()
    return len(gap) > 2 and bool(gap.mean() > 2 * gap.std(ddof=1) / np.sqrt(len(gap)))


def _order(judged: Backtest, fits: dict[str, Fit]) -> list[str]:
    """List the laws: the preferred, the tied, the others by error.

    Without a backtest they are ordered by number of parameters, then by objective.
    """
    if not judged.preferred:
        return sorted(fits, key=lambda law: (len(fits[law].parameters), fits[law].objective))
    return list(dict.fromkeys([judged.preferred, *judged.tied, *judged.summary["law"]]))
