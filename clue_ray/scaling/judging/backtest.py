"""Judge laws by what they would have predicted: fit below a compute cut, score above it.

Takes laws and a runs table; gives a `Backtest`. The one idea: a law is preferred for its
predictions of runs larger than any it saw, never for its fit; where these cannot tell laws apart,
the best law with a floor
speaks: far out, leaving out a floor that is there errs ten times more than keeping one that is not
    (planted
power laws, 6 to 12 runs over 2 to 3 decades: 4 to 21 % against under 1 % at ten times the compute).
    It does not
where it erred more than the plain power law: then the law with the lowest error speaks
    (docs/statistics.md).


Which law speaks for a study, or why none does.

Takes the backtest and the fits; gives a law and a reason for silence. The one idea: the law that
predicted larger runs best speaks only if it says that compute lowers the loss; a law that rises or
stays flat describes runs that overfit or do not learn, and nobody should be sold ten times the
compute on it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from clue_ray.errors import FitError
from clue_ray.scaling.fitting.fit import Fit, Prediction, fit_law
from clue_ray.scaling.fitting.table import Table, as_names, check_law, check_once, finished, select
from clue_ray.scaling.laws.catalogue import find_law
from clue_ray.scaling.laws.law import Floats, Law

PLAIN = "power_law"
"""The law to which no preferred law may lose."""
ROW = [
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
SAME = 1e-6
"""Relative difference up to which two mean errors are one, to the convergence of fits: 4e-8 was
seen."""
ROUNDING = (
    1e-9  # logs of compute that differ by less are one size, to the rounding of a product of axes
)
SUMMARY = [
    "law",
    "mean_absolute_relative_error",
    "mean_absolute_error",
    "coverage",
    "num_predictions",
]


@dataclass(frozen=True)
class Backtest:
    """What each law predicted and how wrong it was.

    Attributes:
        rows: one prediction a row: law, num_fitted, x, actual, predicted, low, high (95 %, noise
            included), relative_error (predicted over actual - 1), covered; low and high are nan
            where a law is not positive.
        summary: one row a law, lowest relative error first: law, mean_absolute_relative_error,
            mean_absolute_error (in units of y), coverage, num_predictions.
        preferred: the law with the lowest mean absolute relative error; or, of the laws with a
            floor that cannot be told from it and erred no more than `power_law`, the one that erred
            least; empty without predictions.
        tied: the other laws that cannot be told from the one with the lowest error.
    """

    rows: pd.DataFrame
    summary: pd.DataFrame
    preferred: str
    tied: tuple[str, ...]


def backtest(
    laws: Sequence[str | Law], table: Table, *, x: str | Sequence[str], y: str
) -> Backtest:
    """Fit every law on the runs below each cut of x and predict the next run above it and the
    furthest within reach.

    Within reach are runs at most `LOOK_AHEAD` times the largest fitted, as far as the answer looks
    ahead: how a law fares at hundreds of times its runs would drown how it fares where it is asked.

    Cuts expand from the fewest runs and places that every law can be fitted to; runs are ordered by
    x, or by the product of several. Raises FitError when no cut leaves enough runs, RunsError as
    `fit_law` does.
    """
    columns = as_names(x)
    for law in laws:
        check_law(law)
    found = [find_law(law) for law in laws]
    done = finished(table)
    check_once(done)  # all rows, as a cut would part a run listed twice
    size = np.log(select(table, columns, y).x).sum(axis=0)
    done, size = done.iloc[np.argsort(size, kind="stable")], np.sort(size)
    fewest = max((len(law.parameters) for law in found), default=0) + 1
    larger = np.append(True, np.diff(size) > ROUNDING)
    places = np.cumsum(larger)  # seeds of one setting are one place
    cuts = [n for n in range(fewest, len(done)) if larger[n] and places[n - 1] >= fewest - 1]
    if not found or not cuts:
        raise FitError(
            f"A backtest of {len(found)} laws needs more than {fewest} finished runs of different "
            f"compute, "
            f"but the table has {len(done)}; add runs or laws."
        )
    asked = [(n, _targets(size, n)) for n in cuts]
    scored = [
        row
        for n, targets in asked
        for law in found
        for row in _score(law, done, n, targets, columns, y)
    ]
    rows = pd.DataFrame(scored, columns=ROW)
    return _judge(rows, {law.name for law in found if law.floor})


def no_backtest() -> Backtest:
    """Give the backtest of a table too small for one: no rows, nothing preferred."""
    return Backtest(pd.DataFrame(columns=ROW), pd.DataFrame(columns=SUMMARY), "", ())


def _targets(size: Floats, cut: int) -> list[int]:
    """List what a law of the first `cut` runs is asked for, given the logs of x (runs,),
    ascending.
    """
    within = int(np.searchsorted(size, size[cut - 1] + np.log(LOOK_AHEAD) + ROUNDING, side="right"))
    return sorted({cut, max(cut, within - 1)})


def _score(
    law: Law, done: pd.DataFrame, cut: int, targets: list[int], columns: tuple[str, ...], y: str
) -> Iterator[list[Any]]:
    """Fit a law on the first `cut` runs; yield a row for each run asked for."""
    fit = fit_law(law, done.iloc[:cut], x=columns, y=y)
    for target in targets:
        place = {column: float(done[column].iloc[target]) for column in columns}
        actual = float(done[y].iloc[target])
        value, low, high = _outcome(fit, place)
        size = float(np.prod(list(place.values())))
        yield [
            law.name,
            cut,
            size,
            actual,
            value,
            low,
            high,
            value / actual - 1,
            low <= actual <= high,
        ]


def _outcome(fit: Fit, place: dict[str, float]) -> Prediction:
    """Predict a run; a law that is not positive there is scored by the value it gives, and brackets
    nothing.
    """
    try:
        return fit.predict_run(**place)
    except FitError:
        scaled = np.array([place[column] for column in fit.x]) / fit.problem.scales
        value = float(np.nan_to_num(fit.problem.values(fit.theta, scaled[:, None])[0]))
        return Prediction(value, np.nan, np.nan)


def _judge(rows: pd.DataFrame, floored: set[str]) -> Backtest:
    """Rank laws by mean absolute relative error; prefer the best, or the best with a floor where
    one is as good.
    """
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
    summary = summary.sort_values("mean_absolute_relative_error", kind="stable").reset_index()[
        SUMMARY
    ]
    best, *others = summary["law"]
    level = [best, *(law for law in others if not _distinct(rows, best, law))]
    cautious = [law for law in level if law in floored and not _loses(summary, law)]
    preferred = next(iter(cautious), best)
    return Backtest(rows, summary, preferred, tuple(law for law in level if law != preferred))


def _loses(summary: pd.DataFrame, law: str) -> bool:
    """Tell whether a law erred more on average than the plain power law on the same predictions."""
    error = summary.set_index("law")["mean_absolute_relative_error"]
    return PLAIN in error and bool(error[law] > error[PLAIN] * (1 + SAME))


def _distinct(rows: pd.DataFrame, best: str, other: str) -> bool:
    """Tell whether one law errs more than the best on the same targets by over two standard
    errors.
    """
    size = rows["relative_error"].abs()
    gap = size[rows["law"] == other].to_numpy() - size[rows["law"] == best].to_numpy()
    return len(gap) > 2 and bool(gap.mean() > 2 * gap.std(ddof=1) / np.sqrt(len(gap)))


FALL = 1e-6  # relative fall from the least to the furthest compute under which a law is flat


def select_law(judged: Backtest, fits: dict[str, Fit], compute: pd.Series) -> tuple[str, str]:
    """Name the law that speaks over training compute (runs,), and why it may not: an empty reason
    where it may.

    The preferred law speaks if it falls; else a falling law that the backtest cannot tell from it
    and that does not lose to the plain power law. Otherwise the reason says what the loss does, and
    the law is only the one to draw.
    Without a backtest none speaks: nothing would be known of how it predicts.
    """
    order = _order(judged, fits)
    if not judged.preferred:
        return order[0], (
            "There is no answer yet for more compute: the runs are too few to test any law on a "
            "larger run than it was "
            "fitted to; add runs at other computes."
        )
    level = [law for law in order if law in (order[0], *judged.tied)]
    heirs = [law for law in level[1:] if not _loses(judged.summary, law)]
    speakers = [law for law in (order[0], *heirs) if trend(fits[law], compute) < 0]
    if speakers:
        return speakers[0], ""
    rising = trend(fits[order[0]], compute) > 0
    shown = min(
        order, key=lambda law: trend(fits[law], compute) > 0
    )  # the first that does not rise
    says = "rises" if rising else "does not fall"
    return shown, (
        f"There is no answer yet for more compute: the law that describes these runs best, the "
        f"{fits[order[0]].law.words}, says that held-out loss {says} with it."
    )


def trend(fit: Fit, compute: pd.Series) -> int:
    """Tell where a law of compute goes from the least compute to `LOOK_AHEAD` times the most: 1 up, 0
    nowhere, -1 down.

    A law that fell within the runs and rises beyond them goes up: it would speak of what lies
    beyond.
    """
    least, most = float(compute.min()), float(compute.max())
    first, last, beyond = fit.curve([least, most, LOOK_AHEAD * most])
    if beyond > min(first, last) * (1 + FALL):
        return 1
    return -1 if beyond < first * (1 - FALL) else 0


def _order(judged: Backtest, fits: dict[str, Fit]) -> list[str]:
    """List the laws: preferred, tied, then by error; by fewest parameters and lowest cost without a
    backtest.
    """
    if not judged.preferred:
        return sorted(fits, key=lambda law: (len(fits[law].parameters), fits[law].objective))
    return list(dict.fromkeys([judged.preferred, *judged.tied, *judged.summary["law"]]))


LOOK_AHEAD = 10  # how many times more compute the answer looks ahead
