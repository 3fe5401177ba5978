"""A law on its data in scaled coordinates, and a batched minimiser of Huber costs.

`Problem` evaluates log residuals with exact derivatives. `minimise` finds robust minima. Every
question about a fit (a start, a bootstrap draw, a point of a profile) is one row of a batch, and
all rows are solved together in numpy.

Shapes: k points, p parameters, n runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clue_ray.scaling.laws.law import Floats, Law

Rows = Callable[[Floats], tuple[Floats, Floats]]
"""Maps points (k, p) to residuals (k, n) and their derivatives (k, n, p)."""

COMPLEX_STEP = 1e-30
"""Step of the derivatives. Nothing is subtracted, so it may be almost as small as floats allow."""
COST_TOLERANCE = 1e-13
"""Relative change of cost that counts as none."""
PATIENCE = 8
"""Steps in a row without a lower cost after which a point has converged. A step that finds the
same cost counts as `PATIENCE // 2` of them."""
PLACE_REACH = 1e3
"""Factor by which a position on a predictor's axis may lie outside the data."""
LARGEST_EXPONENT = 5.0
"""Ten times any published exponent; with more, a power of x is a step function."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A law on its data, in the coordinates `theta` in which it is fitted.

    A coordinate is the parameter itself, with these exceptions. For the coefficient of a term it is
    log(coefficient * scale ** -exponent), the log of the term at x = scale. For a position on a
    predictor's axis it is log(position / scale). The scale is the geometric mean of the predictor:
    there a change of the exponent leaves the term unchanged, so coefficient and exponent are nearly
    uncorrelated and the minimiser takes few steps. A floor, and any other parameter in the unit of
    the loss, is divided by the geometric mean of the losses: a fit to losses of 1e-12 then takes
    the same steps as one to losses of 1.

    Attributes:
        law: the law.
        x: predictors over their scales, (predictors, n).
        log_y: log of the losses, (n,).
        scales: geometric means of the predictors, (predictors,); 1 where the law declares no term
            or position for a predictor.
        unit: geometric mean of the losses.
    """

    law: Law
    x: Floats
    log_y: Floats
    scales: Floats
    unit: float

    @classmethod
    def build(cls, law: Law, x: Floats, y: Floats) -> "Problem":
        """Scale predictors (predictors, n) and losses (n,), all positive."""
        means = np.exp(np.log(x).mean(axis=1))
        scaled = {*range(len(law.terms)), *law.places.values()}
        # Predictors of one unit share one scale, or the law would see another ratio of them.
        units = law.units or range(len(x))
        scales = np.array([means[unit] if unit in scaled else 1.0 for unit in units])
        log_y = np.log(y)
        unit = float(np.exp(log_y.mean()))
        return cls(law=law, x=x / scales[:, None], log_y=log_y, scales=scales, unit=unit)

    @cached_property
    def terms(self) -> list[tuple[int, int]]:
        """Indices (coefficient, exponent) of the law's terms."""
        index = self.law.parameters.index
        return [(index(coefficient), index(exponent)) for coefficient, exponent in self.law.terms]

    @cached_property
    def bounds(self) -> tuple[Floats, Floats]:
        """Lower and upper bounds of theta, (p,) each."""
        index = self.law.parameters.index
        lower, upper = np.full((2, len(self.law.parameters)), [[-np.inf], [np.inf]])
        for name in self.law.linear:
            lower[index(name)] = -np.inf if self.is_log(name) else 0.0
        for _, exponent in self.terms:
            lower[exponent], upper[exponent] = 0.0, LARGEST_EXPONENT
        if self.law.floor:
            floor = index(self.law.floor)
            lower[floor], upper[floor] = 0.0, np.exp(self.log_y.max()) / self.unit
        for name, predictor in self.law.places.items():
            lower[index(name)] = np.log(self.x[predictor].min() / PLACE_REACH)
            upper[index(name)] = np.log(self.x[predictor].max() * PLACE_REACH)
        for name, ends in self.law.bounds.items():
            lower[index(name)], upper[index(name)] = (self.coordinate(name, end) for end in ends)
        return lower, upper

    def values(self, theta: Any, x: Any = None) -> Any:
        """Evaluate the law: theta (..., p), scaled x (predictors, n) -> (..., n)."""
        columns = [theta[..., index, None] for index in range(theta.shape[-1])]
        # A step may leave the law's domain. The cost is infinite there, so the step is rejected.
        with np.errstate(all="ignore"):
            for index in self._logs:
                columns[index] = np.exp(columns[index])
            for index in self._in_loss_units:
                columns[index] = columns[index] * self.unit
            return self.law(list(self.x if x is None else x), columns)

    def log_values(self, theta: Any, x: Any = None) -> Any:
        """Evaluate the log of the law, nan where the law is not positive."""
        values = self.values(theta, x)
        with np.errstate(all="ignore"):
            return np.log(np.where(values.real > 0, values, np.nan))

    def rows(self, log_y: Floats | None = None) -> Rows:
        """Return the log residuals for `minimise`, against other log losses (k, n) where given."""
        target = self.log_y if log_y is None else log_y

        def residuals(theta: Floats) -> tuple[Floats, Floats]:
            value, slope = differentiate(self.log_values, theta)
            return value - target, slope

        return residuals

    def natural(self, theta: Any, name: str) -> Any:
        """Read a parameter in the user's units from theta (..., p).

        Coefficients of terms and positions on an axis are returned as their logs; see `is_log`.
        """
        index = self.law.parameters.index(name)
        if name in self.law.places:
            return theta[..., index] + np.log(self.scales[self.law.places[name]])
        for predictor, (coefficient, exponent) in enumerate(self.terms):
            if index == coefficient:
                return theta[..., index] + theta[..., exponent] * np.log(self.scales[predictor])
        return theta[..., index] * (self.unit if index in self._in_loss_units else 1.0)

    def coordinate(self, name: str, value: float) -> float:
        """Return the coordinate of a value in the user's units; not for coefficients of terms."""
        if self.law.parameters.index(name) in self._in_loss_units:
            return value / self.unit
        if name not in self.law.places:
            return value
        with np.errstate(divide="ignore"):
            return float(np.log(value / self.scales[self.law.places[name]]))

    @cached_property
    def _logs(self) -> list[int]:
        """Indices of the parameters whose coordinate is a log."""
        return [index for index, name in enumerate(self.law.parameters) if self.is_log(name)]

    @cached_property
    def _in_loss_units(self) -> list[int]:
        """Indices of the parameters that are proportional to the losses, but not logs."""
        names = {self.law.floor, *self.law.linear, *self.law.in_loss_units}
        return [
            index
            for index, name in enumerate(self.law.parameters)
            if name in names and not self.is_log(name)
        ]

    def is_log(self, name: str) -> bool:
        """Return whether `natural` returns the log of this parameter."""
        return name in self.law.places or any(
            name == coefficient for coefficient, _ in self.law.terms
        )

    def parameters(self, theta: Floats) -> dict[str, float]:
        """Return all parameters of one point (p,) in the user's units."""
        read = {name: float(self.natural(theta, name)) for name in self.law.parameters}
        return {
            name: float(np.exp(value)) if self.is_log(name) else value
            for name, value in read.items()
        }


