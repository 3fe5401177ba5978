"""Warn before training of what would weaken a study's answer, one sentence per weakness.

Each sentence holds the number that was found, and what would help.
"""

import itertools
from collections import Counter
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from clue_ray.batches.clock import SECONDS_PER_DAY
from clue_ray.corpus.layout.arrays import PAST_FUTURE, Pair
from clue_ray.corpus.logs.times import EARLIEST_DATE
from clue_ray.corpus.store import Corpus
from clue_ray.runs import WHOLE
from clue_ray.spec.columns import SIZE, run_axes, short_label
from clue_ray.spec.specs import StudySpec
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.planned import PlannedRun
from clue_ray.training.pools import make_pools

ENOUGH_DECADES = 1.5
"""Decades of compute below which a law in compute is poorly determined."""
ENOUGH_SCALES = 4
"""Values of an axis below which a law along it is poorly determined."""
COLLINEAR = 0.95
"""Correlation of the logarithms of two axes above which no fit separates their effects."""
WISE_EPOCHS = 4
"""Passes over a text up to which repeating it costs little (Muennighoff et al. 2023, arXiv
2305.16264)."""
USER_DEVIATION = 0.3
"""Typical standard deviation over users of the difference of two runs' losses, nats."""
FINE_DIFFERENCE = 0.03
"""Difference in loss between neighbouring values of an axis in a small study, nats."""


SAMPLED_TIMES = 100_000
"""Times of events that tell whether a log knows more than their days."""


class Scales(NamedTuple):
    """The values of one quantity over the runs of a study."""

    name: str
    values: list[float]

    @property
    def distinct(self) -> int:
        """Number of distinct values."""
        return len(set(self.values))


def find_warnings(planned: list[PlannedRun], corpus: Corpus, study: StudySpec) -> list[str]:
    """List what would weaken the study's answer."""
    columns = [SIZE, *run_axes()]
    # Laws describe the whole encoder, so runs of one part make no axis longer.
    whole = [r for r in planned if r.description.encoder_parts == WHOLE] or planned
    scales = [Scales(short_label(c), [getattr(r.description, c) for r in whole]) for c in columns]
    swept = [each for each in scales if each.distinct > 1]
    tokens = Scales(short_label("train_tokens"), [float(r.train_tokens) for r in whole])
    return [
        *_few_scales(swept),
        *_collinear(
            [(a, b) for a, b in itertools.combinations(swept, 2)]
            + [(scales[0], tokens)] * (scales[0] in swept)
        ),
        *_narrow_compute(whole),
        *_many_epochs(planned, corpus),
        *untrained_pairs(planned, corpus),
        *no_cut_in_time(planned, corpus),
        *coarse_times(planned, corpus),
        *_same_training(planned),
        *_small_pool(corpus, study.evaluation.candidates),
    ]


def _few_scales(swept: list[Scales]) -> list[str]:
    """Warn of axes with too few values for a law."""
    return [
        f"the runs have {axis.distinct} values of {axis.name}; a law along them needs at least "
        f"{ENOUGH_SCALES}."
        for axis in swept
        if axis.distinct < ENOUGH_SCALES
    ]


def _collinear(pairs: list[tuple[Scales, Scales]]) -> list[str]:
    """Warn of two quantities that vary together, so that no fit can separate their effects."""
    warnings = []
    for first, second in pairs:
        if second.distinct == 1:
            continue
        found = float(np.corrcoef(np.log(first.values), np.log(second.values))[0, 1])
        if abs(found) > COLLINEAR:
            warnings.append(
                f"{first.name} and {second.name} vary together (correlation of logarithms "
                f"{found:.2f}), so no law can separate their effects; add runs in which only one "
                f"of them changes."
            )
    return warnings


def _narrow_compute(planned: list[PlannedRun]) -> list[str]:
    """Warn where the runs span too little compute for a law in it."""
    compute = [r.train_flops for r in planned]
    decades = np.log10(max(compute) / min(compute))
    if decades >= ENOUGH_DECADES:
        return []
    return [
        f"compute spans {decades:.1f} decades; a law in compute needs at least {ENOUGH_DECADES}."
    ]


def _many_epochs(planned: list[PlannedRun], corpus: Corpus) -> list[str]:
    """Warn where runs repeat their users too often.

    Pairs of services take turns in proportion to their users, so a run passes over each pair's
    users (users seen / sum of all pairs' users) times.
    """
    pairs: dict[int, int] = {}
    for users in {r.description.corpus_users for r in planned}:
        pairs[users] = sum(len(corpus.training_pool(pair, users)) for pair in corpus.pairs())
    epochs = [
        r.steps * r.description.global_batch_size / max(1, pairs[r.description.corpus_users])
        for r in planned
    ]
    many = [each for each in epochs if each > WISE_EPOCHS]
    if not many:
        return []
    return [
        f"{len(many)} of {len(planned)} runs pass over the users of a pair of services more than "
        f"{WISE_EPOCHS} times, up to {max(many):.1f}; each pass over the same users teaches less, "
        f"so lower the horizon or give more users."
    ]


