"""How well the runs identify the parameters of a fit.

Before a parameter is quoted, look at the combination of parameters that the runs determine least
(condition and worst direction), at whether the exponents differ at all (tied exponents), and at the
range of the best split of compute.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import fdtrc

from clue_ray.scaling.fitting.problem import huber, minimise
from clue_ray.scaling.fitting.result import Fit, Prediction
from clue_ray.scaling.fitting.search import screen
from clue_ray.scaling.laws.law import Floats

MAX_CONDITION = 1e6
"""Condition of the scaled Jacobian from which parameters cannot be distinguished in practice."""
EQUAL_P_VALUE = 0.05
"""p value above which tied exponents are as good as free ones."""


@dataclass(frozen=True, kw_only=True)
class Tied:
    """The fit with all exponents equal.

    Attributes:
        exponent: their common value.
        objective: the minimised cost, to be compared with that of the fit.
        ratio: `objective` over that of the fit; inf where the fit is exact.
        p_value: of F(exponents - 1, freedom) for the rise in the cost of the intervals.
        converged: whether the minimiser converged for both costs.
    """

    exponent: float
    objective: float
    ratio: float
    p_value: float
    converged: bool

    def to_dict(self) -> dict[str, float | None]:
        """Return the numbers as JSON values; None where one is not finite."""
        return {
            "exponent": _finite(self.exponent),
            "objective": _finite(self.objective),
            "ratio": _finite(self.ratio),
            "p_value": _finite(self.p_value),
        }


@dataclass(frozen=True, kw_only=True)
class Identifiability:
    """How well the runs identify a fit.

    Attributes:
        condition: largest over smallest singular value of the Jacobian of log loss, with columns of
            unit length (Belsley, Kuh and Welsch 1980); inf where a parameter has no effect.
        worst_direction: the unit vector of scaled parameters that the runs determine least, by
            name.
        correlation: of the fitted coordinates to first order, (p, p), in the law's order.
        tied: the fit with equal exponents; None for a law with fewer than two.
        split: how the best x1 grows with C = x1 x2: the power b2 / (b1 + b2) of C (Hoffmann et al.
            2022, equation 4), with its range over all curves that the data accept at 95 %. None for
            a law that is not the sum of two power laws.
        warnings: what follows from the numbers, one sentence each.
    """

    condition: float
    worst_direction: dict[str, float]
    correlation: Floats
    tied: Tied | None
    split: Prediction | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values; None where one is not finite."""
        split = self.split and {n: _finite(value) for n, value in self.split._asdict().items()}
        return {
            "condition": _finite(self.condition),
            "worst_direction": self.worst_direction,
            "correlation": [[_finite(value) for value in row] for row in self.correlation.tolist()],
            "tied": self.tied and self.tied.to_dict(),
            "split": split,
            "warnings": list(self.warnings),
        }


def identifiability(fit: Fit) -> Identifiability:
    """Measure how well the runs identify the parameters of a fit.

    Example:
        >>> from itertools import product
        >>> from clue_ray import fit_law, identifiability
        >>> n, d = zip(*product([1e5, 1e6, 1e7], [1e8, 1e9, 1e10]))
        >>> loss = [1.7 + 400 * a**-0.34 + 410 * b**-0.28 for a, b in zip(n, d)]
        >>> fit = fit_law("parametric_loss", {"n": n, "d": d, "loss": loss}, x=["n", "d"], y="loss")
        >>> round(identifiability(fit).condition)
        33
    """
    condition, direction = _condition(fit)
    worst = dict(zip(fit.law.parameters, map(float, direction), strict=True))
    tied = _tie_exponents(fit) if len(set(fit.law.exponents)) > 1 else None
    return Identifiability(
        condition=condition,
        worst_direction=worst,
        correlation=_correlation(fit.likelihood.spread),
        tied=tied,
        split=_best_split(fit),
        warnings=_warnings(fit, condition, worst, tied),
    )


def _warnings(
    fit: Fit, condition: float, worst: dict[str, float], tied: Tied | None
) -> tuple[str, ...]:
    warnings = []
    if condition > MAX_CONDITION:
        heavy = sorted(worst, key=lambda name: -abs(worst[name]))[:2]
        warnings.append(
            f"{fit.law.words}: the scaled Jacobian has condition {condition:.1e}; the runs hardly "
            f"tell {' and '.join(heavy).replace('_', ' ')} apart."
        )
    if tied and tied.p_value > EQUAL_P_VALUE:
        warnings.append(
            f"{fit.law.words}: equal exponents of {tied.exponent:.3g} fit as well (p = "
            f"{tied.p_value:.2f}); the runs do not show that they differ, and the best split "
            f"depends on them."
        )
    return tuple(warnings)