def differentiate(function: Callable[[Any], Any], theta: Floats) -> tuple[Floats, Floats]:
    """Evaluate an analytic function at points (k, p): values (k, n), derivatives (k, n, p).

    The derivatives are exact to rounding, by the complex step f'(t) = Im f(t + ih) / h, which
    subtracts nothing and so does not cancel (Squire and Trapp 1998).
    """
    moved = function(theta[:, None, :] + 1j * COMPLEX_STEP * np.eye(theta.shape[1]))
    return moved[:, 0].real, np.swapaxes(moved.imag, 1, 2) / COMPLEX_STEP


def huber(residual: Floats, delta: Floats) -> Floats:
    """Sum Huber's cost over the last axis; inf where a residual is undefined.

    The cost is r^2 / 2 for |r| <= delta and delta (|r| - delta / 2) otherwise (Huber 1964).
    """
    size = np.abs(residual)
    with np.errstate(invalid="ignore", over="ignore"):
        cost = np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))
    return np.asarray(np.nan_to_num(cost.sum(axis=-1), nan=np.inf))


class Minima(NamedTuple):
    """What `minimise` found from each start.

    Attributes:
        theta: the points, (k, p).
        cost: the sum of costs there, (k,).
        converged: whether the cost stopped falling before the iterations ran out, (k,) booleans.
    """

    theta: Floats
    cost: Floats
    converged: npt.NDArray[np.bool_]

    def best(self) -> tuple[Floats, float, bool]:
        """Return theta (p,), cost and convergence of the lowest minimum."""
        index = int(np.argmin(self.cost))
        return self.theta[index], float(self.cost[index]), bool(self.converged[index])


