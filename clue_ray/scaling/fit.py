"""Fit a law to runs: robust, deterministic, with intervals on parameters and predictions.

Takes a law, a runs table and column names; gives a `Fit`. The one idea: the sum of Huber costs of log
residuals, minimised from many screened starts at once (decision D12).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from clue_ray.errors import FitError, nearest
from clue_ray.runs import chance_loss
from clue_ray.scaling.identify import doubts
from clue_ray.scaling.intervals import Likelihood, Quantity
from clue_ray.scaling.laws import Floats, Law, find_law
from clue_ray.scaling.problem import LARGEST_EXPONENT, Problem, minimise
from clue_ray.scaling.sample import Sample, Table, as_names, check_width, select
from clue_ray.scaling.starts import screen

LOSSES = ("log_huber", "log_least_squares")
DISAGREEMENT = 1.5  # ratio of two widths that a reader should hear of
NEGLIGIBLE = 1e-6  # relative width below which an interval is a point
POLISHED = 4  # basins followed to the bottom
AT_BOUND = 0.01  # share of its range within which a parameter counts as at its bound
BAND_PLACES = 11  # places along x at which the curves of a band are sought
FLAT = 1e-9  # relative difference of costs that counts as none


class Prediction(NamedTuple):
    """A predicted value and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """A law with numbers.

    Attributes:
        law: the law fitted, its ceiling known.
        x: predictor columns, in the law's order.
        y: the column predicted.
        parameters: by name, in the units of the table.
        objective: the minimised sum of costs.
        num_runs: runs used.
        warnings: what a reader should know before trusting the numbers, a sentence each.
    """

    law: Law
    x: tuple[str, ...]
    y: str
    parameters: dict[str, float]
    objective: float
    num_runs: int
    warnings: tuple[str, ...]
    problem: Problem = field(repr=False, compare=False)
    theta: Floats = field(repr=False, compare=False)
    delta: float = field(repr=False, compare=False)

    @cached_property
    def likelihood(self) -> Likelihood:
        """The neighbourhood of the optimum, on which all intervals rest."""
        return Likelihood.build(self.problem, self.theta, self.delta)

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Bracket a parameter by profile likelihood with F(1, n - p); FitError for an unknown name."""
        low, high = self.likelihood.interval(self._reader(name), _checked(level))
        place = self.law.parameters.index(name)
        if not self.problem.is_log(name):
            low, high = np.clip([low, high], self.problem.bounds[0][place], self.problem.bounds[1][place])
        return self._around(self.parameters[name], *self._unlogged(name, float(low), float(high)))

    def bootstrap_interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Bracket a parameter by residual bootstrap, the cross-check of `interval`."""
        low, high = self.likelihood.bootstrap(self._reader(name), _checked(level))
        return self._unlogged(name, low, high)

    def predict(self, level: float = 0.95, **x: float) -> Prediction:
        """Predict the law's value at x, a keyword a predictor column, with a profile-likelihood interval."""
        quantity = self._log_value(x)
        return self._prediction(quantity, self.likelihood.interval(quantity, _checked(level)))

    def predict_run(self, level: float = 0.95, **x: float) -> Prediction:
        """Predict what one new run at x will measure: as `predict`, with the run's noise in the interval."""
        quantity = self._log_value(x)
        return self._prediction(quantity, self.likelihood.run_interval(quantity, _checked(level)))

    def bootstrap_predict(self, level: float = 0.95, **x: float) -> Prediction:
        """Predict the law's value at x with a residual-bootstrap interval, the cross-check of `predict`."""
        quantity = self._log_value(x)
        return self._prediction(quantity, self.likelihood.bootstrap(quantity, _checked(level)))

    def cross_check(self, **x: float) -> tuple[Prediction, Prediction] | None:
        """Give the profile's and the bootstrap's prediction at x where their widths differ by half or more."""
        profile, rival = self.predict(**x), self.bootstrap_predict(**x)
        return (profile, rival) if _disagree(profile[1:], rival[1:]) else None

    def curve(self, x_values: Any) -> Floats:
        """Evaluate the fitted law of one predictor at x_values (n,), in the table's units -> (n,)."""
        check_width(f"A curve of {self.law.name}", self.law.num_predictors, (self.x[0],))
        scaled = np.asarray(x_values, dtype=float) / self.problem.scales[0]
        return np.asarray(self.problem.values(self.theta, scaled[None]), dtype=float)

    def band(self, x_values: Any, level: float = 0.95) -> tuple[Floats, Floats]:
        """Bracket the law of one predictor at x_values (n,), ascending -> low (n,), high (n,).

        The band is the envelope of the curves on which intervals along x end: each is a curve that the data
        accept, so the band is continuous in x. It is infinite beside a place where no data bound the law.
        """
        x = np.asarray(x_values, dtype=float)
        places = x[np.unique(np.linspace(0, len(x) - 1, BAND_PLACES).astype(int))]
        ends = [self.likelihood.ends(self._log_value({self.x[0]: place}), _checked(level)) for place in places]
        points = np.array([self.theta, *(end.theta for pair in ends for end in pair)])
        curves = self.problem.values(points, x[None] / self.problem.scales[0])
        open_ends = [np.interp(x, places, [np.isinf(pair[side].value) for pair in ends]) > 0 for side in (0, 1)]
        low, high = curves.min(axis=0), curves.max(axis=0)
        return np.where(open_ends[0], 0.0, np.maximum(low, 0.0)), np.where(open_ends[1], np.inf, high)

    def identified(self, name: str) -> bool:
        """Tell whether the data bound a parameter: whether its interval is narrower than the range searched."""
        lower, upper = (bound[self.law.parameters.index(name)] for bound in self.problem.bounds)
        low, high = self.interval(name)
        partner = dict(self.law.terms).get(name)
        if partner and not self.identified(partner):
            return False  # the coefficient belongs to an exponent that may be anything
        if np.isfinite(upper):
            return bool(low > lower + AT_BOUND * (upper - lower) or high < self._reach(name, upper))
        return bool(np.isfinite(low) and np.isfinite(high))

    def known_interval(self, name: str) -> tuple[float | None, float | None]:
        """Give `interval` with None for an end that only the range searched bounds; both None if not identified."""
        low, high = self.interval(name)
        if not self.identified(name):
            return None, None
        at_end = name in self.law.exponents and high >= self._reach(name, LARGEST_EXPONENT)
        return _finite(low), None if at_end else _finite(high)

    def _reach(self, name: str, upper: float) -> float:
        """Give the value from which a parameter counts as unbounded above: a floor cannot pass the losses seen."""
        if name == self.law.floor:
            return (1 - AT_BOUND) * float(np.exp(self.problem.log_y.min()))
        return (1 - AT_BOUND) * upper

    def to_dict(self) -> dict[str, Any]:
        """Describe the fit in JSON-able values; an interval end that no data bound is None."""
        ends = {name: list(self.known_interval(name)) for name in self.law.parameters}
        return {
            "law": self.law.name,
            "formula": self.law.formula,
            "ceiling": self.law.ceiling,
            "x": list(self.x),
            "y": self.y,
            "parameters": self.parameters,
            "intervals": ends,
            "objective": self.objective,
            "num_runs": self.num_runs,
            "warnings": list(self.warnings),
        }

    def _reader(self, name: str) -> Quantity:
        if name not in self.parameters:
            raise FitError(f"{self.law.name} has no parameter {name!r}; {nearest(name, list(self.parameters))}")
        return lambda theta: self.problem.natural(theta, name)

    def _unlogged(self, name: str, low: float, high: float) -> tuple[float, float]:
        return (_exp(low), _exp(high)) if self.problem.is_log(name) else (low, high)

    def _log_value(self, x: dict[str, float]) -> Quantity:
        """Give the log of the law at one place as a function of theta."""
        if set(x) != set(self.x):
            raise FitError(f"The fit predicts from {', '.join(self.x)}, not from {', '.join(x) or 'nothing'}.")
        place = np.array([float(x[name]) for name in self.x])
        if not (np.isfinite(place) & (place > 0)).all():
            raise FitError(f"Cannot predict at {x}; predictors are positive finite numbers.")
        scaled = (place / self.problem.scales)[:, None]
        if not float(self.problem.values(self.theta, scaled)[0]) > 0:
            raise FitError(f"{self.law.name} is not positive at {x}; it cannot be extended that far.")
        return lambda theta: self.problem.log_values(theta, scaled)[..., 0]

    def _prediction(self, quantity: Quantity, ends: tuple[float, float]) -> Prediction:
        value = _exp(float(quantity(self.theta)))
        return Prediction(value, *self._around(value, _exp(ends[0]), _exp(ends[1])))

    def _around(self, value: float, low: float, high: float) -> tuple[float, float]:
        """Let an interval hold its estimate: the two minimise costs of different delta."""
        return min(low, value), max(high, value)


