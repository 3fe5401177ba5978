"""What a law is: an ordinary function of predictors and named parameters, and what the fitter may
know about it.

Takes nothing; gives `Law`. The one idea: a law is an elementwise numpy function, so it can be read
and tested by hand; the hints beside it (`terms`, `linear`, `places`, `floor`) make its fit fast and
its warnings precise. A law of one's own needs none of them:

    Law("stretched", "a exp(-b x)", ("a", "b"), 1, lambda x, a, b: a * np.exp(-b * x), bounds={"b":
    (0, 10)})
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clue_ray.errors import FitError

Floats = npt.NDArray[np.float64]


EXPONENTS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""First guesses of an exponent that is not a term's."""


def decay(x: Any, exponent: Any) -> Any:
    """Give x ** -exponent for positive x; through exp, as a complex exponent then takes a third of
    the time.
    """
    return np.exp(-exponent * np.log(x))


@dataclass(frozen=True)
class Law:
    """A formula for loss and its named parameters.

    Attributes:
        function: called with the predictors, then the parameters, all positional and broadcast
            against each other; elementwise numpy, smooth in its parameters (a complex step
            differentiates it, so no abs).
        terms: pairs (coefficient, exponent), one a predictor in order, where multiplying the
            predictor by s does the same as multiplying the coefficient by s ** -exponent; kept
            non-negative, fitted in scaled coordinates.
        floor: the parameter that is the loss at endless x; kept between 0 and the largest loss
            seen.
        ceiling: known loss at x = 0, passed to `function` as keyword `ceiling`; nan until the fit
            knows it.
        title: the name in words, where it is not `name` without underscores.
        template: the formula with numbers, for `str.format` with the parameters and `ceiling`.
        linear: parameters, none negative, in which the function is linear and homogeneous; solved
            for, not searched.
        places: parameters that are places on a predictor's axis, with the predictor's position;
            fitted as logs.
        units: for each predictor the position of the one whose unit it shares; its own where not
            given.
        bounds: lowest and highest value of a parameter; what is not named is bounded by its role,
            or not at all.
        guesses: values of a parameter that are worth a start; what is not named is guessed from its
            role.
            Coefficients of terms take neither: they are positive, and start from the losses.
        inverse: the predictor at a loss, for laws of one: called with the loss, then as `function`.
        widen: makes this law for the columns given as x, where it takes any number of them.
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
    linear: tuple[str, ...] = ()
    places: Mapping[str, int] = field(default_factory=dict, hash=False)
    units: tuple[int, ...] = ()
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)
    guesses: Mapping[str, Sequence[float]] = field(default_factory=dict, hash=False)
    inverse: Callable[..., Any] | None = None
    widen: Callable[[tuple[str, ...]], "Law"] | None = None

    def __post_init__(self) -> None:
        """Refuse hints about parameters that the law does not have, or that cannot take them."""
        hinted = [
            *(name for term in self.terms for name in term),
            *self.linear,
            *self.places,
            *self.bounds,
        ]
        unknown = [
            name
            for name in (*hinted, *self.guesses, *filter(None, [self.floor]))
            if name not in self.parameters
        ]
        if unknown:
            raise FitError(
                f"The law {self.name} has no parameter {unknown[0]!r}, which its hints name; "
                f"it has {', '.join(self.parameters)}."
            )
        bound = [name for name, _ in self.terms if name in self.bounds or name in self.guesses]
        if bound:
            raise FitError(
                f"The coefficient {bound[0]!r} of a term of {self.name} takes no bounds or "
                f"guesses; drop them."
            )

    def __call__(self, x: Sequence[Any], parameters: Sequence[Any]) -> Any:
        """Evaluate the law at predictors and parameters, in the law's order, broadcast against each
        other.
        """
        return self.function(*x, *parameters, **self._known)

    def invert(self, loss: Any, parameters: Sequence[Any]) -> Any:
        """Give the predictor at which the law takes a loss, nan where it never does; FitError
        without closed form.
        """
        if self.inverse is None:
            raise FitError(
                f"{self.name} has no inverse in closed form; search it for the x of a loss."
            )
        wanted = np.asarray(loss, dtype=float)
        with np.errstate(all="ignore"):
            x = self.inverse(wanted, *parameters, **self._known)
            # An even power of a negative number is a number too, but no place where the law takes
            # this loss.
            return np.where(np.isclose(self([x], parameters), wanted, rtol=1e-6, atol=0), x, np.nan)

    @property
    def _known(self) -> dict[str, float]:
        return {} if self.ceiling is None else {"ceiling": self.ceiling}

    @property
    def lacks_ceiling(self) -> bool:
        """Whether the law needs a ceiling that is not known yet."""
        return self.ceiling is not None and math.isnan(self.ceiling)

    def with_ceiling(self, ceiling: float) -> "Law":
        """Return the law with its loss at x = 0 known, in the units of the loss."""
        return replace(self, ceiling=float(ceiling))

    def over(self, columns: tuple[str, ...]) -> "Law":
        """Return the law for these predictor columns: itself, unless it takes any number of
        them.
        """
        return self.widen(columns) if self.widen else self

    def describe(self, parameters: dict[str, float]) -> str:
        """Write the formula with its numbers."""
        if not self.template:
            return f"{self.formula}, " + ", ".join(
                f"{name} = {v:.4g}" for name, v in parameters.items()
            )
        return self.template.format(**parameters, ceiling=self.ceiling)

    @property
    def words(self) -> str:
        """The law's name as a sentence says it: log-linear law, power law plus constant."""
        return self.title or self.name.replace("_", " ")

    @property
    def exponents(self) -> tuple[str, ...]:
        """The exponents of the law's terms."""
        return tuple(exponent for _, exponent in self.terms)
