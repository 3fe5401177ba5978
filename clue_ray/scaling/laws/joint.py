"""Laws of several predictors: encoder size, data, sequence length, batch size, repeated data.

The losses that limited axes cause add up, so each axis has a term that vanishes as the axis grows.
"""

from typing import Any

import numpy as np

from clue_ray.scaling.laws.law import Law, decay


def _parametric_loss(n: Any, d: Any, E: Any, A: Any, B: Any, alpha: Any, beta: Any) -> Any:
    """Compute E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, arXiv 2203.15556, approach 3)."""
    return E + A * decay(n, alpha) + B * decay(d, beta)


def _joint_power_law(columns: tuple[str, ...]) -> Law:
    """Build the law irreducible_loss + sum over columns c of coefficient_c * c ** -exponent_c.

    This is approach 3 of Hoffmann et al. 2022 with one term for each of any axes. The parameters
    carry the names of the columns, so any subset in any order can be fitted and read.
    """
    count = len(columns)
    terms = tuple((f"coefficient_{column}", f"exponent_{column}") for column in columns)

    def sum_of_powers(*arguments: Any) -> Any:
        x, floor, rest = arguments[:count], arguments[count], arguments[count + 1 :]
        return floor + sum(
            a * decay(column, b) for column, a, b in zip(x, rest[::2], rest[1::2], strict=True)
        )

    return Law(
        name="joint_power_law",
        formula="E + " + " + ".join(f"a{i} {column}^-b{i}" for i, column in enumerate(columns, 1)),
        parameters=("irreducible_loss", *(name for term in terms for name in term)),
        num_predictors=count,
        function=sum_of_powers,
        terms=terms,
        floor="irreducible_loss",
        linear=("irreducible_loss", *(coefficient for coefficient, _ in terms)),
        widen=_joint_power_law,
    )


def data_constrained_loss(
    n: Any,
    unique: Any,
    seen: Any,
    E: Any,
    A: Any,
    B: Any,
    alpha: Any,
    beta: Any,
    useful_repeats: Any,
) -> Any:
    """Compute E + A N^-alpha + B D'^-beta with D' = U + U R* (1 - exp(-R / R*)).

    Repeated data are worth less than new data (Muennighoff et al. 2023, arXiv 2305.16264,
    equation 5, with N taken as it is). U is the unique data used. R = seen / unique - 1 counts
    the repeats; it is 0 where not all data are seen. R* = `useful_repeats` is the number of
    repeats after which repeating is worth little.
    """
    once = np.minimum(unique, seen)
    repeats = np.maximum(seen / unique - 1, 0)
    effective = once * (1 + useful_repeats * -np.expm1(-repeats / useful_repeats))
    return E + A * decay(n, alpha) + B * decay(effective, beta)


_CHINCHILLA = ("E", "A", "B", "alpha", "beta")

JOINT_LAWS = (
    Law(
        name="parametric_loss",
        formula="E + A N^-alpha + B D^-beta",
        parameters=_CHINCHILLA,
        num_predictors=2,
        function=_parametric_loss,
        terms=(("A", "alpha"), ("B", "beta")),
        floor="E",
        template="{E:.4g} + {A:.4g} N^-{alpha:.3g} + {B:.4g} D^-{beta:.3g}",
        linear=("E", "A", "B"),
    ),
    # A stand-in: `Law.over` builds the law for the columns that it is fitted to.
    _joint_power_law(("x",)),
    Law(
        name="data_constrained_loss",
        formula="E + A N^-alpha + B (U (1 + R* (1 - exp(-R / R*))))^-beta",
        parameters=(*_CHINCHILLA, "useful_repeats"),
        num_predictors=3,
        function=data_constrained_loss,
        terms=(("A", "alpha"), ("B", "beta")),
        floor="E",
        template=(
            "{E:.4g} + {A:.4g} N^-{alpha:.3g} + {B:.4g} D'^-{beta:.3g}, R* = {useful_repeats:.3g}"
        ),
        linear=("E", "A", "B"),
        units=(0, 1, 1),  # unique and seen data share a unit: only their ratio counts repeats
        bounds={"useful_repeats": (0.01, 1000.0)},
        guesses={"useful_repeats": (0.3, 1.0, 3.0, 10.0, 30.0)},
    ),
)
"""Laws of two or more predictors."""
