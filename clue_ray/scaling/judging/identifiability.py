"""What the data can tell, as numbers: condition, worst direction, tied exponents, range of the
optimum.

Takes a `Fit`; gives an `Identifiability`. The one idea: before a parameter is quoted, ask which
combination of parameters the runs hardly see, and how much would be lost by assuming what nobody
measured.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import fdtrc

from clue_ray.scaling.fitting.fit import Fit, Prediction
from clue_ray.scaling.fitting.problem import huber, minimise
from clue_ray.scaling.fitting.search import screen
from clue_ray.scaling.laws.law import Floats

LARGEST_CONDITION = 1e6
"""Condition of the scaled Jacobian from which parameters cannot be told apart in practice."""
SAME = 0.05  # p value from which tied exponents are as good as free ones


@dataclass(frozen=True)
class Tied:
    """The fit with all exponents equal.

    Attributes:
        exponent: their common value.
        objective: the minimised cost, to be compared with the fit's own.
        ratio: `objective` over the free one; inf where the free fit is exact.
        p_value: of F(exponents - 1, freedom) for the rise in the cost on which intervals rest.
    """

    exponent: float
    objective: float
    ratio: float
    p_value: float


@dataclass(frozen=True)
class Identifiability:
    """How well the runs identify a fit.

    Attributes:
        condition: largest over smallest singular value of the Jacobian of log loss, columns of unit
            length (Belsley, Kuh and Welsch 1980); inf where a parameter has no effect.
        worst_direction: the unit vector of scaled parameters that the runs see least, by name.
        correlation: of the fitted coordinates to first order, (p, p), in the law's order.
        tied: the fit with equal exponents; None for a law with fewer than two.
        split: how the best x1 grows with C = x1 x2, the power b2 / (b1 + b2) of C (Hoffmann et al.
            2022, equation 4), with its range over all curves that the data accept at 95 %; None for
            a law of other than two power laws.
        warnings: what follows from the numbers, a sentence each.
    """

    condition: float
    worst_direction: dict[str, float]
    correlation: Floats
    tied: Tied | None
    split: Prediction | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Describe the numbers in JSON-able values; None where one is not finite."""
        return {
            "condition": _known(self.condition),
            "worst_direction": self.worst_direction,
            "correlation": [[_known(value) for value in row] for row in self.correlation.tolist()],
            "tied": self.tied and {name: _known(value) for name, value in vars(self.tied).items()},
            "split": self.split
            and {name: _known(value) for name, value in self.split._asdict().items()},
            "warnings": list(self.warnings),
        }


def identifiability(fit: Fit) -> Identifiability:
    """Measure how well the runs identify the fit's parameters."""
    condition, direction = _condition(fit)
    tied = _tie_exponents(fit) if len(set(fit.law.exponents)) > 1 else None
    names = fit.law.parameters
    worst = dict(zip(names, map(float, direction), strict=True))
    warnings = []
    if condition > LARGEST_CONDITION:
        heavy = " and ".join(sorted(names, key=lambda name: -abs(worst[name]))[:2]).replace(
            "_", " "
        )
        warnings.append(
            f"{fit.law.words}: the scaled Jacobian has condition {condition:.1e}; the runs hardly "
            f"tell {heavy} apart."
        )
    if tied and tied.p_value > SAME:
        warnings.append(
            f"{fit.law.words}: equal exponents of {tied.exponent:.3g} fit as well (p = "
            f"{tied.p_value:.2f}); "
            "the runs do not show that they differ, and the best split moves with them."
        )
    correlation = _correlation(fit.likelihood.spread)
    return Identifiability(condition, worst, correlation, tied, _best_split(fit), tuple(warnings))


def _best_split(fit: Fit) -> Prediction | None:
    """Give how the best first predictor grows with the product of both, with its range; None where
    nothing is split.
    """
    if len(fit.law.terms) != 2 or len(set(fit.law.exponents)) != 2 or len(fit.x) != 2:
        return None
    first, second = (fit.law.parameters.index(exponent) for exponent in fit.law.exponents)

    def power(theta: Any) -> Any:
        with np.errstate(all="ignore"):  # two exponents of 0 split nothing
            return theta[..., second] / (theta[..., first] + theta[..., second])

    value = float(power(fit.theta))
    if not np.isfinite(value):
        return None
    low, high = np.clip(fit.likelihood.interval(power, 0.95), 0.0, 1.0)
    return Prediction(value, min(float(low), value), max(float(high), value))


def _tie_exponents(fit: Fit) -> Tied:
    """Refit with all exponents equal, and test that against the fit by the cost on which its
    intervals rest.
    """
    names = fit.law.parameters
    places = [names.index(exponent) for exponent in dict.fromkeys(fit.law.exponents)]
    rest = [place for place in range(len(names)) if place not in places[1:]]
    spread = np.eye(len(names))[:, rest]  # maps tied coordinates (q,) to all (p,)
    spread[places[1:], rest.index(places[0])] = 1.0
    runs, rises = len(fit.problem.log_y), len(places) - 1
    theta, objective = _minimise_tied(fit, spread, rest, np.full(runs, fit.delta))
    likelihood = fit.likelihood
    _, cost = _minimise_tied(fit, spread, rest, likelihood.delta)
    ratio = max(2 * (cost - likelihood.cost) / rises / likelihood.dispersion, 0.0)
    relative = objective / fit.objective if fit.objective > 0 else np.inf
    exponent = float(theta[rest.index(places[0])])
    return Tied(exponent, objective, relative, float(fdtrc(rises, likelihood.freedom, ratio)))


def _minimise_tied(
    fit: Fit, spread: Floats, rest: list[int], delta: Floats
) -> tuple[Floats, float]:
    """Minimise the cost over tied coordinates, from the fit and screened starts; give the best (q,)
    and its cost.
    """
    rows = fit.problem.rows()

    def tied_rows(theta: Floats) -> tuple[Floats, Floats]:
        residual, slope = rows(theta @ spread.T)
        return residual, slope @ spread

    bounds = (fit.problem.bounds[0][rest], fit.problem.bounds[1][rest])
    starts = np.concatenate([fit.theta[None], screen(fit.problem, float(delta.max()))])[:, rest]
    smooth, _ = minimise(tied_rows, starts, np.full_like(delta, np.inf), bounds)
    points, costs = minimise(tied_rows, np.concatenate([smooth, starts]), delta, bounds, 400)
    best = int(np.argmin(costs))
    return points[best], float(huber(tied_rows(points[[best]])[0], delta)[0])


def _condition(fit: Fit) -> tuple[float, Floats]:
    """Give the condition of the scaled Jacobian and the direction of its smallest singular value,
    (p,).
    """
    slope = fit.problem.rows()(fit.theta[None])[1][0]
    length = np.linalg.norm(slope, axis=0)
    _, values, directions = np.linalg.svd(
        slope / np.where(length > 0, length, 1.0), full_matrices=False
    )
    with np.errstate(divide="ignore"):
        return float(np.divide(values[0], values[-1])), np.asarray(directions[-1])


def _correlation(covariance: Floats) -> Floats:
    sd = np.sqrt(np.diag(covariance))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(covariance / np.outer(sd, sd))


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
