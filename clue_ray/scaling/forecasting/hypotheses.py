"""The laws that a forecast averages over, weighted by how well each predicted the runs in turn.

A hypothesis is L = E + exp(z(x)) with x = log10 of the predictor. The slope of z is a constant plus
a deviation that drifts: laws of real runs bend. A hypothesis fixes three numbers: the floor E, the
drift of the slope, and the noise of a run. Given them, z at the next run is normal with a mean and
a variance that a Kalman filter computes in closed form. No search is needed.

A hypothesis is weighted by its prior times the likelihood of the runs. The likelihood is the
product of the densities that it gave to each run before it saw that run, so the weights are the log
score of a backtest of one step (Dawid 1984). A plain power law has neither floor nor drift.

The priors were chosen on public runs and on planted laws; docs/reference/statistics.md says how.
"""

from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from clue_ray.scaling.laws.law import Floats

GAPS = np.geomspace(0.97, 0.01, 48)
"""Floors that are tried: 1 - E over the lowest loss. The steps are fine where z depends on E."""
NO_FLOOR = 0.4
"""Prior of E = 0."""
GAP_POWER = 1.5
"""Prior of a floor: gap to this power, so that floors right below the best run are unlikely."""
DRIFTS = np.array([0.0, 0.2, 0.5, 1.0, 2.0])
"""Standard deviations of the slope's deviation, as shares of the mean slope of the runs."""
DRIFT_PRIOR = np.array([0.65, 0.13, 0.10, 0.07, 0.05])
RETURN = 1.0
"""Decades over which a deviation of the slope decays by a factor e."""
NOISES = np.geomspace(5e-4, 0.3, 12)
"""Standard deviations of ln L of a run; equally likely."""
NEGLIGIBLE = 1e-5
"""Share of the largest weight below which a hypothesis is left out of predictions."""
BISECTIONS = 34
LARGEST_LOG = 60.0
NAMES = (
    "power law",
    "power law with a drifting slope",
    "power law with a floor",
    "power law with a floor and a drifting slope",
)


class State(NamedTuple):
    """Mean and covariance of z, its constant slope and the slope's deviation; one per hypothesis.

    Attributes:
        z, slope, bend: the means.
        zz, ss, bb, zs, zb, sb: the variances and covariances.
    """

    z: Floats
    slope: Floats
    bend: Floats
    zz: Floats
    ss: Floats
    bb: Floats
    zs: Floats
    zb: Floats
    sb: Floats

    def move(self, d: Floats, drift: Floats) -> "State":
        """Predict the state d decades further; the deviation is an Ornstein-Uhlenbeck process."""
        z, slope, bend, zz, ss, bb, zs, zb, sb = self
        kept = np.exp(-d / RETURN)
        lost = 1 - kept
        g = RETURN * lost  # integral of the deviation's decay over d
        grown = drift * RETURN**2 * (2 * d / RETURN - 2 * lost - lost**2)
        return State(
            z + d * slope + g * bend,
            slope,
            kept * bend,
            zz + d**2 * ss + g**2 * bb + 2 * (d * zs + g * zb + d * g * sb) + grown,
            ss,
            kept**2 * bb + drift * (1 - kept**2),
            zs + d * ss + g * sb,
            kept * (zb + d * sb + g * bb) + drift * RETURN * lost**2,
            kept * sb,
        )

    def see(self, error: Floats, variance: Floats) -> "State":
        """Update by a run's z, `error` above the mean, with the given variance of that error."""
        z, slope, bend, zz, ss, bb, zs, zb, sb = self
        a, b, c = zz / variance, zs / variance, zb / variance
        return State(
            z + a * error,
            slope + b * error,
            bend + c * error,
            zz - a * zz,
            ss - b * zs,
            bb - c * zb,
            zs - a * zs,
            zb - a * zb,
            sb - b * zb,
        )


