"""What a fit is: a law with numbers, its intervals and its predictions.

Takes what `fit_law` found; gives `Fit`. The one idea: estimate, interval and warning are read off
one object, each computed when it is first asked for.


Fit a law to runs: robust and deterministic.

Takes a law, a runs table and column names; gives a `Fit`. The one idea: the sum of Huber costs of
log residuals, minimised from many screened starts at once (decision D12).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clue_ray.errors import FitError, nearest
from clue_ray.runs import chance_loss
from clue_ray.scaling.fitting.intervals import CLIP, Likelihood, Quantity
from clue_ray.scaling.fitting.problem import LARGEST_EXPONENT, Problem
from clue_ray.scaling.fitting.search import ResidualCost, find_optimum
from clue_ray.scaling.fitting.table import (
    Sample,
    Table,
    as_names,
    check_callable,
    check_delta,
    check_design,
    check_law,
    check_once,
    check_smooth,
    check_width,
    finished,
    is_number,
    place_of,
    select,
)
from clue_ray.scaling.fitting.warnings import disagree, disagreement, doubts
from clue_ray.scaling.laws.catalogue import find_law
from clue_ray.scaling.laws.law import Floats, Law

AT_BOUND = 0.01  # share of its range within which a parameter counts as at its bound
BAND_PLACES = 11  # places along x at which the curves of a band are sought


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
        objective: the minimised sum of costs; for a quantile, of |r| q above the curve and |r| (1 -
            q) below.
        num_runs: runs used.
        fit_warnings: what the fit itself found for a reader to know, a sentence each; see `warnings`.
        delta: where Huber's cost turned linear, in log units; infinite for least squares.
        quantile: the share of runs below the curve, where it was fitted as an envelope; such a fit
            has no intervals, so that every end is the widest possible.
        rivals: distinct optima found within 1 % and within 5 % of the objective, the best included.
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
    quantile: float | None = None
    rivals: tuple[int, int] = (1, 1)

    @cached_property
    def likelihood(self) -> Likelihood:
        """The neighbourhood of the optimum, on which all intervals rest; FitError for a quantile,
        which has none.
        """
        if self.quantile is not None:
            raise FitError(
                "A quantile fit has no likelihood and so no intervals; fit with loss='log_huber' "
                "for these."
            )
        return Likelihood.build(self.problem, self.theta, self.delta)

    @property
    def loss(self) -> str:
        """The loss fitted with, by its name."""
        if self.quantile is not None:
            return "quantile"
        return "log_huber" if np.isfinite(self.delta) else "log_least_squares"

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know before trusting the numbers, a sentence each; asking takes both
        intervals.
        """
        if self.quantile is not None:
            return self.fit_warnings
        known = [name for name in self.parameters if self.identified(name)]
        readers = {name.replace("_", " "): self._reader(name) for name in known}
        return (*self.fit_warnings, *disagreement(self.law, self.likelihood, readers))

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Bracket a parameter: by profile likelihood with F(1, n - p), by bootstrap for over 40
        configurations.

        FitError for an unknown name.
        """
        low, high = self._unlogged(name, *self._ends(self._reader(name), level))
        low, high = np.clip([low, high], *self._bounds(name))
        return self._around(self.parameters[name], float(low), float(high))

    def bootstrap_interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Bracket a parameter by bootstrap: the check of `interval`, or its source where
        configurations are many.
        """
        low, high = self.likelihood.bootstrap(self._reader(name), _checked(level))
        return self._unlogged(name, low, high)

    def predict(self, level: float = 0.95, **x: float) -> Prediction:
        """Predict the law's value at x, a keyword a predictor column, with its interval: as
        `interval` finds it.
        """
        quantity = self._log_value(x)
        return self._prediction(quantity, self._ends(quantity, level))

    def predict_run(self, level: float = 0.95, **x: float) -> Prediction:
        """Predict what one new run at x will measure: by profile likelihood, with the run's noise
        in the interval.
        """
        quantity = self._log_value(x)
        ends = (
            (-np.inf, np.inf)
            if self.quantile
            else self.likelihood.run_interval(quantity, _checked(level))
        )
        return self._prediction(quantity, ends)

    def bootstrap_predict(self, level: float = 0.95, **x: float) -> Prediction:
        """Predict the law's value at x with a bootstrap interval, the cross-check of `predict`."""
        quantity = self._log_value(x)
        return self._prediction(quantity, self.likelihood.bootstrap(quantity, _checked(level)))

    def cross_check(self, **x: float) -> tuple[Prediction, Prediction] | None:
        """Give the profile's and the bootstrap's prediction at x where their widths differ by half
        or more.

        None also where the bootstrap is what `predict` shows.
        """
        if self.likelihood.many:
            return None
        profile, rival = self.predict(**x), self.bootstrap_predict(**x)
        return (profile, rival) if disagree(profile[1:], rival[1:]) else None

    def curve(self, x_values: Any) -> Floats:
        """Evaluate the fitted law of one predictor at x_values (n,), in the table's units ->
        (n,).
        """
        check_width(f"A curve of {self.law.name}", self.law.num_predictors, (self.x[0],))
        scaled = np.asarray(x_values, dtype=float) / self.problem.scales[0]
        return np.asarray(self.problem.values(self.theta, scaled[None]), dtype=float)

    def expected(self, table: pd.DataFrame) -> Floats:
        """Evaluate the fitted law at the rows of a table that has its predictor columns -> (n,)."""
        x = np.array([np.asarray(table[column], dtype=float) for column in self.x])
        return np.asarray(
            self.problem.values(self.theta, x / self.problem.scales[:, None]), dtype=float
        )

    def band(self, x_values: Any, level: float = 0.95) -> tuple[Floats, Floats]:
        """Bracket the law of one predictor at x_values (n,), ascending -> low (n,), high (n,).

        The band is the envelope of the curves on which intervals along x end: each is a curve that
        the data accept, so the band is continuous in x. It is infinite beside a place where no data
        bound the law.
        """
        x = np.asarray(x_values, dtype=float)
        places = x[np.unique(np.linspace(0, len(x) - 1, BAND_PLACES).astype(int))]
        if self.likelihood.many:
            scaled = x[None] / self.problem.scales[0]
            ends_of = self.likelihood.bootstrap_band(
                lambda theta: self.problem.log_values(theta, scaled), _checked(level)
            )
            curve = self.curve(x)
            return np.minimum(np.exp(ends_of[0]), curve), np.maximum(np.exp(ends_of[1]), curve)
        ends = [
            self.likelihood.ends(self._log_value({self.x[0]: place}), _checked(level))
            for place in places
        ]
        points = np.array([self.theta, *(end.theta for pair in ends for end in pair)])
        curves = self.problem.values(points, x[None] / self.problem.scales[0])
        open_ends = [
            np.interp(x, places, [np.isinf(pair[side].value) for pair in ends]) > 0
            for side in (0, 1)
        ]
        low, high = curves.min(axis=0), curves.max(axis=0)
        return np.where(open_ends[0], 0.0, np.maximum(low, 0.0)), np.where(
            open_ends[1], np.inf, high
        )

    def identified(self, name: str) -> bool:
        """Tell whether the data bound a parameter: whether its interval is narrower than the range
        searched.
        """
        lower, upper = self._bounds(name)
        low, high = self.interval(name)
        partner = dict(self.law.terms).get(name)
        if partner and not self.identified(partner):
            return False  # the coefficient belongs to an exponent that may be anything
        if np.isfinite(upper):
            return bool(low > lower + AT_BOUND * (upper - lower) or high < self._reach(name, upper))
        return bool(np.isfinite(low) and np.isfinite(high))

    def known_interval(self, name: str) -> tuple[float | None, float | None]:
        """Give `interval` with None for an end that only the range searched bounds; both None if
        not identified.
        """
        low, high = self.interval(name)
        if not self.identified(name):
            return None, None
        at_end = name in self.law.exponents and high >= self._reach(name, LARGEST_EXPONENT)
        return _finite(low), None if at_end else _finite(high)

    def _reach(self, name: str, upper: float) -> float:
        """Give the value from which a parameter counts as unbounded above: a floor cannot pass the
        losses seen.
        """
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
            "loss": self.loss,
            "delta": _finite(self.delta),
            "objective": self.objective,
            "num_runs": self.num_runs,
            "rivals": list(self.rivals),
            "warnings": list(self.warnings),
        }

    def _reader(self, name: str) -> Quantity:
        if name not in self.parameters:
            raise FitError(
                f"{self.law.name} has no parameter {name!r}; {nearest(name, list(self.parameters))}"
            )
        return lambda theta: self.problem.natural(theta, name)

    def _ends(self, quantity: Quantity, level: float) -> tuple[float, float]:
        """Bracket a quantity by profile likelihood; not at all where the fit is of a quantile."""
        return (
            (-np.inf, np.inf)
            if self.quantile
            else self.likelihood.interval(quantity, _checked(level))
        )

    def _bounds(self, name: str) -> tuple[float, float]:
        """Give the range searched for a parameter, in the units of the table; a term's coefficient
        may be anything.
        """
        if any(name == coefficient for coefficient, _ in self.law.terms):
            return 0.0, np.inf
        lower, upper = (self.problem.natural(bound, name) for bound in self.problem.bounds)
        return self._unlogged(name, float(lower), float(upper))

    def _unlogged(self, name: str, low: float, high: float) -> tuple[float, float]:
        return (_exp(low), _exp(high)) if self.problem.is_log(name) else (low, high)

    def _log_value(self, x: dict[str, float]) -> Quantity:
        """Give the log of the law at one place as a function of theta."""
        place = place_of(self.x, x)
        scaled = (place / self.problem.scales)[:, None]
        if not float(self.problem.values(self.theta, scaled)[0]) > 0:
            raise FitError(
                f"{self.law.name} is not positive at {x}; it cannot be extended that far."
            )
        return lambda theta: self.problem.log_values(theta, scaled)[..., 0]

    def _prediction(self, quantity: Quantity, ends: tuple[float, float]) -> Prediction:
        value = _exp(float(quantity(self.theta)))
        return Prediction(value, *self._around(value, _exp(ends[0]), _exp(ends[1])))

    def _around(self, value: float, low: float, high: float) -> tuple[float, float]:
        """Let an interval hold its estimate: the two minimise costs of different delta."""
        return min(low, value), max(high, value)


