"""What a grid can and cannot show, said before it is paid for: one sentence a doubt, with the
number found.
"""

import itertools
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clue_ray.corpus.store import Corpus
from clue_ray.spec.columns import SIZE, run_axes, short_label
from clue_ray.spec.specs import StudySpec
from clue_ray.study.directory import StudyDirectory
from clue_ray.training.evaluate import make_pools

if TYPE_CHECKING:
    from clue_ray.study.planned import PlannedRun


ENOUGH_DECADES = 1.5
ENOUGH_SCALES = 4
TELLING_APART = 0.95
"""Correlation of two axes' logarithms above which no fit separates their effects."""
WISE_EPOCHS = 4
"""Passes over a text up to which repeating it costs little (Muennighoff et al. 2023, arXiv
2305.16264)."""
USER_DEVIATION = 0.3
"""Nats: typical standard deviation over users of the difference of two runs' losses."""
FINE_DIFFERENCE = 0.03
"""Nats: what a step along an axis of a small study often changes."""


class Scales(NamedTuple):
    """One quantity over the runs of a study."""

    name: str
    values: list[float]

    @property
    def distinct(self) -> int:
        """Distinct values."""
        return len(set(self.values))


def find_warnings(planned: list["PlannedRun"], corpus: Corpus, study: StudySpec) -> list[str]:
    """Say what would weaken the study's answer."""
    columns = [SIZE, *run_axes()]
    scales = [Scales(short_label(c), [getattr(r.description, c) for r in planned]) for c in columns]
    swept = [each for each in scales if each.distinct > 1]
    tokens = Scales(short_label("train_tokens"), [float(r.train_tokens) for r in planned])
    return [
        *_few_scales(swept),
        *_collinear(
            [(a, b) for a, b in itertools.combinations(swept, 2)]
            + [(scales[0], tokens)] * (scales[0] in swept)
        ),
        *_narrow_compute(planned),
        *_many_epochs(planned, corpus),
        *untaught_pairs(planned, corpus),
        *no_service_alone(planned, corpus),
        *_same_training(planned),
        *_small_pool(corpus, study.evaluation.candidates),
    ]


def _few_scales(swept: list[Scales]) -> list[str]:
    """Say which axes have too few values for a law."""
    return [
        f"the runs have {axis.distinct} values of {axis.name}; a law along them needs at least "
        f"{ENOUGH_SCALES}."
        for axis in swept
        if axis.distinct < ENOUGH_SCALES
    ]


def _collinear(pairs: list[tuple[Scales, Scales]]) -> list[str]:
    """Say which two quantities move together over the grid, so that no fit can tell their effects
    apart.
    """
    warnings = []
    for first, second in pairs:
        if second.distinct == 1:
            continue
        found = float(np.corrcoef(np.log(first.values), np.log(second.values))[0, 1])
        if abs(found) > TELLING_APART:
            warnings.append(
                f"{first.name} and {second.name} move together (correlation of logarithms "
                f"{found:.2f}), so that no law "
                "can tell their effects apart; add runs in which one of them changes alone."
            )
    return warnings


def _narrow_compute(planned: list["PlannedRun"]) -> list[str]:
    """Say when the runs span too little compute for a law in it."""
    compute = [r.train_flops for r in planned]
    decades = np.log10(max(compute) / min(compute))
    if decades >= ENOUGH_DECADES:
        return []
    return [
        f"compute spans {decades:.1f} decades; a law in compute wants at least {ENOUGH_DECADES}."
    ]


def _many_epochs(planned: list["PlannedRun"], corpus: Corpus) -> list[str]:
    """Say when users are repeated more than is wise: a run passes over the users of a pair
    users_seen / sum of all pairs' users times, for pairs take turns in proportion to their users.
    """
    pairs: dict[int, int] = {}
    for users in {r.description.corpus_users for r in planned}:
        subset = corpus.train_users[:users]
        pairs[users] = sum(len(corpus.users_of_pair(subset, pair)) for pair in corpus.pairs())
    epochs = [
        r.steps * r.description.global_batch_size / max(1, pairs[r.description.corpus_users])
        for r in planned
    ]
    many = [each for each in epochs if each > WISE_EPOCHS]
    if not many:
        return []
    return [
        f"{len(many)} of {len(planned)} runs pass over the users of a pair of services more than "
        f"{WISE_EPOCHS} times, "
        f"up to {max(many):.1f}; repeated users teach less and less, so lower the horizon or give "
        f"more users."
    ]


