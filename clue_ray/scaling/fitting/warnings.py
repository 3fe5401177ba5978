"""What the data cannot tell: doubts about a fitted law, a sentence each.

Takes a problem at its optimum and its rows; gives warnings. The one idea: a number that the runs do
not identify is shown with its reason, never dropped in silence.


Whether two kinds of interval agree.

Takes a likelihood and quantities; gives a sentence where they do not. The one idea: profile and
bootstrap suppose different things of the noise, so where they differ much the noise is not what one
of them takes it to be.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from clue_ray.scaling.fitting.intervals import Likelihood, Quantity
from clue_ray.scaling.fitting.problem import LARGEST_EXPONENT, Problem
from clue_ray.scaling.fitting.search import unguided
from clue_ray.scaling.fitting.table import Sample
from clue_ray.scaling.laws.catalogue import LAWS
from clue_ray.scaling.laws.law import Floats, Law

ENOUGH_SCALES = 4
ENOUGH_DECADES = 1.5
COLLINEAR = 0.9
EDGE = 1e-6  # distance from a bound, over 1 + its size, that counts as none
EXACT = 1e-6  # log units below which a miss is rounding


def doubts(problem: Problem, theta: Floats, sample: Sample) -> Iterator[str]:
    """Yield what a reader should know before trusting a fit, given by its theta (p,)."""
    law, parameters = problem.law, problem.parameters(theta)
    if sample.left_out:
        yield f"{sample.left_out} of {sample.left_out + len(sample.y)} runs are not done and were left out."
    yield from _narrow(law, sample.x)
    yield from _at_bounds(law, sample.y, parameters)
    yield from _at_edges(problem, theta, parameters)
    yield from _missed(problem, theta)


def _narrow(law: Law, x: Floats) -> Iterator[str]:
    """Say where the predictors span too little for the law's parameters."""
    scales = min(len(np.unique(column)) for column in x)
    if scales < ENOUGH_SCALES and len(law.parameters) >= 3:
        yield f"{law.words}: only {scales} distinct values of a predictor; it takes {ENOUGH_SCALES} or more."
    decades = float(np.log10(x.max(axis=1) / x.min(axis=1)).sum())
    if law.floor and decades < ENOUGH_DECADES:
        yield (
            f"{law.words}: the runs span {decades:.1f} decades; under {ENOUGH_DECADES} the fitted "
            f"floor means little."
        )
    if len(x) > 1 and scales > 1:
        pairs = np.corrcoef(np.log(x))[np.triu_indices(len(x), 1)]
        correlation = float(pairs[np.argmax(np.abs(pairs))])
        if abs(correlation) > COLLINEAR:
            yield f"{law.words}: the predictors move together (correlation of logs {correlation:.2f})."


def _at_bounds(law: Law, y: Floats, parameters: dict[str, float]) -> Iterator[str]:
    """Say which parameters ended at the edge of what is possible."""
    if law.floor:
        share = parameters[law.floor] / float(y.min())
        if share < 0.01:
            yield f"{law.words}: the floor is at its bound 0; the runs do not show one."
        elif share > 0.99:
            yield f"{law.words}: the floor is at the smallest loss; it is not identified."
    for name in law.exponents:
        if not 1e-6 < parameters[name] < LARGEST_EXPONENT * (1 - 1e-6):
            yield f"{law.words}: the exponent is at its bound {parameters[name]:.3g}; it is not identified."


def _at_edges(problem: Problem, theta: Floats, parameters: dict[str, float]) -> Iterator[str]:
    """Say which parameters, floor and terms' exponents aside, ended at the edge of the range
    searched.
    """
    law = problem.law
    for name, value, *ends in zip(law.parameters, theta, *problem.bounds, strict=True):
        near = [abs(value - end) <= EDGE * (1 + abs(end)) for end in ends if np.isfinite(end)]
        if any(near) and name not in (law.floor, *law.exponents):
            yield (
                f"{law.words}: {name.replace('_', ' ')} is at the edge of the range searched, "
                f"{parameters[name]:.3g}; "
                "it is not identified."
            )


def _missed(problem: Problem, theta: Floats) -> Iterator[str]:
    """Say when a law of one's own, with parameters started blindly, lies further from the runs than
    a power law.
    """
    names = unguided(problem)
    if not names or problem.law.function in [law.function for law in LAWS.values()]:
        return
    logs = np.vstack([np.ones(len(problem.log_y)), np.log(problem.x)]).T
    plain = problem.log_y - logs @ np.linalg.lstsq(logs, problem.log_y, rcond=None)[0]
    own = problem.log_values(theta) - problem.log_y
    mine, rival = (float(np.sqrt(np.mean(np.square(missed)))) for missed in (own, plain))
    if mine > max(rival, EXACT):
        yield (
            f"{problem.law.words}: it misses the runs by {mine:.2g} in log, a power law of the "
            f"same columns by "
            f"{rival:.2g}, so its optimum may not be found; give the Law guesses, bounds or places "
            f"for "
            f"{', '.join(names)}."
        )


DISAGREEMENT = 1.5  # ratio of two widths that a reader should hear of
NEGLIGIBLE = 1e-6  # relative width below which an interval is a point


def disagree(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Tell whether the wider of two intervals is much wider, unless both are points for any
    purpose.
    """
    narrow, wide = sorted((one[1] - one[0], other[1] - other[0]))
    return wide > DISAGREEMENT * narrow and wide > NEGLIGIBLE * max(abs(one[1]), abs(other[1]))


def disagreement(
    law: Law, likelihood: Likelihood, readers: Mapping[str, Quantity]
) -> Iterator[str]:
    """Say of which quantities, by name, the 95 % intervals by profile and by bootstrap differ much
    in width.
    """
    ratios = {}
    for name, reader in readers.items():
        profile, drawn = likelihood.profile(reader, 0.95), likelihood.bootstrap(reader, 0.95)
        if disagree(profile, drawn):
            ratios[name] = (drawn[1] - drawn[0]) / max(profile[1] - profile[0], 1e-300)
    if not ratios:
        return
    found = ", ".join(f"{name} {ratio:.2g}" for name, ratio in ratios.items())
    shown = (
        "the bootstrap is what is shown"
        if likelihood.many
        else "the profile is what is shown; trust the wider one"
    )
    yield f"{law.words}: bootstrap and profile intervals differ, in times the profile's width: {found}; {shown}."