def _checked(level: float) -> float:
    if not (is_number(level) and 0 < level < 1):
        raise FitError(f"level is {level!r}; it must lie between 0 and 1, such as 0.95.")
    return level


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


# Huber's delta where nothing is known of the noise (Hoffmann et al. 2022, arXiv 2203.15556)
DELTA = 1e-3
ENOUGH_REPEATS = 3  # degrees of freedom between seeds from which their noise counts as known


def fit_law(
    law: str | Law,
    table: Table,
    *,
    x: str | Sequence[str],
    y: str,
    loss: str = "log_huber",
    delta: float | None = None,
) -> Fit:
    """Fit a law to the done runs of a table.

    Args:
        law: a name of `LAWS`, or a law of one's own: any function of predictors and parameters in a
            `Law`.
        x: predictor columns, as many as the law has, in its order.
        loss: log_huber (sum of Huber costs of log residuals), log_least_squares, or quantile (lower
            envelope: the curve that a tenth of the runs lie below, which has no intervals).
        delta: where Huber's cost turns linear, in log units; by default 1e-3, or, where seeds tell
            more noise than that, twice their standard deviation.

    Raises:
        FitError: the law is unknown, or the runs cannot identify it.
        RunsError: the table lacks a column, lists a run twice, or holds values no law can be fitted
            to.
    """
    check_law(law)
    if delta is not None:
        check_delta(delta)
    columns = as_names(x)
    found = find_law(law).over(columns)
    check_width(found.name, found.num_predictors, columns)
    check_once(finished(table))
    sample = select(table, columns, y)
    if found.lacks_ceiling:
        found = found.with_ceiling(_ceiling(found, sample))
    return _fit_sample(
        found, sample, columns, y, ResidualCost.named(loss, _delta(sample, loss, delta))
    )


