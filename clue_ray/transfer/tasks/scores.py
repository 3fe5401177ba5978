"""Measures of a task with bootstrap intervals over test users and over seeds of the head.

A measure is either one number per user, of which the mean is reported, or a function of all users.
Intervals resample what another study would change: the test users, and the seeds of the head.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, expit
from scipy.stats import rankdata

RESAMPLES = 1000
DRAWN_AT_ONCE = 4_000_000
"""Users of the resamples that are computed together."""
LEVEL = 0.95
TOP = 10
"""Ranks that recall@10 and nDCG@10 count."""
Matrix = NDArray[np.float64]
Measure = Callable[[NDArray[np.int64]], float]
"""A measure of one head's scores, as a function of the indices of users."""


class Interval(NamedTuple):
    """A measure and its bootstrap interval."""

    value: float
    low: float
    high: float


def ranking_measures(
    scores: Matrix, targets: NDArray[np.bool_], missed: NDArray[np.int64]
) -> dict[str, Matrix]:
    """Compute measures of rankings of all labels, each [users].

    MRR uses the first true label. recall@10 is the share of a user's true labels among the first
    ten. nDCG@10 is the discounted gain relative to the best possible one (Järvelin and Kekäläinen
    2002). True labels that are not candidates count as not found.

    Args:
        scores: [users, labels].
        targets: true labels, [users, labels].
        missed: number of true labels that are not candidates, [users].
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
    """Compute measures of retrieval in both directions, each [users].

    Args:
        cosines: a square matrix with the true pairs on its diagonal. A tie counts as half a rank.
    """
    ranks = np.stack([_true_ranks(cosines), _true_ranks(cosines.T)])
    found = ranks <= TOP
    gains = np.where(found, 1 / np.log2(1 + ranks), 0)
    measures = {"mrr": 1 / ranks, "ndcg_at_10": gains, "recall_at_10": found.astype(np.float64)}
    return {name: values.mean(0) for name, values in measures.items()}


def chance_measures(candidates: int) -> dict[str, Matrix]:
    """Return the expected measures of a random ranking, the same for each user."""
    ranks = np.arange(1, candidates + 1)
    found = ranks <= TOP
    expected = {"mrr": 1 / ranks, "ndcg_at_10": found / np.log2(1 + ranks), "recall_at_10": found}
    return {name: np.full(candidates, values.mean()) for name, values in expected.items()}


def _true_ranks(cosines: Matrix) -> Matrix:
    """Return the rank of the diagonal element in each row, from 1."""
    truth = np.diag(cosines)[:, None]
    return 1 + (cosines > truth).sum(1) + ((cosines == truth).sum(1) - 1) / 2


class MacroAuc:
    """The mean over labels of the area under the ROC curve, as a measure of one head's scores.

    It is computed from ranks (Mann and Whitney 1947). A resample is computed to first order, from
    each user's placement among the users of the other answer (DeLong, DeLong and Clarke-Pearson
    1988), without ranking users again. For all users once it is exact. A label that no user or
    every user has is left out.

    Args:
        scores: [users, labels].
        targets: true labels, [users, labels] of bool.
    """

    def __init__(self, scores: Matrix, targets: NDArray[np.bool_]):
        varied = targets.any(0) & ~targets.all(0)
        self.targets = targets[:, varied].astype(np.float64)
        columns = zip(scores[:, varied].T, targets[:, varied].T, strict=True)
        self.placements = np.empty(self.targets.shape)
        for number, column in enumerate(columns):
            self.placements[:, number] = _placements(*column)
        self.won = self.placements * self.targets
        self.areas = self.won.sum(0) / self.targets.sum(0)

    def __call__(self, rows: NDArray[np.int64]) -> float:
        """Compute the mean area for a resample of users; nan where no label is left."""
        return float(self.many(count_draws([rows], len(self.targets)))[0])

    def many(self, weights: Matrix) -> Matrix:
        """Compute it for several resamples at once, [resamples].

        Args:
            weights: how often each resample has each user, [resamples, users].
        """
        having, won, all_won = (
            weights @ each for each in (self.targets, self.won, self.placements)
        )
        drawn = weights.sum(1, keepdims=True)
        found = (having > 0) & (having < drawn)
        with np.errstate(divide="ignore", invalid="ignore"):
            areas = won / having + (all_won - won) / (drawn - having)
            moved = np.where(found, areas - self.areas, 0).sum(1) / found.sum(1)
        return moved


def class_auc(scores: Matrix, classes: NDArray[np.int64]) -> MacroAuc:
    """Return the area of the second of two classes, or the mean of each class against the rest."""
    columns = [1] if scores.shape[1] == 2 else list(range(scores.shape[1]))
    return MacroAuc(scores[:, columns], classes[:, None] == np.array(columns))


class ChallengeScore:
    """The propensity score of the RecSys Challenge 2025, as a measure of one head's scores.

    It is .8 macro AUC + .1 novelty + .1 diversity. Novelty is (1 - p)^100, where p is the mean over
    users of the sum over their ten highest probabilities, each times the label's popularity over
    that of the most popular one. Diversity is the mean entropy of the probabilities, divided by
    their sum, relative to that of equal ones.

    Args:
        scores: logits, [users, labels].
        auc: the area of the same scores, whose ranks take longest to compute.
        popularity: number of training users with each label, [labels].
    """

    def __init__(self, scores: Matrix, auc: MacroAuc, popularity: NDArray[np.int64]):
        self.auc = auc
        chances = expit(scores)
        top = np.argsort(-chances, axis=1, kind="stable")[:, :TOP]
        weights = popularity / max(1, popularity.max())
        self.popular = (np.take_along_axis(chances, top, axis=1) * weights[top]).sum(1)
        shares = chances / chances.sum(1, keepdims=True)
        self.entropy = entr(shares).sum(1) / np.log(max(2, scores.shape[1]))

    def __call__(self, rows: NDArray[np.int64]) -> float:
        """Compute the score for a resample of users."""
        return float(self.many(count_draws([rows], len(self.popular)))[0])

    def many(self, weights: Matrix) -> Matrix:
        """Compute it for several resamples at once; the argument is that of `MacroAuc.many`."""
        drawn = weights.sum(1)
        novelty = np.maximum(0, 1 - weights @ self.popular / drawn) ** 100
        return 0.8 * self.auc.many(weights) + 0.1 * novelty + 0.1 * (weights @ self.entropy) / drawn


def count_draws(draws: Sequence[NDArray[np.int64]], users: int) -> Matrix:
    """Return how often each resample has each user, [resamples, users]."""
    return np.stack([np.bincount(rows, minlength=users) for rows in draws]).astype(np.float64)


def _placements(scores: Matrix, positive: NDArray[np.bool_]) -> Matrix:
    """Return the share of users of the other answer that each user is ordered correctly to.

    A tie counts as half.
    """
    ranks, placements = rankdata(scores), np.empty(len(scores))
    for group, sign in ((positive, 1), (~positive, -1)):
        below = (ranks[group] - rankdata(scores[group])) / (len(scores) - group.sum())
        placements[group] = below if sign > 0 else 1 - below
    return placements


def r2(predictions: Matrix, values: Matrix) -> float:
    """Compute the coefficient of determination, negative if the mean is a better predictor."""
    return float(1 - ((values - predictions) ** 2).sum() / ((values - values.mean()) ** 2).sum())


class Resampled(NamedTuple):
    """A measure averaged over heads, for all users and for each resample, [RESAMPLES]."""

    value: float
    draws: Matrix

    def interval(self) -> Interval:
        """Return the measure with its percentile bootstrap interval.

        A resample in which the measure is undefined is left out.
        """
        low, high = np.quantile(
            self.draws[np.isfinite(self.draws)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        )
        return Interval(self.value, float(low), float(high))

    def lead(self, other: "Resampled") -> "Resampled":
        """Return the difference to another method, paired by users."""
        return Resampled(self.value - other.value, self.draws - other.draws)


def _measure_draws(measure: Measure, draws: list[NDArray[np.int64]], users: int) -> Matrix:
    """Compute a measure for some resamples, by one product of matrices where it can."""
    many = getattr(measure, "many", None)
    if many is None:
        return np.array([measure(rows) for rows in draws])
    found: Matrix = many(count_draws(draws, users))
    return found


def resample(outputs: Sequence[Measure], users: int, stream: int = 0) -> Resampled:
    """Resample a measure over test users and over seeds of the head.

    Users are drawn with replacement. With a few seeds, drawing those with replacement would
    underestimate their variance. Instead, the mean over seeds is drawn from Student's t
    distribution, with the standard error over the seeds for the same users (Student 1908). A single
    seed gives no estimate of this variance, so it is not included.

    Args:
        outputs: the measure of the head of each seed.
        users: number of test users.
        stream: random stream for the seeds, another one for each method. The draws of users are the
            same for all methods, so that their differences are paired.
    """
    rng = np.random.default_rng(0)
    # Drawn some resamples at a time, because there may be millions of users.
    at_once, parts = max(1, DRAWN_AT_ONCE // users), []
    for start in range(0, RESAMPLES, at_once):
        draws = [rng.integers(0, users, users) for _ in range(min(at_once, RESAMPLES - start))]
        parts.append(np.stack([_measure_draws(each, draws, users) for each in outputs], axis=1))
    resampled = np.concatenate(parts)
    value = float(np.mean([measure(np.arange(users)) for measure in outputs]))
    seeds = len(outputs)
    if seeds == 1:
        return Resampled(value, resampled[:, 0])
    error = resampled.std(axis=1, ddof=1) / np.sqrt(seeds)
    noise = np.random.default_rng([1, stream]).standard_t(seeds - 1, RESAMPLES)
    return Resampled(value, resampled.mean(axis=1) + error * noise)
