"""The numbers of one fit: a law on its data in scaled coordinates, and a minimiser of Huber costs.

Takes a law, predictors and losses; gives log residuals with exact derivatives, and robust minima.
The one
idea: every question (start, polish, bootstrap draw, point of a profile) is a row of one batch,
solved together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from clue_ray.scaling.laws.law import Floats, Law

Rows = Callable[[Floats], tuple[Floats, Floats]]
"""Maps points (k, p) to residuals (k, n) and their derivatives (k, n, p)."""


STEP = (
    1e-30  # of the complex step: no subtraction takes place, so it may be as small as floats allow
)
LEVEL = 1e-13  # relative change of cost that counts as none
# steps in a row that find nothing lower before a start is given up; two if they find the same
PATIENCE = 8
PLACE_REACH = 1e3  # how far beyond the data a place on a predictor's axis may lie, as a factor
LARGEST_EXPONENT = (
    5.0  # steeper than any published exponent by ten; beyond it a power is a step function
)


@dataclass(frozen=True)
class Problem:
    """A law on its data, in the coordinates `theta` in which it is fitted.

    A coordinate is the parameter itself, except for the coefficient of a term, where it is the log
    of coefficient * scale ** -exponent, and for a place on a predictor's axis, where it is the log
    of place / scale. The scale is the predictor's geometric mean, which decorrelates coefficient
    and exponent.

    Attributes:
        law: the law.
        x: predictors over their scales, (predictors, n).
        log_y: log of the losses, (n,).
        scales: geometric means of the predictors, (predictors,); 1 where the law declares no term
            or place.
    """

    law: Law
    x: Floats
    log_y: Floats
    scales: Floats

    @classmethod
    def build(cls, law: Law, x: Floats, y: Floats) -> "Problem":
        """Scale predictors (predictors, n) and losses (n,), all positive."""
        means = np.exp(np.log(x).mean(axis=1))
        scaled = {*range(len(law.terms)), *law.places.values()}
        units = law.units or range(len(x))
        scales = np.array([means[unit] if unit in scaled else 1.0 for unit in units])
        return cls(law, x / scales[:, None], np.log(y), scales)

    @cached_property
    def terms(self) -> list[tuple[int, int]]:
        """Positions (coefficient, exponent) of the law's terms."""
        place = self.law.parameters.index
        return [(place(coefficient), place(exponent)) for coefficient, exponent in self.law.terms]

    @cached_property
    def bounds(self) -> tuple[Floats, Floats]:
        """Lower and upper bounds of theta, (p,) each."""
        lower, upper = np.full((2, len(self.law.parameters)), [[-np.inf], [np.inf]])
        for name in self.law.linear:
            lower[self.law.parameters.index(name)] = -np.inf if self.is_log(name) else 0.0
        for _, exponent in self.terms:
            lower[exponent], upper[exponent] = 0.0, LARGEST_EXPONENT
        if self.law.floor:
            floor = self.law.parameters.index(self.law.floor)
            lower[floor], upper[floor] = 0.0, np.exp(self.log_y.max())
        for name, predictor in self.law.places.items():
            ends = (
                np.log(self.x[predictor].min() / PLACE_REACH),
                np.log(self.x[predictor].max() * PLACE_REACH),
            )
            lower[self.law.parameters.index(name)], upper[self.law.parameters.index(name)] = ends
        for name, ends in self.law.bounds.items():
            place = self.law.parameters.index(name)
            lower[place], upper[place] = (self.coordinate(name, end) for end in ends)
        return lower, upper

    def values(self, theta: Any, x: Any = None) -> Any:
        """Evaluate the law: theta (..., p), scaled x (predictors, n) -> (..., n)."""
        columns = [theta[..., place, None] for place in range(theta.shape[-1])]
        with np.errstate(
            all="ignore"
        ):  # a step may leave the law's domain; its cost is then infinite
            for place in self.logs:
                columns[place] = np.exp(columns[place])
            return self.law(list(self.x if x is None else x), columns)

    def log_values(self, theta: Any, x: Any = None) -> Any:
        """Evaluate the log of the law, nan where the law is not positive."""
        values = self.values(theta, x)
        with np.errstate(all="ignore"):
            return np.log(np.where(values.real > 0, values, np.nan))

    def rows(self, log_y: Floats | None = None) -> Rows:
        """Give log residuals, against other losses (k, n) when given, as the minimiser wants
        them.
        """
        target = self.log_y if log_y is None else log_y

        def residuals(theta: Floats) -> tuple[Floats, Floats]:
            value, slope = differentiate(self.log_values, theta)
            return value - target, slope

        return residuals

    def natural(self, theta: Any, name: str) -> Any:
        """Read a parameter in the user's units off theta (..., p); a term's coefficient and a place
        as their logs.
        """
        place = self.law.parameters.index(name)
        if name in self.law.places:
            return theta[..., place] + np.log(self.scales[self.law.places[name]])
        for predictor, (coefficient, exponent) in enumerate(self.terms):
            if place == coefficient:
                return theta[..., place] + theta[..., exponent] * np.log(self.scales[predictor])
        return theta[..., place]

    def coordinate(self, name: str, value: float) -> float:
        """Give the coordinate of a value in the user's units, the inverse of `natural` (terms'
        coefficients aside).
        """
        if name not in self.law.places:
            return value
        with np.errstate(divide="ignore"):
            return float(np.log(value / self.scales[self.law.places[name]]))

    @cached_property
    def logs(self) -> list[int]:
        """Positions of the parameters whose coordinate is a log."""
        return [place for place, name in enumerate(self.law.parameters) if self.is_log(name)]

    def is_log(self, name: str) -> bool:
        """Tell whether `natural` gives the log of this parameter."""
        return name in self.law.places or any(
            name == coefficient for coefficient, _ in self.law.terms
        )

    def parameters(self, theta: Floats) -> dict[str, float]:
        """Give all parameters of one point (p,) in the user's units."""
        read = {name: float(self.natural(theta, name)) for name in self.law.parameters}
        return {
            name: float(np.exp(value)) if self.is_log(name) else value
            for name, value in read.items()
        }


