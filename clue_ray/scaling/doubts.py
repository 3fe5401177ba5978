"""What the data cannot tell: doubts about a fitted law, a sentence each.

Takes a law, its rows and its parameters; gives warnings. The one idea: a number that the runs do not
identify is shown with its reason, never dropped in silence.
"""

from collections.abc import Iterator

import numpy as np

from clue_ray.scaling.laws import Floats, Law
from clue_ray.scaling.problem import LARGEST_EXPONENT
from clue_ray.scaling.sample import Sample

ENOUGH_SCALES = 4
ENOUGH_DECADES = 1.5
COLLINEAR = 0.9


def doubts(law: Law, sample: Sample, parameters: dict[str, float]) -> Iterator[str]:
    """Yield what a reader should know before trusting a fit."""
    if sample.left_out:
        yield f"{sample.left_out} of {sample.left_out + len(sample.y)} runs are not done and were left out."
    yield from _narrow(law, sample.x)
    yield from _at_bounds(law, sample.y, parameters)


def _narrow(law: Law, x: Floats) -> Iterator[str]:
    """Say where the predictors span too little for the law's parameters."""
    scales = min(len(np.unique(column)) for column in x)
    if scales < ENOUGH_SCALES and len(law.parameters) >= 3:
        yield f"{law.words}: only {scales} distinct values of a predictor; it takes {ENOUGH_SCALES} or more."
    decades = float(np.log10(x.max(axis=1) / x.min(axis=1)).sum())
    if law.floor and decades < ENOUGH_DECADES:
        yield (
            f"{law.words}: the runs span {decades:.1f} decades; under {ENOUGH_DECADES} the fitted floor means little."
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
