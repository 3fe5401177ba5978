"""Combine the candidates' predictions by how well each predicted larger runs before.

The record of a candidate is its backtest: at every cut of the frontier it is fitted below the cut
and predicts the points up to ten times further. Errors grow about in proportion to the distance in
log x, so they are compared per decade. Recent cuts count more than early ones.

The combined prediction is a weighted mean, its scale has two parts: the candidates' own backtest
errors at that distance, and the spread between candidates. A last factor makes the scale as large
as the errors of the *combined* forecast in a nested backtest, in which each cut sees only what was
known there. The interval is that of Student's t with few degrees of freedom, because errors of real
studies have heavy tails.

The constants were chosen on half of the public sets; docs/reference/statistics.md says how, and how
forecasts fared on the other half.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clue_ray.scaling.forecasting.candidates import CANDIDATES
from clue_ray.scaling.laws.law import Floats

FEWEST_POINTS = 3
"""Frontier points that a candidate is fitted to."""
FURTHEST = 1.05
"""Decades beyond a cut up to which a backtest predicts: slightly more than ten times."""
OFFSET = 0.15
"""Decades added to a distance: the next point, however near, is not predicted exactly."""
NEAR = 0.3
"""Decades below which a prediction counts less, in proportion: it says little of distant ones."""
CUT_HALF_LIFE = 1.0
"""Decades by which a cut lies back that counts half as much as the last."""
LARGEST_ERROR = 5.0
"""Cap of an error, in ln of the loss per decade."""
PRIOR_ERROR, PRIOR_WEIGHT, LEAST_ERROR = 0.1, 0.3, 0.01
"""Backtest error per decade that is assumed before any was seen, its weight, and the least one."""
PRIOR_FACTOR, FACTOR_WEIGHT, LARGEST_RATIO = 0.6, 3.0, 5.0
"""The same for the factor on the scale: error over scale of a combined forecast."""
DEGREES_OF_FREEDOM = 3


class Combined(NamedTuple):
    """A combined prediction of y = ln loss, and its parts."""

    mean: float
    scale: float
    weights: Floats
    "of the candidates, (k,), sum 1"


@dataclass(frozen=True)
class Record:
    """The candidates' backtest over a frontier.

    Attributes:
        x, y: the frontier, log10 of the predictor and ln of the loss, (n,), in order of x.
        predictions: of point j by candidate k fitted to the first c points, (n, k, n); nan where
            the point is not beyond the cut, or too far.
    """

    x: Floats
    y: Floats
    predictions: Floats

    @classmethod
    def build(cls, x: Floats, y: Floats) -> "Record":
        """Fit every candidate at every cut and predict the points beyond."""
        predictions = np.full((len(x), len(CANDIDATES), len(x)), np.nan)
        for cut in range(FEWEST_POINTS, len(x)):
            beyond = np.flatnonzero((x > x[cut - 1]) & (x <= x[cut - 1] + FURTHEST))
            for k, candidate in enumerate(CANDIDATES):
                predictions[cut, k, beyond] = candidate.fit(x[:cut], y[:cut])(x[beyond])
        return cls(x, y, predictions)

    def targets(self, cut: int, known: int) -> np.ndarray:
        """Return the points that were predicted at a cut and are among the first `known`."""
        return np.flatnonzero(np.isfinite(self.predictions[cut, 0, :known]))

    def combine(self, predicted: Floats, at: float, known: int) -> Combined:
        """Combine predictions (k,) at x = `at`, made from the first `known` points."""
        errors = self._squared_errors(known)
        weights = (1 / errors) / (1 / errors).sum()
        mean = float(weights @ predicted)
        distance = at - self.x[known - 1] + OFFSET
        spread = weights @ (predicted - mean) ** 2
        return Combined(mean, float(np.sqrt(weights @ errors * distance**2 + spread)), weights)

    def _squared_errors(self, known: int) -> Floats:
        """Return each candidate's mean squared backtest error per decade, (k,)."""
        total = np.full(len(CANDIDATES), PRIOR_WEIGHT * PRIOR_ERROR**2)
        count = PRIOR_WEIGHT
        for cut in range(FEWEST_POINTS, known):
            targets = self.targets(cut, known)
            distance = self.x[targets] - self.x[cut - 1]
            error = (self.predictions[cut][:, targets] - self.y[targets]) / (distance + OFFSET)
            weight = self._recency(cut, known) * np.minimum(1, distance / NEAR)
            total = total + np.minimum(error**2, LARGEST_ERROR**2) @ weight
            count += weight.sum()
        return total / count + LEAST_ERROR**2

    def _recency(self, cut: int, known: int) -> float:
        return float(2.0 ** (-(self.x[known - 1] - self.x[cut - 1]) / CUT_HALF_LIFE))

    def backtest(self) -> list[tuple[int, int, Combined]]:
        """Combine at every cut with what was known there: (cut, point predicted, prediction)."""
        return [
            (cut, point, self.combine(self.predictions[cut][:, point], self.x[point], cut))
            for cut in range(FEWEST_POINTS + 1, len(self.x))
            for point in self.targets(cut, len(self.x)).tolist()
        ]

    def factor(self) -> float:
        """Return the ratio of the combined forecasts' errors to their scales, shrunk to a prior.

        Predictions from one cut err together, so together they count as the root of their number.
        """
        total, count = FACTOR_WEIGHT * PRIOR_FACTOR**2, FACTOR_WEIGHT
        made = self.backtest()
        number = np.bincount([cut for cut, _, _ in made], minlength=1)
        for cut, point, combined in made:
            distance = self.x[point] - self.x[cut - 1]
            weight = self._recency(cut, len(self.x)) * min(1.0, distance / NEAR)
            weight /= np.sqrt(number[cut])
            ratio = abs(combined.mean - self.y[point]) / combined.scale
            total += weight * min(ratio, LARGEST_RATIO) ** 2
            count += weight
        return float(np.sqrt(total / count))
