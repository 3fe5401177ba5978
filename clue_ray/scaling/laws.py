"""The laws: ordinary functions of predictors and named parameters, and what the fitter may know about them.

Takes nothing; gives `LAWS` by name. The one idea: a law is an elementwise numpy function, so it can be read
and tested by hand; the hints beside it (`terms`, `floor`, `ceiling`) make its fit fast and its warnings
precise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clue_ray.errors import FitError, nearest

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """A formula for loss and its named parameters.

    Attributes:
        function: called with the predictors, then the parameters, all positional and broadcast against each
            other; elementwise numpy, smooth in its parameters (a complex step differentiates it, so no abs).
        terms: pairs (coefficient, exponent), one a predictor in order, where a predictor enters only as
            coefficient * x ** -exponent; they are kept non-negative and fitted in scaled coordinates.
        floor: the parameter that is the loss at endless x; kept between 0 and the largest loss seen.
        ceiling: known loss at x = 0, passed to `function` as keyword `ceiling`; nan until the fit knows it.
        title: the name in words, where it is not `name` without underscores.
        template: the formula with numbers, for `str.format` with the parameters and `ceiling`.
    """

    name: str
    formula: str
    parameters: tuple[str, ...]
    num_predictors: int
    function: Callable[..., Any]
    terms: tuple[tuple[str, str], ...] = ()
    floor: str | None = None
    ceiling: float | None = None
    template: str = ""
    title: str = ""

    def __call__(self, x: Sequence[Any], parameters: Sequence[Any]) -> Any:
        """Evaluate the law at predictors and parameters, in the law's order, broadcast against each other."""
        if self.ceiling is None:
            return self.function(*x, *parameters)
        return self.function(*x, *parameters, ceiling=self.ceiling)

    @property
    def lacks_ceiling(self) -> bool:
        """Whether the law needs a ceiling that is not known yet."""
        return self.ceiling is not None and math.isnan(self.ceiling)

    def with_ceiling(self, ceiling: float) -> "Law":
        """Return the law with its loss at x = 0 known, in the units of the loss."""
        return replace(self, ceiling=float(ceiling))

    def describe(self, parameters: dict[str, float]) -> str:
        """Write the formula with its numbers."""
        if not self.template:
            return f"{self.formula}, " + ", ".join(f"{name} = {v:.4g}" for name, v in parameters.items())
        return self.template.format(**parameters, ceiling=self.ceiling)

    @property
    def words(self) -> str:
        """The law's name as a sentence says it: log-linear law, power law plus constant."""
        return self.title or self.name.replace("_", " ")

    @property
    def exponents(self) -> tuple[str, ...]:
        """The exponents of the law's terms."""
        return tuple(exponent for _, exponent in self.terms)


def power_law(x: Any, coefficient: Any, exponent: Any) -> Any:
    """Give coefficient * x ** -exponent (Kaplan et al. 2020, arXiv 2001.08361)."""
    return coefficient * x**-exponent


def power_law_plus_constant(x: Any, irreducible_loss: Any, coefficient: Any, exponent: Any) -> Any:
    """Give irreducible_loss + coefficient * x ** -exponent (Henighan et al. 2020, arXiv 2010.14701)."""
    return irreducible_loss + coefficient * x**-exponent


def log_linear(x: Any, intercept: Any, slope: Any) -> Any:
    """Give intercept - slope * log10 x; slope is nats a decade (the shape in CLUE, arXiv 2111.11294)."""
    return intercept - slope * np.log10(x)


def bounded_power_law(x: Any, irreducible_loss: Any, coefficient: Any, exponent: Any, *, ceiling: float) -> Any:
    """Give E + (ceiling - E) u / (1 + u), u = coefficient * x ** -exponent: from a guess to a floor E.

    M4 of Alabdulmohsin et al. 2022 (arXiv 2209.06640), (L - E) / (ceiling - L)^a = u, at a = 1, where it has
    a closed form: a power law off the ceiling at small x and onto the floor at large x.
    """
    above = coefficient * x**-exponent
    return irreducible_loss + (ceiling - irreducible_loss) * above / (1 + above)


def parametric_loss(n: Any, d: Any, E: Any, A: Any, B: Any, alpha: Any, beta: Any) -> Any:
    """Give E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, arXiv 2203.15556, approach 3)."""
    return E + A * n**-alpha + B * d**-beta


_TERM = (("coefficient", "exponent"),)
_FLOORED = ("irreducible_loss", "coefficient", "exponent")

_LAWS = (
    Law(
        name="power_law",
        formula="a x^-b",
        parameters=("coefficient", "exponent"),
        num_predictors=1,
        function=power_law,
        terms=_TERM,
        template="{coefficient:.4g} x^-{exponent:.3g}",
    ),
    Law(
        name="power_law_plus_constant",
        formula="E + a x^-b",
        parameters=_FLOORED,
        num_predictors=1,
        function=power_law_plus_constant,
        terms=_TERM,
        floor="irreducible_loss",
        template="{irreducible_loss:.4g} + {coefficient:.4g} x^-{exponent:.3g}",
    ),
    Law(
        name="log_linear",
        formula="a - b log10 x",
        parameters=("intercept", "slope"),
        num_predictors=1,
        function=log_linear,
        template="{intercept:.4g} - {slope:.3g} log10 x",
        title="log-linear law",
    ),
    Law(
        name="bounded_power_law",
        formula="E + (ln K - E) / (1 + x^b / a)",
        parameters=_FLOORED,
        num_predictors=1,
        function=bounded_power_law,
        terms=_TERM,
        floor="irreducible_loss",
        ceiling=math.nan,
        template="{irreducible_loss:.4g} + ({ceiling:.4g} - {irreducible_loss:.4g})"
        " / (1 + x^{exponent:.3g} / {coefficient:.4g})",
    ),
    Law(
        name="parametric_loss",
        formula="E + A N^-alpha + B D^-beta",
        parameters=("E", "A", "B", "alpha", "beta"),
        num_predictors=2,
        function=parametric_loss,
        terms=(("A", "alpha"), ("B", "beta")),
        floor="E",
        template="{E:.4g} + {A:.4g} N^-{alpha:.3g} + {B:.4g} D^-{beta:.3g}",
    ),
)
LAWS: dict[str, Law] = {law.name: law for law in _LAWS}
"""Every law that can be named in a study file."""


def find_law(law: str | Law) -> Law:
    """Look a law up by name, or pass a Law through; raise FitError naming the nearest when there is none."""
    if isinstance(law, Law):
        return law
    if law not in LAWS:
        raise FitError(f"There is no law {law!r}; {nearest(law, list(LAWS))}")
    return LAWS[law]