@dataclass(frozen=True)
class Posterior:
    """What is known after the runs: a state per hypothesis, with weights; arrays are (k,).

    Attributes:
        end: x of the last run.
        state: at the end.
        floor: E.
        drift: variance of the slope's deviation.
        noise: standard deviation of ln L of a run.
        weight: sum 1.
        laws: weight of each of `NAMES`.
    """

    end: float
    state: State
    floor: Floats
    drift: Floats
    noise: Floats
    weight: Floats
    laws: dict[str, float]

    @classmethod
    def build(cls, x: Floats, y: Floats) -> "Posterior":
        """Filter runs in order of x, with losses ln L = y that fall; both (n,)."""
        gap, relative, noise, prior = _grid()
        loss = np.exp(y)[:, None]
        floor = (1 - gap) * loss.min()
        z, shrink = np.log(loss - floor), (loss - floor) / loss
        slope = (z[-1] - z[0]) / (x[-1] - x[0])
        drift = (relative * slope) ** 2
        variance = (noise / shrink) ** 2  # of z, (n, k)
        state, log_weight = _start(z[0], slope, drift, variance[0]), np.log(prior / shrink[0])
        for i in range(1, len(x)):
            state = state.move(x[i] - x[i - 1], drift)
            error, total = z[i] - state.z, state.zz + variance[i]
            # The density is of ln L; the last term is the Jacobian of z.
            log_weight -= 0.5 * (error**2 / total + np.log(total)) + np.log(shrink[i])
            state = state.see(error, total)
        weight = np.exp(log_weight - log_weight.max())
        laws = _laws(weight / weight.sum(), gap < 1, relative > 0)
        kept = weight > NEGLIGIBLE
        weight = weight[kept] / weight[kept].sum()
        state = State(*(each[kept] for each in state))
        return cls(float(x[-1]), state, floor[kept], drift[kept], noise[kept], weight, laws)

    def predict(self, x: Floats) -> "Mixture":
        """Predict ln L of new runs at x (m,), none of them below the end."""
        there = self.state.move(np.asarray(x, dtype=float)[:, None] - self.end, self.drift)
        # A loss that fell along the runs is not expected to rise.
        z = np.minimum(there.z, self.state.z)
        above = np.exp(np.clip(z, -LARGEST_LOG, LARGEST_LOG))
        shrink = above / (above + self.floor)
        spread = np.sqrt(there.zz + (self.noise / shrink) ** 2)
        return Mixture(z, spread, self.floor, self.weight)


class Mixture(NamedTuple):
    """A distribution of ln L at m places: ln(E + exp(normal z)) in a share `weight` of cases.

    Attributes:
        z, spread: mean and standard deviation of z, (m, k).
        floor, weight: (k,).
    """

    z: Floats
    spread: Floats
    floor: Floats
    weight: Floats

    def below(self, y: Floats) -> Floats:
        """Return the probability that ln L is below y, both (..., m)."""
        above = np.exp(y)[..., None] - self.floor
        z = np.log(np.maximum(above, np.finfo(float).tiny))
        share = np.where(above > 0, ndtr((z - self.z) / self.spread), 0.0)
        return np.asarray((share * self.weight).sum(axis=-1))

    def quantiles(self, levels: Floats) -> Floats:
        """Return the y that ln L is below with probability `levels` (l,), by bisection: (l, m)."""
        normal = ndtri(levels)[:, None, None]
        z = np.clip(self.z + normal * self.spread, -LARGEST_LOG, LARGEST_LOG)
        each = np.log(self.floor + np.exp(z))
        low, high = each.min(axis=-1), each.max(axis=-1)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            reached = self.below(middle) >= levels[:, None]
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
        return (low + high) / 2


def _grid() -> tuple[Floats, Floats, Floats, Floats]:
    """Return gap, relative drift, noise and prior of every hypothesis, each (k,)."""
    floor_prior = GAPS**GAP_POWER
    floor_prior *= (1 - NO_FLOOR) / floor_prior.sum()
    priors = (
        np.concatenate([[NO_FLOOR], floor_prior]),
        DRIFT_PRIOR,
        np.full(len(NOISES), 1 / len(NOISES)),
    )
    axes = np.meshgrid(np.concatenate([[1.0], GAPS]), DRIFTS, NOISES, indexing="ij")
    gap, drift, noise = (axis.ravel() for axis in axes)
    return gap, drift, noise, np.asarray(reduce(np.multiply.outer, priors)).ravel()


def _start(z: Floats, slope: Floats, drift: Floats, variance: Floats) -> State:
    """Return the state at the first run; the slope may be off by as much as its own size."""
    none = np.zeros_like(z)
    return State(z, slope, none, variance, slope**2, drift, none, none, none)


def _laws(weight: Floats, has_floor: np.ndarray, drifts: np.ndarray) -> dict[str, float]:
    """Sum the weights by kind of law."""
    totals = np.bincount(2 * has_floor + drifts, weights=weight, minlength=len(NAMES))
    return dict(zip(NAMES, totals.tolist(), strict=True))
