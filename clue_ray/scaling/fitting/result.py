"""The result of a fit: a law with numbers, its intervals and its predictions.

Estimates, intervals and warnings are read from one object. Each is computed when it is first asked
for.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clue_ray.errors import FitError, nearest
from clue_ray.scaling.fitting.intervals import Likelihood, Quantity
from clue_ray.scaling.fitting.problem import LARGEST_EXPONENT, Problem
from clue_ray.scaling.fitting.table import check_width, is_number, place_of
from clue_ray.scaling.fitting.warnings import interval_warnings
from clue_ray.scaling.laws.law import Floats, Law

if TYPE_CHECKING:  # pandas is slow to import, and `import clue_ray` should not be
    import pandas as pd

BOUND_SHARE = 0.01
"""Share of its range within which a parameter counts as at its bound."""
BAND_POINTS = 11
"""Points along x at which the curves of a band are searched."""


class Prediction(NamedTuple):
    """A predicted value and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law with numbers; `print(fit)` shows a summary.

    Attributes:
        law: the fitted law, its ceiling known.
        x: predictor columns, in the law's order.
        y: the predicted column.
        parameters: by name, in the units of the table.
        objective: the minimised sum of costs.
        num_runs: the number of runs used.
        fit_warnings: warnings of the fit itself, one sentence each; `warnings` has all.
        problem: the law on its data.
        theta: the optimum in the coordinates of `problem`, (p,).
        delta: where Huber's cost turns linear, in log units; infinite for least squares.
        rivals: distinct optima within 1 % and within 5 % of the objective, the best included.
        converged: whether the minimiser converged at the optimum.
    """

    law: Law
    x: tuple[str, ...]
    y: str
    parameters: dict[str, float]
    objective: float
    num_runs: int
    fit_warnings: tuple[str, ...]
    problem: Problem = field(repr=False, compare=False)
    theta: Floats = field(repr=False, compare=False)
    delta: float
    rivals: tuple[int, int] = (1, 1)
    converged: bool = True

    def __str__(self) -> str:
        """Format the law, its parameters with 95 % intervals, and the warnings, a line each."""
        width = max(map(len, self.parameters))
        return "\n".join(
            [
                f"{self.law.words} of {', '.join(self.x)}, fitted to {self.num_runs} runs",
                f"  {self.y} = {self.law.formula}",
                *(
                    f"  {name:<{width}} = {value:<11.5g} {self._describe_interval(name)}"
                    for name, value in self.parameters.items()
                ),
                *([] if self.converged else ["  warning: the search did not converge"]),
                *(f"  warning: {warning}" for warning in self.warnings),
            ]
        )

    def _describe_interval(self, name: str) -> str:
        low, high = self.known_interval(name)
        if low is None and high is None:
            return "not identified"
        ends = ("unbounded" if end is None else f"{end:.5g}" for end in (low, high))
        return "95 % interval " + " to ".join(ends)

    @cached_property
    def likelihood(self) -> Likelihood:
        """The neighbourhood of the optimum, from which all intervals come."""
        return Likelihood.build(self.problem, self.theta, self.delta)

    @property
    def loss(self) -> str:
        """The name of the loss that was minimised."""
        return "log_huber" if np.isfinite(self.delta) else "log_least_squares"

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What to know before trusting the numbers, one sentence each.

        The first access computes the profile and the bootstrap intervals of all parameters.
        """
        known = [name for name in self.parameters if self.identified(name)]
        quantities = {name.replace("_", " "): self._quantity(name) for name in known}
        return (*self.fit_warnings, *interval_warnings(self.law, self.likelihood, quantities))

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Return the interval of a parameter.

        It comes from the profile likelihood with F(1, n - p), or from the bootstrap for over 40
        configurations.

        Raises:
            FitError: the law has no such parameter.
        """
        if (name, level) not in self._intervals:
            low, high = self._unlogged(name, *self._ends(self._quantity(name), level))
            low, high = np.clip([low, high], *self._bounds(name))
            around = self._around(self.parameters[name], float(low), float(high))
            self._intervals[name, level] = around
        return self._intervals[name, level]

    @cached_property
    def _intervals(self) -> dict[tuple[str, float], tuple[float, float]]:
        """The intervals so far: each takes dozens of refits and is asked for in several places."""
        return {}

    def bootstrap_interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Return the bootstrap interval of a parameter: the check of `interval`, or its source."""
        low, high = self.likelihood.bootstrap(self._quantity(name), _check_level(level))
        return self._unlogged(name, low, high)

    def predict(self, level: float = 0.95, **x: float) -> Prediction:
        """Predict the value of the law at x, a keyword per predictor column, with its interval."""
        quantity = self._log_value(x)
        return self._prediction(quantity, self._ends(quantity, level))

    def predict_run(self, level: float = 0.95, **x: float) -> Prediction:
        """Predict what one new run at x will measure.

        The interval is by profile likelihood and includes the noise of the run.
        """
        quantity = self._log_value(x)
        ends = self.likelihood.run_interval(quantity, _check_level(level))
        return self._prediction(quantity, ends)

    def bootstrap_predict(self, level: float = 0.95, **x: float) -> Prediction:
        """Predict the value of the law at x with a bootstrap interval, the check of `predict`."""
        quantity = self._log_value(x)
        return self._prediction(quantity, self.likelihood.bootstrap(quantity, _check_level(level)))

    def curve(self, x_values: Any) -> Floats:
        """Evaluate the fitted law of one predictor at x_values (n,), in the table's units: (n,)."""
        check_width(f"A curve of {self.law.name}", self.law.num_predictors, (self.x[0],))
        scaled = np.asarray(x_values, dtype=float) / self.problem.scales[0]
        return np.asarray(self.problem.values(self.theta, scaled[None]), dtype=float)

    def expected(self, table: "pd.DataFrame") -> Floats:
        """Evaluate the fitted law at the rows of a table that has its predictor columns: (n,)."""
        x = np.array([np.asarray(table[column], dtype=float) for column in self.x])
        return np.asarray(
            self.problem.values(self.theta, x / self.problem.scales[:, None]), dtype=float
        )

    def band(self, x_values: Any, level: float = 0.95) -> tuple[Floats, Floats]:
        """Return the interval of the law of one predictor along x_values (n,), ascending.

        Returns:
            Lower and upper ends, (n,) each; infinite next to points where no data bound the law.
        """
        x = np.asarray(x_values, dtype=float)
        scaled = x[None] / self.problem.scales[0]
        if self.likelihood.many:
            low, high = self.likelihood.bootstrap_band(
                lambda theta: self.problem.log_values(theta, scaled), _check_level(level)
            )
            curve = self.curve(x)
            return np.minimum(np.exp(low), curve), np.maximum(np.exp(high), curve)
        # Every interval along x ends on a curve that the data accept. The envelope of these curves
        # is the band: it is continuous in x and takes few profiles.
        points = x[np.unique(np.linspace(0, len(x) - 1, BAND_POINTS).astype(int))]
        ends = [
            self.likelihood.ends(self._log_value({self.x[0]: point}), _check_level(level))
            for point in points
        ]
        accepted = np.array([self.theta, *(end.theta for pair in ends for end in pair)])
        curves = self.problem.values(accepted, scaled)
        no_low, no_high = (
            np.interp(x, points, [np.isinf(pair[side].value) for pair in ends]) > 0
            for side in (0, 1)
        )
        low, high = np.maximum(curves.min(axis=0), 0.0), curves.max(axis=0)
        return np.where(no_low, 0.0, low), np.where(no_high, np.inf, high)

    def identified(self, name: str) -> bool:
        """Return whether the interval of a parameter is narrower than the range searched."""
        lower, upper = self._bounds(name)
        low, high = self.interval(name)
        exponent = dict(self.law.terms).get(name)
        if exponent and not self.identified(exponent):
            return False  # a coefficient means nothing while its exponent may be anything
        if np.isfinite(upper):
            inside = low > lower + BOUND_SHARE * (upper - lower)
            return bool(inside or high < self._unbounded_from(name, upper))
        return bool(np.isfinite(low) and np.isfinite(high))

    def known_interval(self, name: str) -> tuple[float | None, float | None]:
        """Return `interval`, with None for an end that only the range searched bounds.

        Both are None if the parameter is not identified.
        """
        low, high = self.interval(name)
        if not self.identified(name):
            return None, None
        is_exponent = name in self.law.exponents
        at_bound = is_exponent and high >= self._unbounded_from(name, LARGEST_EXPONENT)
        return _finite(low), None if at_bound else _finite(high)

    def to_dict(self) -> dict[str, Any]:
        """Describe the fit in JSON values; None for an end of an interval that no data bound."""
        ends = {name: list(self.known_interval(name)) for name in self.law.parameters}
        return {
            "law": self.law.name,
            "formula": self.law.formula,
            "ceiling": self.law.ceiling,
            "x": list(self.x),
            "y": self.y,
            "parameters": self.parameters,
            "intervals": ends,
            "loss": self.loss,
            "delta": _finite(self.delta),
            "objective": self.objective,
            "num_runs": self.num_runs,
            "rivals": list(self.rivals),
            "warnings": list(self.warnings),
        }

    def _quantity(self, name: str) -> Quantity:
        """Return a parameter as a function of theta; FitError for an unknown name."""
        if name not in self.parameters:
            raise FitError(
                f"{self.law.name} has no parameter {name!r}; {nearest(name, list(self.parameters))}"
            )
        return lambda theta: self.problem.natural(theta, name)

    def _log_value(self, x: dict[str, float]) -> Quantity:
        """Return the log of the law at x as a function of theta."""
        scaled = (place_of(self.x, x) / self.problem.scales)[:, None]
        if not float(self.problem.values(self.theta, scaled)[0]) > 0:
            raise FitError(
                f"{self.law.name} is not positive at {x}; it cannot be extended that far."
            )
        return lambda theta: self.problem.log_values(theta, scaled)[..., 0]

    def _ends(self, quantity: Quantity, level: float) -> tuple[float, float]:
        return self.likelihood.interval(quantity, _check_level(level))

    def _prediction(self, quantity: Quantity, ends: tuple[float, float]) -> Prediction:
        value = _exp(float(quantity(self.theta)))
        return Prediction(value, *self._around(value, _exp(ends[0]), _exp(ends[1])))

    def _around(self, value: float, low: float, high: float) -> tuple[float, float]:
        """Stretch an interval to hold its estimate: the two minimise costs of different delta."""
        return min(low, value), max(high, value)

    def _bounds(self, name: str) -> tuple[float, float]:
        """Return the range searched for a parameter, in the units of the table."""
        if any(name == coefficient for coefficient, _ in self.law.terms):
            return 0.0, np.inf  # its coordinate also holds the exponent, so it has no fixed range
        lower, upper = (self.problem.natural(bound, name) for bound in self.problem.bounds)
        return self._unlogged(name, float(lower), float(upper))

    def _unbounded_from(self, name: str, upper: float) -> float:
        """Return the value from which a parameter with this upper bound counts as unbounded."""
        if name == self.law.floor:  # a floor cannot lie above the smallest loss
            return (1 - BOUND_SHARE) * float(np.exp(self.problem.log_y.min()))
        return (1 - BOUND_SHARE) * upper

    def _unlogged(self, name: str, low: float, high: float) -> tuple[float, float]:
        return (_exp(low), _exp(high)) if self.problem.is_log(name) else (low, high)


def _check_level(level: float) -> float:
    """Return a confidence level; FitError unless it lies between 0 and 1."""
    if not (is_number(level) and 0 < level < 1):
        raise FitError(f"level is {level!r}; it must lie between 0 and 1, such as 0.95.")
    return level


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