def _condition(fit: Fit) -> tuple[float, Floats]:
    """Return the condition of the scaled Jacobian and its worst direction, (p,).

    The worst direction is the right singular vector of the smallest singular value: a step along it
    changes the fitted losses least.
    """
    slope = fit.problem.rows()(fit.theta[None])[1][0]
    length = np.linalg.norm(slope, axis=0)
    scaled = slope / np.where(length > 0, length, 1.0)
    _, values, directions = np.linalg.svd(scaled, full_matrices=False)
    with np.errstate(divide="ignore"):
        return float(np.divide(values[0], values[-1])), np.asarray(directions[-1])


def _correlation(covariance: Floats) -> Floats:
    """Return the correlations of a covariance matrix (p, p); nan where a variance is 0."""
    sd = np.sqrt(np.diag(covariance))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(covariance / np.outer(sd, sd))


def _best_split(fit: Fit) -> Prediction | None:
    """Return the power with which the best first predictor grows with the product of both.

    At the minimum of a1 x1^-b1 + a2 x2^-b2 with x1 x2 = C, both terms fall at the same rate, so
    x1 grows as C^(b2 / (b1 + b2)).
    """
    if len(fit.law.terms) != 2 or len(set(fit.law.exponents)) != 2 or len(fit.x) != 2:
        return None
    first, second = (fit.law.parameters.index(exponent) for exponent in fit.law.exponents)

    def power(theta: Any) -> Any:
        with np.errstate(all="ignore"):  # two exponents of 0 have no split
            return theta[..., second] / (theta[..., first] + theta[..., second])

    value = float(power(fit.theta))
    if not np.isfinite(value):
        return None
    low, high = np.clip(fit.likelihood.interval(power, 0.95), 0.0, 1.0)
    return Prediction(value, min(float(low), value), max(float(high), value))


def _tie_exponents(fit: Fit) -> Tied:
    """Fit again with all exponents equal, and test that with the cost of the intervals.

    The test is F = (rise in 2 x cost / tied exponents) / dispersion, as for nested least squares,
    with the Huber cost of the intervals (Schrader and Hettmansperger 1980).
    """
    names = fit.law.parameters
    exponents = [names.index(exponent) for exponent in dict.fromkeys(fit.law.exponents)]
    free = [index for index in range(len(names)) if index not in exponents[1:]]
    spread = np.eye(len(names))[:, free]  # maps tied coordinates (q,) to all (p,)
    spread[exponents[1:], free.index(exponents[0])] = 1.0
    runs, rises = len(fit.problem.log_y), len(exponents) - 1
    theta, objective, converged = _minimise_tied(fit, spread, free, np.full(runs, fit.delta))
    likelihood = fit.likelihood
    _, cost, also = _minimise_tied(fit, spread, free, likelihood.huber_delta)
    ratio = max(2 * (cost - likelihood.cost) / rises / likelihood.dispersion, 0.0)
    return Tied(
        exponent=float(theta[free.index(exponents[0])]),
        objective=objective,
        ratio=objective / fit.objective if fit.objective > 0 else np.inf,
        p_value=float(fdtrc(rises, likelihood.freedom, ratio)),
        converged=converged and also,
    )


def _minimise_tied(
    fit: Fit, spread: Floats, free: list[int], delta: Floats
) -> tuple[Floats, float, bool]:
    """Minimise the cost over tied coordinates: the best (q,), its cost and its convergence.

    It starts from the fit, from screened starts and, as in `find_optimum`, from their least
    squares, where a small delta leaves several minima.
    """
    rows = fit.problem.rows()

    def tied_rows(theta: Floats) -> tuple[Floats, Floats]:
        residual, slope = rows(theta @ spread.T)
        return residual, slope @ spread

    bounds = (fit.problem.bounds[0][free], fit.problem.bounds[1][free])
    starts = np.concatenate([fit.theta[None], screen(fit.problem, float(delta.max()))])[:, free]
    squares = minimise(tied_rows, starts, np.full_like(delta, np.inf), bounds)
    best, _, converged = minimise(
        tied_rows, np.concatenate([squares.theta, starts]), delta, bounds, 400
    ).best()
    return best, float(huber(tied_rows(best[None])[0], delta)[0]), converged


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
