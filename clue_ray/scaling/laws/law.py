"""A law: an elementwise function of predictors and named parameters, with hints for the fitter.

The function is plain numpy, so it can be read and tested by hand. The hints (`terms`, `linear`,
`places`, `floor` and others) make the fit fast and its warnings precise. A custom law needs none:

    Law(
        name="stretched",
        formula="a exp(-b x)",
        parameters=("a", "b"),
        num_predictors=1,
        function=lambda x, a, b: a * np.exp(-b * x),
        bounds={"b": (0, 10)},
    )
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clue_ray.errors import FitError

Floats = npt.NDArray[np.float64]

EXPONENT_GUESSES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""First guesses of an exponent that does not belong to a term."""


def decay(x: Any, exponent: Any) -> Any:
    """Compute x ** -exponent for positive x."""
    # The fitter differentiates with complex exponents, for which exp is three times as fast as **.
    return np.exp(-exponent * np.log(x))


@dataclass(frozen=True)
class Law:
    """A formula for the loss and its named parameters.

    Attributes:
        function: called with the predictors, then the parameters, all positional and broadcast
            against each other. It is elementwise numpy and smooth in its parameters: it is
            differentiated by a complex step, so it must not use abs.
        terms: pairs (coefficient, exponent), one per predictor in order, where scaling the
            predictor by s equals scaling the coefficient by s ** -exponent. Both are kept
            non-negative and are fitted in scaled coordinates.
        floor: the parameter that is the loss at infinite x, kept between 0 and the largest loss.
        ceiling: the known loss at x = 0, passed to `function` as the keyword `ceiling`; nan until
            the fit knows it.
        title: the name in words, where it is not `name` without underscores.
        template: the formula with numbers, for `str.format` with the parameters and `ceiling`.
        linear: non-negative parameters in which the function is linear and homogeneous. They are
            solved for, not searched.
        in_loss_units: other parameters in the unit of the loss, of any sign; together with those
            of `linear` they multiply the law's value by s if all are multiplied by s.
        places: parameters that are positions on a predictor's axis, with the index of the
            predictor. They are fitted as logs.
        units: for each predictor the index of the predictor that it shares a unit with; itself
            by default.
        bounds: lowest and highest value of a parameter. Others are bounded by their role, if any.
        guesses: starting values of a parameter. Others are guessed from their role. Coefficients
            of terms take neither bounds nor guesses.
        inverse: for laws of one predictor, the predictor at a loss; called with the loss, then
            the parameters, as `function` is.
        widen: builds this law for the columns given as x, where it takes any number of them.
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
    in_loss_units: tuple[str, ...] = ()
    places: Mapping[str, int] = field(default_factory=dict, hash=False)
    units: tuple[int, ...] = ()
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)
    guesses: Mapping[str, Sequence[float]] = field(default_factory=dict, hash=False)
    inverse: Callable[..., Any] | None = None
    widen: Callable[[tuple[str, ...]], "Law"] | None = None

    def __post_init__(self) -> None:
        """Raise FitError for hints about unknown parameters, or that a parameter cannot take."""
        hinted = [
            *(name for term in self.terms for name in term),
            *self.linear,
            *self.in_loss_units,
            *self.places,
            *self.bounds,
            *self.guesses,
            *filter(None, [self.floor]),
        ]
        unknown = [name for name in hinted if name not in self.parameters]
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
        """Evaluate the law at predictors and parameters in the law's order, with broadcasting."""
        return self.function(*x, *parameters, **self._keywords)

    def invert(self, loss: Any, parameters: Sequence[Any]) -> Any:
        """Return the predictor at which the law takes a loss, nan where it never does.

        Raises:
            FitError: the law has no inverse in closed form.
        """
        if self.inverse is None:
            raise FitError(
                f"{self.name} has no inverse in closed form; search for the x of a loss."
            )
        wanted = np.asarray(loss, dtype=float)
        with np.errstate(all="ignore"):
            x = self.inverse(wanted, *parameters, **self._keywords)
            # An even power of a negative number is positive, so the formula can return an x at
            # which the law does not take this loss. Evaluating the law there finds out.
            return np.where(np.isclose(self([x], parameters), wanted, rtol=1e-6, atol=0), x, np.nan)

    @property
    def _keywords(self) -> dict[str, float]:
        return {} if self.ceiling is None else {"ceiling": self.ceiling}

    @property
    def lacks_ceiling(self) -> bool:
        """Whether the law needs a ceiling that is not known yet."""
        return self.ceiling is not None and math.isnan(self.ceiling)

    def with_ceiling(self, ceiling: float) -> "Law":
        """Return the law with its loss at x = 0 known, in units of the loss."""
        return replace(self, ceiling=float(ceiling))

    def over(self, columns: tuple[str, ...]) -> "Law":
        """Return the law for these predictor columns; itself unless it takes any number of them."""
        return self.widen(columns) if self.widen else self

    def describe(self, parameters: dict[str, float]) -> str:
        """Format the formula with its numbers."""
        if not self.template:
            numbers = ", ".join(f"{name} = {value:.4g}" for name, value in parameters.items())
            return f"{self.formula}, {numbers}"
        return self.template.format(**parameters, ceiling=self.ceiling)

    @property
    def words(self) -> str:
        """The law's name in a sentence: log-linear law, power law plus constant."""
        return self.title or self.name.replace("_", " ")

    @property
    def exponents(self) -> tuple[str, ...]:
        """The exponents of the law's terms."""
        return tuple(exponent for _, exponent in self.terms)
