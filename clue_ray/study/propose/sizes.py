"""Propose a study for a log and a budget: sizes, budgets, histories, batch, pool and seeds.

The shape of the study is fixed: training budgets over two decades, each with neighbouring encoder
sizes that grow with it; two more seeds where runs are cheap; histories of several lengths.
`written.py` says why in the file.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from clue_ray.corpus.guess import LogFacts
from clue_ray.errors import SpecError
from clue_ray.spec.compute import Work, train_flops
from clue_ray.spec.specs import EncoderSpec
from clue_ray.training.pools import MIN_VALIDATION_USERS

Floats = NDArray[np.float64]
BUDGETS = 5
DECADES = 2.0
SIZES = ("xxs", "xs", "s", "m", "l", "xl", "2xl", "4xl")
LARGEST_BATCH = 256
DESIGNS = (
    (2, 4, LARGEST_BATCH),
    (1, 4, LARGEST_BATCH),
    (0, 4, LARGEST_BATCH),
    (0, 3, LARGEST_BATCH),
    (0, 3, 128),
    (0, 3, 64),
    (0, 2, 64),
)
"""Rung of the smallest encoder, number of sizes of a budget, and largest batch; the richest design
first."""
GROWTH = (0, 0, 1, 1, 2)
"""Rungs by which the sizes of each budget move up the ladder: about one a decade, as the best size
grows with the root of compute."""
MOST_PASSES = 60
"""Passes over the training users above which a run mostly repeats histories: the budget then moves
to larger encoders."""
FEWEST_SIZES = 2
FEWEST_STEPS = 30
"""Steps that each encoder must have; a design whose cheapest budget has too few is passed over."""
CHARACTERS_PER_TOKEN = 4
"""Assumed, to count the FLOPs of a step before there is a tokenizer; the plan counts tokens."""
SEEDS = (1, 2)
SEEDED = 2
"""Cheapest budgets that two more seeds repeat."""
POOLS = (256, 128, 64, 32)
MOST_SERVICES = 6
FEWEST_USERS = 200
"""Users with events in two services below which no pool of 32 and no batch is left."""
MOST_TEST = 0.24
"""Largest share of users held out to score."""
VALIDATION = 0.05
"""Share held out to calibrate, where it leaves enough of them."""
CERTAIN = 2.33
"""Standard deviations below the mean that 99 in 100 splits reach, drawn by hashes of users."""
LONGEST = 400
PERCENTILES = (50, 75, 90)


@dataclass(frozen=True)
class Proposal:
    """The numbers of a study file.

    Attributes:
        services: the services to keep.
        test: share of users held out to score.
        validation: share held out to calibrate the temperature.
        candidates: held-out users per pair of services.
        batch: users per step.
        lengths: history lengths, the shortest first; the base run has the middle one.
        budgets: training FLOPs, from cheap to expensive.
        sizes: encoders of each budget, the smallest first.
        vocab_size: of the tokenizer.
    """

    services: tuple[str, ...]
    test: float
    validation: float
    candidates: int
    batch: int
    lengths: tuple[int, ...]
    budgets: tuple[float, ...]
    sizes: tuple[tuple[str, ...], ...]
    vocab_size: int

    @property
    def length(self) -> int:
        """The history length of the base run."""
        return self.lengths[len(self.lengths) // 2]

    @property
    def size(self) -> str:
        """The encoder of the base run, of the middle budget."""
        middle = self.sizes[len(self.sizes) // 2]
        return middle[len(middle) // 2]


def propose(facts: LogFacts, total_flops: float) -> Proposal:
    """Propose a study whose runs cost about `total_flops` in all.

    Raises:
        SpecError: the log has one service, or too few users in two services.
    """
    services = _services(facts)
    smallest = min(facts.pairs[pair] for pair in _pairs_of(services, facts))
    largest = max(facts.pairs[pair] for pair in _pairs_of(services, facts))
    candidates = next((k for k in POOLS if _share_for(k, smallest) <= MOST_TEST), POOLS[-1])
    test = _share_for(candidates, smallest)
    validation = max(VALIDATION, _share_for(MIN_VALIDATION_USERS, largest))
    users, lengths = largest * (1 - test - validation), _lengths(facts)
    for first, count, most in DESIGNS:
        batch = int(2 ** np.floor(np.log2(np.clip(users / 4, 16, most))))
        budgets = budgets_for(total_flops, count)
        steps = _step_flops(facts, batch, lengths[len(lengths) // 2])
        if budgets[0] >= FEWEST_STEPS * steps[first + count - 1]:
            break
    sizes = tuple(
        _sizes_of(budget / steps, first + up, count, MOST_PASSES * users / batch)
        for budget, up in zip(budgets, GROWTH, strict=True)
    )
    vocab_size = 4096 if facts.rows < 3e6 else 8192
    return Proposal(
        services, test, validation, candidates, batch, lengths, budgets, sizes, vocab_size
    )


def _sizes_of(steps: Floats, first: int, count: int, most: float) -> tuple[str, ...]:
    """Return neighbouring sizes from a rung on whose runs are neither too long nor too short.

    Args:
        steps: that the budget pays for, by rung, (len(SIZES),).
        first: the lowest rung.
        count: sizes to return; at least two, where only fewer suit.
        most: steps above which a run repeats its users too often.
    """
    rungs = np.arange(len(SIZES))
    suit = rungs[(rungs >= first) & (steps <= most) & (steps >= FEWEST_STEPS)][:count]
    if len(suit) < FEWEST_SIZES:
        # Users that repeat are better than runs too short to learn from.
        largest = int((steps >= FEWEST_STEPS).sum()) - FEWEST_SIZES
        start = max(0, min(max(first, int((steps > most).sum())), largest))
        suit = rungs[start : start + FEWEST_SIZES]
    return tuple(SIZES[rung] for rung in suit)


def _share_for(needed: int, users: int) -> float:
    """Return the smallest share, in hundredths, that holds out `needed` users almost certainly."""
    shares = np.arange(5, 96) / 100
    expected = shares * users
    enough = expected - CERTAIN * np.sqrt(expected * (1 - shares)) >= needed
    return float(shares[enough.argmax()]) if enough.any() else 1.0


def _step_flops(facts: LogFacts, batch: int, length: int) -> Floats:
    """Estimate the FLOPs of a step of each size, of users with histories of `length` or more.

    Returns shape (len(SIZES),).
    """
    tokens = 1 + facts.characters / CHARACTERS_PER_TOKEN
    events = 2 * batch * length
    work = Work(
        users=2 * batch,
        events=events,
        events_squared=events * length,
        tokens=int(events * tokens),
        tokens_squared=int(events * tokens**2),
        similarities=batch**2,
        bag_tokens=int(events * tokens),
    )
    return np.array([train_flops(EncoderSpec(size=size), work) for size in SIZES])


def budgets_for(total_flops: float, sizes: int = 4) -> tuple[float, ...]:
    """Divide the FLOPs of a study over its budgets, geometrically over `DECADES`.

    Each budget has a run per size, the cheapest ones a run per size and seed more, the middle one a
    run per further history length and each one above it a run of the longest.
    """
    shape = 10 ** np.linspace(0, DECADES, BUDGETS)
    runs = np.full(BUDGETS, float(sizes))
    runs[:SEEDED] += sizes * len(SEEDS)
    runs[BUDGETS // 2] += len(PERCENTILES) - 1
    runs[BUDGETS // 2 + 1 :] += 1
    cheapest = total_flops / float(shape @ runs)
    return tuple(float(f"{cheapest * factor:.2g}") for factor in shape)


def _services(facts: LogFacts) -> tuple[str, ...]:
    """Choose the services that share enough users, the largest first.

    Raises:
        SpecError: there is one service only, or no two of them share enough users.
    """
    if len(facts.services) < 2:
        raise SpecError(
            f"The log has one service, {next(iter(facts.services))!r}, and an encoder learns from "
            "users of two: name the column of services with --columns service=COLUMN, or give one "
            "log per service, SERVICE=FILES."
        )
    best = max(facts.pairs, key=lambda pair: facts.pairs[pair])
    if facts.pairs[best] < FEWEST_USERS:
        raise SpecError(
            f"Only {_users(facts.pairs[best])} events in two services ({best[0]} and "
            f"{best[1]}); a study needs {FEWEST_USERS} or more: give more of the log."
        )
    kept = list(best)
    for service in facts.services:
        shared = [
            facts.pairs[_ordered(service, other, facts)] for other in kept if other != service
        ]
        if service not in kept and len(kept) < MOST_SERVICES and min(shared) >= FEWEST_USERS:
            kept.append(service)
    return tuple(kept)


def _users(count: int) -> str:
    return f"{count} user{'s have' if count != 1 else ' has'}"


def _ordered(a: str, b: str, facts: LogFacts) -> tuple[str, str]:
    return (a, b) if (a, b) in facts.pairs else (b, a)


def _pairs_of(services: tuple[str, ...], facts: LogFacts) -> list[tuple[str, str]]:
    return [_ordered(a, b, facts) for a, b in combinations(services, 2)]


def _lengths(facts: LogFacts) -> tuple[int, ...]:
    """Return percentiles of the events per user and service, as lengths that differ."""
    found = np.percentile(facts.lengths, PERCENTILES)
    rounded = [max(4, min(LONGEST, int(round(value / 4) * 4))) for value in found]
    spread = [rounded[0], max(rounded[1], 2 * rounded[0]), max(rounded[2], 4 * rounded[0])]
    return tuple(dict.fromkeys(min(LONGEST, length) for length in spread))