def _fit_sample(law: Law, sample: Sample, x: tuple[str, ...], y: str, cost: ResidualCost) -> Fit:
    """Fit a law whose ceiling is known to rows already checked; FitError where they are too few."""
    check_design(law, sample, x)
    problem = Problem.build(law, sample.x, sample.y)
    check_callable(problem)
    best = find_optimum(problem, cost)
    if best is None:
        raise FitError(
            f"{law.name} is not positive at any start; check its formula and the units of x."
        )
    check_smooth(problem, best.theta)
    parameters = problem.parameters(best.theta)
    fit_warnings = [*doubts(problem, best.theta, sample)]
    if best.rivals[0] > 1:
        fit_warnings.append(
            f"{law.words}: {best.rivals[0]} distinct optima cost within 1 % of each other; none is "
            f"settled."
        )
    objective = best.cost if cost.quantile is None else best.cost / cost.bend
    rest = (problem, best.theta, cost.delta, cost.quantile, best.rivals)
    return Fit(law, x, y, parameters, objective, len(sample.y), tuple(fit_warnings), *rest)


def _delta(sample: Sample, loss: str, delta: float | None) -> float:
    """Give the delta asked for; else `DELTA`, or that of the noise between seeds where they tell
    it.

    A quantile's delta only rounds the corner of its cost, so noise does not widen it.
    """
    if delta is not None:
        return delta
    place = np.unique(sample.x, axis=1, return_inverse=True)[1].ravel()
    freedom = len(place) - int(place.max()) - 1
    if loss == "quantile" or freedom < ENOUGH_REPEATS:
        return DELTA
    log_y = np.log(sample.y)
    apart = log_y - (np.bincount(place, log_y) / np.bincount(place))[place]
    return max(DELTA, CLIP * float(np.sqrt(apart @ apart / freedom)))


def _ceiling(law: Law, sample: Sample) -> float:
    """Give the loss of a guess, the ceiling of a bounded law."""
    if sample.candidates is None:
        raise FitError(
            f"{law.name} needs its ceiling, the loss of a guess, but the table lacks "
            f"loss_candidates; "
            f"add it, or fit LAWS[{law.name!r}].with_ceiling(...)."
        )
    return chance_loss(sample.candidates)