def untaught_pairs(planned: list["PlannedRun"], corpus: Corpus) -> list[str]:
    """Say when runs leave out pairs of services that have users, but fewer than a batch: they are
    scored untaught.
    """
    sizes = {(r.description.corpus_users, r.description.global_batch_size) for r in planned}
    left = 0
    for users, batch in sizes:
        counts = [
            len(corpus.users_of_pair(corpus.train_users[:users], pair)) for pair in corpus.pairs()
        ]
        left = max(left, sum(0 < count < batch for count in counts))
    if not left:
        return []
    return [
        f"up to {left} of {len(corpus.pairs())} service pairs have fewer training users than a "
        f"batch and are left "
        "out of training there; lower train.global_batch_size, or give more users."
    ]


def no_service_alone(planned: list["PlannedRun"], corpus: Corpus) -> list[str]:
    """Say when runs ask for batches of one service and no service has the users for one: they train
    without.
    """
    asked = {
        (r.description.corpus_users, r.description.global_batch_size)
        for r in planned
        if r.run.train.same_service
    }
    counts = {
        users: (corpus.counts[corpus.train_users[:users]] >= 2).sum(0).max() for users, _ in asked
    }
    most = [counts[users] for users, batch in asked if counts[users] < batch]
    if not most:
        return []
    return [
        f"train.same_service asks for batches of one service, but some runs have at most "
        f"{min(most):,} training users "
        "with two events in any, fewer than a batch, and train without; lower "
        "train.global_batch_size, or give more "
        "users."
    ]


def _same_training(planned: list["PlannedRun"]) -> list[str]:
    """Say when runs of different ids train the same thing: horizons that round to the same steps,
    all users named.
    """
    horizon = {"train": {"steps", "users_seen", "train_flops"}}
    alike = Counter(
        (
            r.run.model_dump_json(
                exclude={"resources": True, "corpus_users": True, "encoder": {"size"}, **horizon}
            ),
            r.steps,
            r.description.corpus_users,
        )
        for r in planned
    )
    twins = sum(count - 1 for count in alike.values())
    if not twins:
        return []
    return [
        f"{twins} of {len(planned)} runs train the same steps on the same users as another; leave "
        f"out one of each."
    ]


def _small_pool(corpus: Corpus, candidates: int) -> list[str]:
    """Say which pairs are not scored, and when the pool is too small to tell neighbouring runs
    apart.
    """
    pools = make_pools(corpus, candidates)
    warnings = []
    if len(pools) < len(corpus.pairs()):
        warnings.append(
            f"{len(corpus.pairs()) - len(pools)} of {len(corpus.pairs())} service pairs have fewer "
            f"than {candidates:,} "
            "held-out users and are not scored."
        )
    users = len(np.unique(np.concatenate(list(pools.values()))))
    blur = 2 * USER_DEVIATION / np.sqrt(users)
    if blur > FINE_DIFFERENCE:
        warnings.append(
            f"the evaluation pool holds {users:,} users, which tell two runs apart from about "
            f"{blur:.3f} nats on; "
            "hold out more users (corpus.split.test) to see smaller differences."
        )
    return warnings


def find_notes(planned: list["PlannedRun"], points: int, directory: StudyDirectory) -> list[str]:
    """Say what earlier commands left, and what of it the study file still counts."""
    status = Counter(r.status for r in planned)
    dropped = directory.recorded() - {r.run_id for r in planned}
    again = any(r.retry for r in planned)
    retried = (
        "trained again"
        if again
        else "left as they are; clue-ray run --retry-failed trains them again"
    )
    told = {
        f"Points that repeat another grid's and train once: {points - len(planned)}.": points
        - len(planned),
        f"Done before and still valid: {status['done']} of {len(planned)} runs.": status["done"],
        f"Diverged before, and would again: {status['diverged']}.": status["diverged"],
        f"Failed before: {status['failed']}, {retried}.": status["failed"],
        f"Finished before but no longer in this study file: {len(dropped)}, kept in "
        f"{directory.path}, out of the "
        "table.": len(dropped),
    }
    return [sentence for sentence, count in told.items() if count]
