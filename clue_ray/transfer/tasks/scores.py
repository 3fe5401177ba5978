"""How well users are told apart, with intervals over users and the starts of what reads their
features.

Takes scores and truths of test users, gives one number a user and measure where a measure is a mean
over users, else a function of all of them. One idea: intervals resample what another draw would
change, users and starts of the head.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

RESAMPLES = 1000
LEVEL = 0.95
TOP = 10


Matrix = NDArray[np.float64]
Measure = Callable[[NDArray[np.int64]], float]
"""A measure of one output, over users by index."""


class Interval(NamedTuple):
    """A measure and its bootstrap interval."""

    value: float
    low: float
    high: float


def ranking_measures(
    scores: Matrix, targets: NDArray[np.bool_], missed: NDArray[np.int64]
) -> dict[str, Matrix]:
    """Score rankings of all labels by what each user took, [users] a measure.

    MRR takes the first true label. recall@10 is the share of a user's true labels among their first
    ten, nDCG@10 the discounted gain over the best there is (Järvelin and Kekäläinen 2002). Labels
    that are no candidates count as not found.

    Args:
        scores: [users, labels].
        targets: what is true, [users, labels].
        missed: true labels that are no candidates, [users].
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(targets, order, axis=1)
    true = targets.sum(1) + missed
    first = np.where(hits.any(1), hits.argmax(1) + 1, np.inf)
    discounts = 1 / np.log2(np.arange(2, TOP + 2))
    gains = hits[:, :TOP] @ discounts[: hits.shape[1]]
    best = np.append(0, np.cumsum(discounts))[np.minimum(true, TOP)]
    return {
        "mrr": 1 / first,
        "ndcg_at_10": gains / best,
        "recall_at_10": hits[:, :TOP].sum(1) / true,
    }


def retrieval_measures(cosines: Matrix) -> dict[str, Matrix]:
    """Score a square matrix whose diagonal holds the true pairs, both ways; a tie counts as half a
    place.
    """
    ranks = np.stack([_true_ranks(cosines), _true_ranks(cosines.T)])
    found = ranks <= TOP
    gains = np.where(found, 1 / np.log2(1 + ranks), 0)
    measures = {"mrr": 1 / ranks, "ndcg_at_10": gains, "recall_at_10": found.astype(np.float64)}
    return {name: values.mean(0) for name, values in measures.items()}


def chance_measures(candidates: int) -> dict[str, Matrix]:
    """Return what a guess among candidates is expected to score, the same for each user."""
    ranks = np.arange(1, candidates + 1)
    found = ranks <= TOP
    expected = {"mrr": 1 / ranks, "ndcg_at_10": found / np.log2(1 + ranks), "recall_at_10": found}
    return {name: np.full(candidates, values.mean()) for name, values in expected.items()}


def _true_ranks(cosines: Matrix) -> Matrix:
    truth = np.diag(cosines)[:, None]
    return 1 + (cosines > truth).sum(1) + ((cosines == truth).sum(1) - 1) / 2


def auc(scores: Matrix, classes: NDArray[np.int64]) -> float:
    """Area under the ROC curve: of two classes the second's, of more the mean of each against the
    rest.

    From ranks (Mann and Whitney 1947); a class that no user or every user has is left out.
    """
    columns = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    found = [number for number in columns if 0 < (classes == number).sum() < len(classes)]
    areas = [_area(scores[:, number], classes == number) for number in found]
    return float(np.mean(areas)) if areas else float("nan")


def _area(scores: Matrix, positive: NDArray[np.bool_]) -> float:
    ranks, count = rankdata(scores), int(positive.sum())
    return float(
        (ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count))
    )


def r2(predictions: Matrix, values: Matrix) -> float:
    """Share of the variance explained; below zero where the mean would do better."""
    return float(1 - ((values - predictions) ** 2).sum() / ((values - values.mean()) ** 2).sum())


class Resampled(NamedTuple):
    """A measure of all users, the mean over the outputs judged, and of each resample,
    [RESAMPLES].
    """

    value: float
    draws: Matrix

    def interval(self) -> Interval:
        """Return the measure with its percentile bootstrap interval; a resample that has no value
        is left out.
        """
        low, high = np.quantile(
            self.draws[np.isfinite(self.draws)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        )
        return Interval(self.value, float(low), float(high))

    def lead(self, other: "Resampled") -> "Resampled":
        """Subtract another method's: users are paired."""
        return Resampled(self.value - other.value, self.draws - other.draws)


def resample(outputs: Sequence[Measure], users: int, stream: int = 0) -> Resampled:
    """Draw users with replacement, and what other starts of a head would have given: another study
    would change both.

    Of few starts a draw with replacement varies too little. Their mean is drawn instead as
    Student's t about the mean found, with their spread over the same users (Student 1908); one
    start alone says nothing of others.

    Args:
        outputs: the measure of each start's output.
        stream: of the draws of starts, other for each method; the draws of users are the same for
            all.
    """
    rng = np.random.default_rng(0)
    draws = (
        rng.integers(0, users, users) for _ in range(RESAMPLES)
    )  # one at a time: users may be millions
    found = np.array([[measure(rows) for measure in outputs] for rows in draws])
    value = float(np.mean([measure(np.arange(users)) for measure in outputs]))
    starts = len(outputs)
    if starts == 1:
        return Resampled(value, found[:, 0])
    error = found.std(axis=1, ddof=1) / np.sqrt(starts)
    return Resampled(
        value,
        found.mean(axis=1)
        + error * np.random.default_rng([1, stream]).standard_t(starts - 1, RESAMPLES),
    )