def fit_law(
    law: str | Law,
    table: Table,
    *,
    x: str | Sequence[str],
    y: str,
    loss: str = "log_huber",
    delta: float = 1e-3,
) -> Fit:
    """Fit a law to the done runs of a table.

    Args:
        law: a name of `LAWS`, or a law of one's own.
        x: predictor columns, as many as the law has, in its order.
        loss: log_huber (sum of Huber costs of log residuals) or log_least_squares.
        delta: where Huber's cost turns linear, in log units.

    Raises:
        FitError: the law is unknown, or the runs cannot identify it.
        RunsError: the table lacks a column, or holds values no law can be fitted to.
    """
    columns, found = as_names(x), find_law(law)
    check_width(found.name, found.num_predictors, columns)
    sample = select(table, columns, y)
    if found.lacks_ceiling:
        found = found.with_ceiling(_ceiling(found, sample))
    return fit_sample(found, sample, columns, y, _delta(loss, delta))


def fit_sample(law: Law, sample: Sample, x: tuple[str, ...], y: str, delta: float) -> Fit:
    """Fit a law whose ceiling is known to rows already checked; FitError where they are too few."""
    runs, count = len(sample.y), len(law.parameters)
    if runs <= count:
        raise FitError(f"{law.name} has {count} parameters but only {runs} runs are done; it needs {count + 1}.")
    distinct = min(len(np.unique(column)) for column in sample.x)
    if distinct < 2 or len(np.unique(sample.x, axis=1).T) < count:
        raise FitError(
            f"{law.name} has {count} parameters, which {distinct} distinct values of a predictor cannot identify; "
            "add runs at other values."
        )
    problem = Problem.build(law, sample.x, sample.y)
    starts = screen(problem, delta)
    if not len(starts):
        raise FitError(f"{law.name} is not positive at any start; check its formula and the units of x.")
    theta, cost = _polish(problem, starts, delta)
    parameters = problem.parameters(theta)
    warnings = tuple(doubts(law, sample, parameters))
    return Fit(law, x, y, parameters, cost, runs, warnings, problem, theta, delta)