def differentiate(function: Callable[[Any], Any], theta: Floats) -> tuple[Floats, Floats]:
    """Evaluate an analytic function at points (k, p) -> values (k, n) and exact derivatives (k, n,
    p).

    Complex step (Squire and Trapp 1998): f'(t) = Im f(t + ih) / h, without cancellation.
    """
    moved = function(theta[:, None, :] + 1j * STEP * np.eye(theta.shape[1]))
    return moved[:, 0].real, np.swapaxes(moved.imag, 1, 2) / STEP


def huber(residual: Floats, delta: Floats) -> Floats:
    """Sum r^2/2 within delta and delta (|r| - delta/2) beyond over the last axis; inf where
    undefined.
    """
    size = np.abs(residual)
    with np.errstate(invalid="ignore", over="ignore"):
        cost = np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))
    return np.asarray(np.nan_to_num(cost.sum(axis=-1), nan=np.inf))


def minimise(
    rows: Rows, starts: Floats, delta: Floats, bounds: tuple[Floats, Floats], iterations: int = 200
) -> tuple[Floats, Floats]:
    """Minimise the sum of Huber costs from each start (k, p) within bounds; give minima (k, p),
    costs (k,).

    Levenberg-Marquardt on iteratively reweighted least squares, every start with its own damping.
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
        level = np.isclose(new_cost, cost, rtol=LEVEL, atol=0) & np.isfinite(cost)
        quiet = np.where(level, quiet + PATIENCE // 2, np.where(better, 0, quiet + 1))
        theta = np.where(better[:, None], trial, theta)
        residual = np.where(better[:, None], new_residual, residual)
        slope = np.where(better[:, None, None], new_slope, slope)
        cost = np.where(better, new_cost, cost)
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-8, 1e8)
        if (quiet >= PATIENCE).all():
            break
    return theta, cost


def _step(
    theta: Floats,
    residual: Floats,
    slope: Floats,
    delta: Floats,
    damping: Floats,
    bounds: tuple[Floats, Floats],
) -> Floats:
    """Solve the damped normal equations of each start; coordinates pressed against a bound stay."""
    size = np.abs(residual)
    weight = np.divide(delta, size, out=np.ones_like(size), where=size > delta)
    weighted = slope * weight[:, :, None]
    gradient = np.einsum("knp,kn->kp", weighted, residual)
    curvature = np.einsum("knp,knq->kpq", weighted, slope)
    held = ((theta <= bounds[0]) & (gradient > 0)) | ((theta >= bounds[1]) & (gradient < 0))
    diagonal = np.einsum("kpp->kp", curvature)
    # A parameter of an own law may be 1e13, and its curvature 1e-26 of the others': it is seen in
    # its own size.
    least = (1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-30) / np.maximum(
        np.abs(theta), 1
    ) ** 2
    ridge = np.maximum(diagonal, least) * damping[:, None]
    curvature = np.where(held[:, :, None] | held[:, None, :], 0.0, curvature)
    curvature += np.einsum("kp,pq->kpq", np.where(held, 1.0, ridge), np.eye(theta.shape[1]))
    return np.asarray(-np.linalg.solve(curvature, np.where(held, 0.0, gradient)[..., None])[..., 0])
