"""Warnings about a fitted law: what the data do not identify, and intervals that disagree.

A number that the runs do not identify is shown with a warning, never dropped.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from clue_ray.scaling.fitting.intervals import Likelihood, Quantity
from clue_ray.scaling.fitting.problem import LARGEST_EXPONENT, Problem
from clue_ray.scaling.fitting.search import unguided
from clue_ray.scaling.fitting.table import Sample
from clue_ray.scaling.laws.catalogue import LAWS
from clue_ray.scaling.laws.law import Floats, Law

MIN_SCALES = 4
"""Distinct values of a predictor under which 3 or more parameters are hard to identify."""
MIN_DECADES = 1.5
"""Decades of the predictors under which a fitted floor means little."""
COLLINEAR = 0.9
"""Correlation of log predictors from which they count as one."""
EDGE_DISTANCE = 1e-6
"""Distance from a bound, over 1 + its size, that counts as none."""
EXACT_RESIDUAL = 1e-6
"""Log units below which a residual is rounding."""
WIDTH_RATIO = 1.5
"""Ratio of two interval widths from which they disagree."""
POINT_WIDTH = 1e-6
"""Relative width below which an interval is a point."""


def fit_warnings(problem: Problem, theta: Floats, sample: Sample) -> Iterator[str]:
    """Yield what to know before trusting a fit at theta (p,), one sentence each."""
    law, parameters = problem.law, problem.parameters(theta)
    if sample.left_out:
        total = sample.left_out + sample.ablations + len(sample.y)
        are, were = ("is", "was") if sample.left_out == 1 else ("are", "were")
        yield f"{sample.left_out} of {total} runs {are} not done and {were} left out."
    if sample.ablations:
        yield f"{sample.ablations} runs of one part of the encoder were left out."
    yield from _narrow(law, sample.x)
    yield from _at_bounds(law, sample.y, parameters)
    yield from _at_edges(problem, theta, parameters)
    yield from _missed(problem, theta)


def _narrow(law: Law, x: Floats) -> Iterator[str]:
    """Warn where the predictors (predictors, n) span too little for the law's parameters."""
    scales = min(len(np.unique(column)) for column in x)
    if scales < MIN_SCALES and len(law.parameters) >= 3:
        yield (
            f"{law.words}: only {scales} distinct values of a predictor; it takes {MIN_SCALES} or "
            f"more."
        )
    decades = float(np.log10(x.max(axis=1) / x.min(axis=1)).sum())
    if law.floor and decades < MIN_DECADES:
        yield (
            f"{law.words}: the runs span {decades:.1f} decades; under {MIN_DECADES} the fitted "
            f"floor means little."
        )
    if len(x) > 1 and scales > 1:
        pairs = np.corrcoef(np.log(x))[np.triu_indices(len(x), 1)]
        correlation = float(pairs[np.argmax(np.abs(pairs))])
        if abs(correlation) > COLLINEAR:
            yield (
                f"{law.words}: the predictors move together (correlation of logs "
                f"{correlation:.2f})."
            )


def _at_bounds(law: Law, y: Floats, parameters: dict[str, float]) -> Iterator[str]:
    """Warn of a floor or an exponent at the edge of what is possible."""
    if law.floor:
        share = parameters[law.floor] / float(y.min())
        if share < 0.01:
            yield f"{law.words}: the floor is at its bound 0; the runs do not show one."
        elif share > 0.99:
            yield f"{law.words}: the floor is at the smallest loss; it is not identified."
    for name in law.exponents:
        if not 1e-6 < parameters[name] < LARGEST_EXPONENT * (1 - 1e-6):
            yield (
                f"{law.words}: the exponent is at its bound {parameters[name]:.3g}; it is not "
                f"identified."
            )


def _at_edges(problem: Problem, theta: Floats, parameters: dict[str, float]) -> Iterator[str]:
    """Warn of other parameters at the edge of the range searched."""
    law = problem.law
    for name, value, *ends in zip(law.parameters, theta, *problem.bounds, strict=True):
        near = [
            abs(value - end) <= EDGE_DISTANCE * (1 + abs(end)) for end in ends if np.isfinite(end)
        ]
        if any(near) and name not in (law.floor, *law.exponents):
            yield (
                f"{law.words}: {name.replace('_', ' ')} is at the edge of the range searched, "
                f"{parameters[name]:.3g}; it is not identified."
            )


def _missed(problem: Problem, theta: Floats) -> Iterator[str]:
    """Warn where a custom law fits worse than a power law of the same columns.

    This is a sign that its optimum was not found, so it is said only where parameters had no hint
    to start from.
    """
    names = unguided(problem)
    if not names or problem.law.function in [law.function for law in LAWS.values()]:
        return
    logs = np.vstack([np.ones(len(problem.log_y)), np.log(problem.x)]).T
    plain = problem.log_y - logs @ np.linalg.lstsq(logs, problem.log_y, rcond=None)[0]
    own = problem.log_values(theta) - problem.log_y
    error, plain_error = (float(np.sqrt(np.mean(np.square(residual)))) for residual in (own, plain))
    if error > max(plain_error, EXACT_RESIDUAL):
        yield (
            f"{problem.law.words}: it misses the runs by {error:.2g} in log, a power law of the "
            f"same columns by {plain_error:.2g}, so its optimum may not be found; give the Law "
            f"guesses, bounds or places for {', '.join(names)}."
        )


def widths_differ(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Return whether one interval is much wider than the other; False if both are points."""
    narrow, wide = sorted((one[1] - one[0], other[1] - other[0]))
    return wide > WIDTH_RATIO * narrow and wide > POINT_WIDTH * max(abs(one[1]), abs(other[1]))


def interval_warnings(
    law: Law, likelihood: Likelihood, quantities: Mapping[str, Quantity]
) -> Iterator[str]:
    """Warn of quantities with 95 % intervals by profile and by bootstrap of different width.

    The two assume different things of the noise. Where they differ much, the noise is not what one
    of them assumes.

    Args:
        quantities: functions of theta, by the name in the warning.
    """
    ratios = {}
    for name, quantity in quantities.items():
        profile, drawn = likelihood.profile(quantity, 0.95), likelihood.bootstrap(quantity, 0.95)
        if widths_differ(profile, drawn):
            ratios[name] = (drawn[1] - drawn[0]) / max(profile[1] - profile[0], 1e-300)
    if not ratios:
        return
    found = ", ".join(f"{name} {ratio:.2g}" for name, ratio in ratios.items())
    shown = (
        "the bootstrap is shown" if likelihood.many else "the profile is shown; trust the wider one"
    )
    yield (
        f"{law.words}: bootstrap and profile intervals differ; the ratio of their widths is "
        f"{found}; {shown}."
    )