def _polish(problem: Problem, starts: Floats, delta: float) -> tuple[Floats, float]:
    """Follow the best basins to the bottom; give the lowest point and its cost.

    With few runs a small delta can leave a flat bottom; the point reached from least squares is then taken,
    which does not depend on the order of the runs or on rounding.
    """
    rows, deltas = problem.rows(), np.full(len(problem.log_y), delta)
    points, costs = minimise(rows, starts, deltas, problem.bounds, iterations=20)
    basins = points[np.argsort(costs, kind="stable")[:POLISHED]]
    smooth, costs = minimise(rows, basins, np.full_like(deltas, np.inf), problem.bounds, iterations=100)
    candidates = np.concatenate([smooth[[np.argmin(costs)]], basins])
    points, costs = minimise(rows, candidates, deltas, problem.bounds, iterations=400)
    best = int(np.argmax(costs <= costs.min() * (1 + FLAT)))
    return points[best], float(costs[best])


def _delta(loss: str, delta: float) -> float:
    """Give Huber's delta of a loss: least squares is Huber without a bend."""
    if loss not in LOSSES:
        raise FitError(f"There is no loss {loss!r} to fit with; {nearest(loss, list(LOSSES))}")
    if not delta > 0:
        raise FitError(f"delta is {delta!r}; it must be a positive number of log units, such as 1e-3.")
    return delta if loss == "log_huber" else np.inf


def _ceiling(law: Law, sample: Sample) -> float:
    """Give the loss of a guess, the ceiling of a bounded law."""
    if sample.candidates is None:
        raise FitError(
            f"{law.name} needs its ceiling, the loss of a guess, but the table lacks loss_candidates; "
            f"add it, or fit LAWS[{law.name!r}].with_ceiling(...)."
        )
    return chance_loss(sample.candidates)


def _disagree(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Tell whether the wider of two intervals is much wider, unless both are points for any purpose."""
    narrow, wide = sorted((one[1] - one[0], other[1] - other[0]))
    return wide > DISAGREEMENT * narrow and wide > NEGLIGIBLE * abs(one[1])


def _checked(level: float) -> float:
    if not 0 < level < 1:
        raise FitError(f"level is {level!r}; it must lie between 0 and 1, such as 0.95.")
    return level


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
