"""Whether two kinds of interval agree.

Takes a likelihood and quantities; gives a sentence where they do not. The one idea: profile and bootstrap suppose
different things of the noise, so where they differ much the noise is not what one of them takes it to be.
"""

from collections.abc import Iterator, Mapping

from clue_ray.scaling.intervals import Likelihood, Quantity
from clue_ray.scaling.law import Law

DISAGREEMENT = 1.5  # ratio of two widths that a reader should hear of
NEGLIGIBLE = 1e-6  # relative width below which an interval is a point


def disagree(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Tell whether the wider of two intervals is much wider, unless both are points for any purpose."""
    narrow, wide = sorted((one[1] - one[0], other[1] - other[0]))
    return wide > DISAGREEMENT * narrow and wide > NEGLIGIBLE * max(abs(one[1]), abs(other[1]))


def disagreement(law: Law, likelihood: Likelihood, readers: Mapping[str, Quantity]) -> Iterator[str]:
    """Say of which quantities, by name, the 95 % intervals by profile and by bootstrap differ much in width."""
    ratios = {}
    for name, reader in readers.items():
        profile, drawn = likelihood.profile(reader, 0.95), likelihood.bootstrap(reader, 0.95)
        if disagree(profile, drawn):
            ratios[name] = (drawn[1] - drawn[0]) / max(profile[1] - profile[0], 1e-300)
    if not ratios:
        return
    found = ", ".join(f"{name} {ratio:.2g}" for name, ratio in ratios.items())
    shown = "the bootstrap is what is shown" if likelihood.many else "the profile is what is shown; trust the wider one"
    yield f"{law.words}: bootstrap and profile intervals differ, in times the profile's width: {found}; {shown}."
