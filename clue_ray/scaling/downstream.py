"""Does a task's score follow the loss, and does it still do so at the largest compute?

Takes compute, loss and a task's score of finished runs, gives a judgement. One idea: as in a
backtest, the straight line of score over loss is drawn through the smaller runs and asked for the
largest; where they lie off its prediction interval, task and loss part, and where the interval also
holds "no further gain", the runs cannot tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FEWEST = 4
"""Runs a correlation needs, and the line that predicts the largest."""
LARGEST = 4
"""One run in so many is held out, those with the most compute."""
LEVEL = 0.95
SAME = 1e-9
"""Relative difference of computes, and of scores, that is rounding."""

MEASURES = {
    "mrr": "MRR",
    "ndcg_at_10": "nDCG@10",
    "recall_at_10": "recall@10",
    "auc": "AUC",
    "r2": "R2",
}
"""What a task may be scored by, the telling one first, as words."""

Floats = NDArray[np.float64]
Verdict = Literal["holds", "less", "more", "unclear", "no further"]


@dataclass(frozen=True)
class LargestRuns:
    """What the line through the smaller runs said of the largest.

    Attributes:
        smaller, larger: runs the line was drawn through, and runs held out.
        slope, offset: of the line, score over loss.
        scored: mean score of the largest.
        expected, low, high: what the line gives at their losses, and its prediction interval.
        stopped: what it gives at the lowest loss of the smaller runs: the score had the gain ended
            there.
        further: whether the largest runs' mean loss lies below that.
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
        """Name what the interval says."""
        if self.scored < self.low:
            return "less"
        if self.scored > self.high:
            return "more"
        if not self.further:
            return "no further"
        return "holds" if self.stopped < self.low else "unclear"


def compare_methods(result: Mapping[str, Any]) -> str:
    """Say of a task's result whom the encoder beats beyond doubt, and whom not, by its first
    measure.
    """
    first = next(name for name in MEASURES if name in result["methods"][0])
    leads = {
        row["method"]: row[f"{first}_lead"] for row in result["methods"] if f"{first}_lead" in row
    }
    said = {
        "beats": [name for name, lead in leads.items() if lead["low"] > 0],
        "is beaten by": [name for name, lead in leads.items() if lead["high"] < 0],
        "cannot be told from": [
            name for name, lead in leads.items() if lead["low"] <= 0 <= lead["high"]
        ],
    }
    words = "; ".join(f"{verb} {', '.join(names)}" for verb, names in said.items() if names)
    return f"By {MEASURES[first]} the encoder {words} (95 %, over users and starts of the head)."


def spell(found: dict[str, float], sign: str = "") -> str:
    """Write a value with its interval."""
    return f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def correlation(loss: Floats, score: Floats) -> tuple[float, float, float]:
    """Pearson's correlation of a score with the fall of the loss, and its interval by Fisher's z
    (Fisher 1921).

    A bootstrap over runs covers less than it says where they are few. All nan where loss or score
    do not vary.
    """
    if np.ptp(loss) == 0 or np.ptp(score) <= SAME * np.abs(score).max():
        return np.nan, np.nan, np.nan
    value = float(np.clip(np.corrcoef(-loss, score)[0, 1], -1, 1))
    with np.errstate(divide="ignore"):
        z = np.arctanh(value)
    half = stats.norm.ppf((1 + LEVEL) / 2) / np.sqrt(len(loss) - 3)
    return value, float(np.tanh(z - half)), float(np.tanh(z + half))


def hold_out(compute: Floats) -> NDArray[np.bool_]:
    """Mark the runs with the most compute, one in LARGEST, and all that share theirs."""
    least = np.sort(compute)[-max(1, len(compute) // LARGEST)]
    return compute >= least * (1 - SAME)


def predict_largest(compute: Floats, loss: Floats, score: Floats) -> LargestRuns | None:
    """Predict the largest runs' mean score from their losses; None where fewer than FEWEST smaller
    runs vary in loss.

    The interval is that of the mean of new observations at given places on a least-squares line
    (Seber and Lee 2003, section 5.3): runs scatter about the line alike and independently.
    """
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
