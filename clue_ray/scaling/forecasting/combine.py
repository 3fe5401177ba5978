"""Calibrate a forecast by the errors that earlier ones, from fewer runs, would have had.

At every cut of the frontier the hypotheses (`hypotheses.py`) are weighted by the runs below it and
predict the points up to ten times further. How far the measured losses were from the medians, in
standard deviations of the prediction, gives a factor by which intervals are stretched. Few
predictions move it little away from 1. Recent cuts and distant points count most.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from clue_ray.scaling.forecasting.hypotheses import Posterior
from clue_ray.scaling.laws.law import Floats

FEWEST_POINTS = 3
"""Frontier points that a forecast is made from."""
FURTHEST = 1.05
"""Decades beyond a cut up to which a backtest predicts: slightly more than ten times."""
NEAR = 0.3
"""Decades below which a prediction counts less, in proportion: it says little of distant ones."""
CUT_HALF_LIFE = 1.0
"""Decades by which a cut lies back that counts half as much as the last."""
PRIOR_WEIGHT = 8.0
"""Number of predictions that a factor of 1 counts as."""
LARGEST_DEVIATION = 4.0
"""Standard deviations at which an error is capped."""


class Distribution(NamedTuple):
    """A calibrated prediction of y = ln loss at several places."""

    posterior: Posterior
    places: Floats
    factor: float

    def quantiles(self, *levels: float) -> Floats:
        """Return the quantiles at each place, (levels, m).

        A run with more compute, tuned as well, is not worse than one at the end of the frontier, so
        no quantile exceeds the same one there.
        """
        mixture = self.posterior.predict(np.append(self.posterior.end, self.places))
        middle, *found = mixture.quantiles(np.array([0.5, *levels]))
        stretched = middle + self.factor * (np.array(found) - middle)
        return np.asarray(np.minimum(stretched[:, 1:], stretched[:, :1]))


@dataclass(frozen=True)
class Record:
    """The forecasts that would have been made at every cut of a frontier.

    Attributes:
        x, y: the frontier, log10 of the predictor and ln of the loss, (n,), in order of x.
        cuts: number of points, posterior from these points, and indices of the points predicted.
    """

    x: Floats
    y: Floats
    cuts: tuple[tuple[int, Posterior, np.ndarray], ...]

    @classmethod
    def build(cls, x: Floats, y: Floats, chance: float | None = None) -> "Record":
        """Weigh the hypotheses at every cut; points beyond it are not seen."""
        cuts = []
        for cut in range(FEWEST_POINTS + 1, len(x)):
            beyond = cut + np.flatnonzero(x[cut:] <= x[cut - 1] + FURTHEST)
            if len(beyond):
                cuts.append((cut, Posterior.build(x[:cut], y[:cut], chance), beyond))
        return cls(x, y, tuple(cuts))

    def factor(self, seen: int | None = None) -> float:
        """Return the root mean square error in standard deviations, shrunk to 1.

        Predictions from one cut err together, so together they count as the root of their number.

        Args:
            seen: number of points that are known; all of them by default.
        """
        seen = len(self.x) if seen is None else seen
        total = count = PRIOR_WEIGHT
        for cut, posterior, beyond in self.cuts:
            known = beyond[beyond < seen]
            if not len(known):
                continue
            distance = self.x[known] - self.x[cut - 1]
            recency = 2.0 ** (-(self.x[seen - 1] - self.x[cut - 1]) / CUT_HALF_LIFE)
            weight = recency * np.minimum(1, distance / NEAR) / np.sqrt(len(known))
            total += weight @ self._deviations(posterior, known) ** 2
            count += weight.sum()
        return float(np.sqrt(total / count))

    def _deviations(self, posterior: Posterior, points: np.ndarray) -> Floats:
        """Return measured minus predicted in standard deviations, by the normal scores."""
        share = posterior.predict(self.x[points]).below(self.y[points])
        tiny = np.finfo(float).eps
        score = ndtri(np.clip(share, tiny, 1 - tiny))
        return np.asarray(np.clip(score, -LARGEST_DEVIATION, LARGEST_DEVIATION))