def untrained_pairs(planned: list[PlannedRun], corpus: Corpus) -> list[str]:
    """Warn of pairs of services with fewer users than a batch: evaluated, but never trained."""
    sizes = {(r.description.corpus_users, r.description.global_batch_size) for r in planned}
    left = 0
    for users, batch in sizes:
        counts = [len(corpus.training_pool(pair, users)) for pair in corpus.pairs()]
        left = max(left, sum(0 < count < batch for count in counts))
    if not left:
        return []
    return [
        f"up to {left} of {len(corpus.pairs())} service pairs have fewer training users than a "
        f"batch and are left out of training there; lower train.global_batch_size, or give more "
        f"users."
    ]


def no_cut_in_time(planned: list[PlannedRun], corpus: Corpus) -> list[str]:
    """Warn where runs ask for batches that cut histories in time and too few users fit one."""
    services = range(len(corpus.services))
    return [
        *_too_few(
            planned, corpus, "same_service", [(s, s) for s in services], "events in any service"
        ),
        *_too_few(planned, corpus, "past_future", [PAST_FUTURE], "different times of events"),
    ]


def _too_few(
    planned: list[PlannedRun], corpus: Corpus, field: str, pairs: list[Pair], needed: str
) -> list[str]:
    """Warn where no pool of some pairs fills a batch of the runs that ask for them.

    Args:
        field: of `train`; the share of such batches.
        needed: what a user must have two of.
    """
    asked = {
        (r.description.corpus_users, r.description.global_batch_size)
        for r in planned
        if getattr(r.run.train, field)
    }
    counts = {
        users: max(len(corpus.training_pool(pair, users)) for pair in pairs) for users, _ in asked
    }
    most = [counts[users] for users, batch in asked if counts[users] < batch]
    if not most:
        return []
    return [
        f"train.{field} asks for batches whose histories are cut in time, but some runs have at "
        f"most {min(most):,} training users with two {needed}, fewer than a batch, and train "
        f"without such batches; lower train.global_batch_size, or give more users."
    ]


def coarse_times(planned: list[PlannedRun], corpus: Corpus) -> list[str]:
    """Warn where encoders read times and the log knows only days, or only an order."""
    if not any(r.run.encoder.time for r in planned):
        return []
    if corpus.last_time < EARLIEST_DATE:
        return [
            "encoder.time reads hours and gaps in seconds, but the log has no times, or times that "
            f"only tell an order (0 to {corpus.last_time:,.0f}); name the column of times in "
            "corpus.columns, or leave encoder.time false."
        ]
    times = corpus.times[:: max(1, len(corpus.times) // SAMPLED_TIMES)]
    if len(np.unique(times % SECONDS_PER_DAY)) > 1:
        return []
    return [
        "encoder.time reads hours and gaps of less than a day, but all times of the log are at "
        f"{datetime.fromtimestamp(times[0], UTC):%H:%M} UTC; give times to the second, or expect "
        "only days and weekdays to help."
    ]


def _same_training(planned: list[PlannedRun]) -> list[str]:
    """Warn of runs with different ids that train the same steps on the same users.

    Horizons may round to the same steps, and `corpus_users` may name all users.
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
        f"out one of each pair."
    ]


def _small_pool(corpus: Corpus, candidates: int) -> list[str]:
    """Warn of pairs that are not evaluated, and of a pool too small to separate similar runs."""
    pools = make_pools(corpus, candidates).scored
    warnings = []
    if len(pools) < len(corpus.pairs()):
        warnings.append(
            f"{len(corpus.pairs()) - len(pools)} of {len(corpus.pairs())} service pairs have fewer "
            f"than {candidates:,} held-out users and are not evaluated."
        )
    users = len(np.unique(np.concatenate(list(pools.values()))))
    smallest = 2 * USER_DEVIATION / np.sqrt(users)  # two standard errors of the mean difference
    if smallest > FINE_DIFFERENCE:
        warnings.append(
            f"the evaluation pool holds {users:,} users, which separate two runs whose losses "
            f"differ by about {smallest:.3f} nats or more; hold out more users "
            f"(corpus.split.test) to see smaller differences."
        )
    return warnings


def find_notes(planned: list[PlannedRun], points: int, directory: StudyDirectory) -> list[str]:
    """List what earlier commands left, and how much of it this study file uses."""
    status = Counter(r.status for r in planned)
    dropped = directory.ended_run_ids() - {r.run_id for r in planned}
    again = any(r.retry for r in planned)
    retried = (
        "trained again"
        if again
        else "left as they are; clue-ray run --retry-failed trains them again"
    )
    repeated = points - len(planned)
    counts = {
        f"Points that repeat another grid's and train once: {repeated}.": repeated,
        f"Done before and still valid: {status['done']} of {len(planned)} runs.": status["done"],
        f"Diverged before, and would diverge again: {status['diverged']}.": status["diverged"],
        f"Failed before: {status['failed']}, {retried}.": status["failed"],
        "Runs train on GPUs in bf16; train.precision: fp32 is exact and several times slower.": (
            _count_on_gpus(planned, "bf16")
        ),
        "Runs train on GPUs in fp32, at a tenth of the speed of train.precision: bf16 or less.": (
            _count_on_gpus(planned, "fp32")
        ),
        f"Finished before but no longer in this study file: {len(dropped)}, kept in "
        f"{directory.path}, not in the table.": len(dropped),
    }
    return [sentence for sentence, count in counts.items() if count]


def _count_on_gpus(planned: list[PlannedRun], precision: str) -> int:
    """Count the runs that train on GPUs in a precision."""
    runs = [r.run for r in planned]
    return sum(r.resources.gpus_per_worker > 0 and r.train.precision == precision for r in runs)