def minimise(
    rows: Rows, starts: Floats, delta: Floats, bounds: tuple[Floats, Floats], iterations: int = 200
) -> Minima:
    """Minimise the sum of Huber costs from each start (k, p) within bounds.

    Iteratively reweighted least squares (Holland and Welsch 1977) by Levenberg-Marquardt steps
    (Marquardt 1963): each start has its own damping, which shrinks after a step that lowers its
    cost and grows after one that does not. Steps are clipped to the bounds. A start never accepts
    a higher cost.

    Args:
        delta: where Huber's cost turns linear, (n,) or (k, n); infinite for least squares.
    """
    theta = np.clip(starts, *bounds)
    residual, slope = rows(theta)
    cost = huber(residual, delta)
    damping, quiet = np.full(len(theta), 1e-3), np.zeros(len(theta), dtype=int)
    for _ in range(iterations):
        trial = np.clip(theta + _step(theta, residual, slope, delta, damping, bounds), *bounds)
        new_residual, new_slope = rows(trial)
        new_cost = huber(new_residual, delta)
        better = new_cost < cost
        # At the bottom, rounding makes the cost go up and down. A step to the same cost is strong
        # evidence of convergence; a step to a higher cost may only show that damping is too small.
        with np.errstate(invalid="ignore"):  # inf - inf; `np.isclose` would take longer than rows
            same = np.abs(new_cost - cost) <= COST_TOLERANCE * cost
        same &= np.isfinite(cost)
        quiet = np.where(same, quiet + PATIENCE // 2, np.where(better, 0, quiet + 1))
        theta = np.where(better[:, None], trial, theta)
        residual = np.where(better[:, None], new_residual, residual)
        slope = np.where(better[:, None, None], new_slope, slope)
        cost = np.where(better, new_cost, cost)
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-8, 1e8)
        if (quiet >= PATIENCE).all():
            break
    return Minima(theta, cost, quiet >= PATIENCE)


def _step(
    theta: Floats,
    residual: Floats,
    slope: Floats,
    delta: Floats,
    damping: Floats,
    bounds: tuple[Floats, Floats],
) -> Floats:
    """Solve the damped normal equations of each start: steps (k, p)."""
    size = np.abs(residual)
    # Huber's weight min(1, delta / |r|) makes weighted least squares match his gradient.
    weight = np.divide(delta, size, out=np.ones_like(size), where=size > delta)
    weighted = slope * weight[:, :, None]
    gradient = np.einsum("knp,kn->kp", weighted, residual)
    curvature = np.einsum("knp,knq->kpq", weighted, slope)
    # A coordinate at a bound that the gradient pushes outwards is held: its row and column become
    # those of the identity, so the others are solved as if it were a constant.
    held = ((theta <= bounds[0]) & (gradient > 0)) | ((theta >= bounds[1]) & (gradient < 0))
    diagonal = np.einsum("kpp->kp", curvature)
    # Marquardt scales the damping by the curvature. A parameter of a custom law may be as large as
    # 1e13, with 1e-26 of the curvature of the others, so the least damping is relative to its size.
    least = (1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-30) / np.maximum(
        np.abs(theta), 1
    ) ** 2
    ridge = np.maximum(diagonal, least) * damping[:, None]
    curvature = np.where(held[:, :, None] | held[:, None, :], 0.0, curvature)
    curvature += np.einsum("kp,pq->kpq", np.where(held, 1.0, ridge), np.eye(theta.shape[1]))
    return np.asarray(-np.linalg.solve(curvature, np.where(held, 0.0, gradient)[..., None])[..., 0])
