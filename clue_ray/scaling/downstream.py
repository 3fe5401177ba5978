"""Test whether the score of a downstream task follows the loss, also at the largest compute.

As in a backtest, a straight line of score over loss is fitted to the smaller runs and predicts the
largest runs. Outside its prediction interval, the task does not follow the loss. Where the interval
also contains "no further gain", the runs do not decide.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy import stats

FEWEST = 4
"""Runs that a correlation needs, and that the line through the smaller runs needs."""
LARGEST = 4
"""One run in LARGEST is held out: those with the most compute."""
LEVEL = 0.95
SAME = 1e-9
"""Relative difference of compute, or of scores, that is only rounding."""

MEASURES = {
    "mrr": "MRR",
    "ndcg_at_10": "nDCG@10",
    "recall_at_10": "recall@10",
    "auc": "AUC",
    "challenge": "challenge score",
    "r2": "R2",
}
"""Names of the measures of a task, the main one first."""

Floats = NDArray[np.float64]
Verdict = Literal["holds", "less", "more", "unclear", "no further"]


STRICT = ConfigDict(strict=True, allow_inf_nan=False)


class _Interval(BaseModel):
    """A measure with its interval, or a lead in one."""

    model_config = STRICT

    value: float
    low: float
    high: float


class _Result(BaseModel):
    """What the result of a downstream task must hold; it may hold more."""

    model_config = STRICT

    task: str
    run_id: str
    users: dict[str, int]
    left_out: dict[str, int] = {}  # results before 2026-11-26 have none
    methods: list[dict[str, str | _Interval]]


def check_result(result: Any) -> None:
    """Raise ValueError where a document is not the result of a downstream task."""
    try:
        rows = _Result.model_validate(result).methods
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{where}: {first['msg']}") from None
    if [row.get("method") for row in rows].count("encoder") != 1:
        raise ValueError("it has no row of one encoder")
    measures = [name for name in MEASURES if name in rows[0]]
    whole = all(isinstance(row.get(name), _Interval) for row in rows for name in measures)
    leads = [row[f"{name}_lead"] for row in rows for name in measures if f"{name}_lead" in row]
    if not measures or not whole or not all(isinstance(lead, _Interval) for lead in leads):
        raise ValueError("its methods do not share a measure")
    if not all(isinstance(row.get("method"), str) for row in rows):
        raise ValueError("a method has no name")


@dataclass(frozen=True)
class LargestRuns:
    """The prediction of the line through the smaller runs for the largest runs.

    Attributes:
        smaller, larger: numbers of runs that the line is fitted to, and of runs held out.
        slope, offset: of the line, score over loss.
        scored: mean score of the largest runs.
        expected, low, high: mean score that the line predicts for them, with its prediction
            interval.
        stopped: the value of the line at the lowest loss of the smaller runs: the score without any
            further gain.
        further: whether the mean loss of the largest runs lies below that loss.
    """

    smaller: int
    larger: int
    slope: float
    offset: float
    scored: float
    expected: float
    low: float
    high: float
    stopped: float
    further: bool

    @property
    def verdict(self) -> Verdict:
        """Classify the scores of the largest runs by the prediction interval."""
        if self.scored < self.low:
            return "less"
        if self.scored > self.high:
            return "more"
        if not self.further:
            return "no further"
        return "holds" if self.stopped < self.low else "unclear"


def compare_methods(result: Mapping[str, Any]) -> str:
    """List the methods that the encoder outperforms, and those it does not, by the main measure."""
    first = next(name for name in MEASURES if name in result["methods"][0])
    leads = {
        row["method"]: row[f"{first}_lead"] for row in result["methods"] if f"{first}_lead" in row
    }
    groups = {
        "is better than": [name for name, lead in leads.items() if lead["low"] > 0],
        "is worse than": [name for name, lead in leads.items() if lead["high"] < 0],
        "is not distinguishable from": [
            name for name, lead in leads.items() if lead["low"] <= 0 <= lead["high"]
        ],
    }
    words = "; ".join(f"{verb} {', '.join(names)}" for verb, names in groups.items() if names)
    return f"By {MEASURES[first]} the encoder {words} (95 %, over users and seeds of the head)."


def spell(found: dict[str, float], sign: str = "") -> str:
    """Format a value with its interval."""
    return f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def correlation(loss: Floats, score: Floats) -> tuple[float, float, float]:
    """Compute Pearson's correlation of a score with the decrease of the loss, with its interval.

    The interval is Fisher's z (Fisher 1921): with few runs, a bootstrap over runs covers less than
    its nominal level. All values are nan where the loss or the score does not vary.
    """
    if np.ptp(loss) == 0 or np.ptp(score) <= SAME * np.abs(score).max():
        return np.nan, np.nan, np.nan
    value = float(np.clip(np.corrcoef(-loss, score)[0, 1], -1, 1))
    with np.errstate(divide="ignore"):
        z = np.arctanh(value)
    half = stats.norm.ppf((1 + LEVEL) / 2) / np.sqrt(len(loss) - 3)
    return value, float(np.tanh(z - half)), float(np.tanh(z + half))


def hold_out(compute: Floats) -> NDArray[np.bool_]:
    """Return a mask of the runs with the most compute: one in LARGEST, with ties."""
    least = np.sort(compute)[-max(1, len(compute) // LARGEST)]
    return compute >= least * (1 - SAME)


def predict_largest(compute: Floats, loss: Floats, score: Floats) -> LargestRuns | None:
    """Predict the mean score of the largest runs from their losses.

    The interval is that of the mean of new observations on a least-squares line (Seber and Lee
    2003, section 5.3), with independent residuals of equal variance. None where fewer than FEWEST
    smaller runs vary in loss.
    """
    if len(compute) <= FEWEST:
        return None
    held = hold_out(compute)
    x, y, new = loss[~held], score[~held], loss[held]
    if len(x) < FEWEST or np.ptp(x) == 0:
        return None
    slope, offset = np.polyfit(x, y, 1)
    freedom = len(x) - 2
    noise = float(((y - offset - slope * x) ** 2).sum() / freedom)
    spread = 1 / len(new) + 1 / len(x) + (new.mean() - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
    expected = float(offset + slope * new.mean())
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(noise * spread)) + SAME * abs(
        expected
    )
    return LargestRuns(
        smaller=len(x),
        larger=len(new),
        slope=float(slope),
        offset=float(offset),
        scored=float(score[held].mean()),
        expected=expected,
        low=expected - half,
        high=expected + half,
        stopped=float(offset + slope * x.min()),
        further=bool(new.mean() < x.min()),
    )
