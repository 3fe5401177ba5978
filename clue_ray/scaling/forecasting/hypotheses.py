"""The laws that a forecast averages over, weighted by how well each predicted the runs in turn.

With x = log10 of the predictor, a hypothesis is that z(x) = ln(L - E) - ln(1 - L / C) falls along a
line, apart from a deviation of its slope that drifts: laws of real runs bend. E is a floor and C a
ceiling, the loss of a model that learns nothing. A hypothesis fixes E, C, the drift of the slope,
and the noise of a run. Given them, z at the next run is normal with a mean and a variance that a
Kalman filter computes in closed form. No search is needed.

A hypothesis is weighted by its prior times the likelihood of the runs. The likelihood is the
product of the densities that it gave to each run before it saw that run, so the weights are the log
score of a backtest of one step (Dawid 1984). A plain power law has E = 0, C infinite and no drift.

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
CEILINGS = np.array([1.1, 1.01])
"""Ceilings that are tried, over the largest loss, where the loss at chance is not known."""
CEILING = 0.03
"""Prior of a ceiling: it matters only where the runs begin on a plateau."""
GAPS_BELOW_CEILING = GAPS[::4]
"""Floors that are tried together with a ceiling."""
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
    "S-shaped law with a ceiling",
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
        floor, ceiling: E and C, which may be infinite.
        drift: variance of the slope's deviation.
        noise: standard deviation of ln L of a run.
        weight: sum 1.
        laws: weight of each of `NAMES`.
    """

    end: float
    state: State
    floor: Floats
    ceiling: Floats
    drift: Floats
    noise: Floats
    weight: Floats
    laws: dict[str, float]

    @classmethod
    def build(cls, x: Floats, y: Floats, chance: float | None = None) -> "Posterior":
        """Filter runs in order of x, with losses ln L = y that fall; both (n,).

        Args:
            chance: L of a model that learns nothing, where it is known.
        """
        loss = np.exp(y)[:, None]
        gap, above, relative, noise, prior = _grid(_ceilings(loss.max(), chance))
        floor, ceiling = (1 - gap) * loss.min(), above * loss.max()
        z, shrink = _straighten(loss, floor, ceiling)  # (n, k)
        slope = (z[-1] - z[0]) / (x[-1] - x[0])
        drift = (relative * slope) ** 2
        variance = (noise / shrink) ** 2  # of z
        state, log_weight = _start(z[0], slope, drift, variance[0]), np.log(prior / shrink[0])
        for i in range(1, len(x)):
            state = state.move(x[i] - x[i - 1], drift)
            error, total = z[i] - state.z, state.zz + variance[i]
            # The density is of ln L; the last term is the Jacobian of z.
            log_weight -= 0.5 * (error**2 / total + np.log(total)) + np.log(shrink[i])
            state = state.see(error, total)
        weight = np.exp(log_weight - log_weight.max())
        laws = _laws(weight / weight.sum(), gap < 1, relative > 0, np.isfinite(above))
        kept = weight > NEGLIGIBLE
        weight = weight[kept] / weight[kept].sum()
        state = State(*(each[kept] for each in state))
        floor, ceiling, drift, noise = (each[kept] for each in (floor, ceiling, drift, noise))
        return cls(float(x[-1]), state, floor, ceiling, drift, noise, weight, laws)

    def predict(self, x: Floats) -> "Mixture":
        """Predict ln L of new runs at x (m,), none of them below the end."""
        there = self.state.move(np.asarray(x, dtype=float)[:, None] - self.end, self.drift)
        # A loss that fell along the runs is not expected to rise.
        z = np.minimum(there.z, self.state.z)
        size = np.exp(np.clip(z, -LARGEST_LOG, LARGEST_LOG))
        damped = 1 + size / self.ceiling
        # d ln L / dz, written so that it stays positive next to the ceiling.
        shrink = size * (1 - self.floor / self.ceiling) / (self.floor + size) / damped
        spread = np.sqrt(there.zz + (self.noise / shrink) ** 2)
        return Mixture(z, spread, self.floor, self.ceiling, self.weight)


class Mixture(NamedTuple):
    """A distribution of ln L at m places, in a share `weight` of cases with normal z.

    Attributes:
        z, spread: mean and standard deviation of z, (m, k).
        floor, ceiling, weight: (k,).
    """

    z: Floats
    spread: Floats
    floor: Floats
    ceiling: Floats
    weight: Floats

    def below(self, y: Floats) -> Floats:
        """Return the probability that ln L is below y, both (..., m)."""
        loss = np.exp(y)[..., None]
        with np.errstate(divide="ignore", invalid="ignore"):  # outside floor and ceiling
            z = np.log(loss - self.floor) - np.log1p(-loss / self.ceiling)
            share = ndtr((z - self.z) / self.spread)
        share = np.where(loss <= self.floor, 0.0, np.where(loss >= self.ceiling, 1.0, share))
        return np.asarray((share * self.weight).sum(axis=-1))

    def quantiles(self, levels: Floats) -> Floats:
        """Return the y that ln L is below with probability `levels` (l,), by bisection: (l, m)."""
        normal = ndtri(levels)[:, None, None]
        size = np.exp(np.clip(self.z + normal * self.spread, -LARGEST_LOG, LARGEST_LOG))
        each = np.log((self.floor + size) / (1 + size / self.ceiling))
        low, high = each.min(axis=-1), each.max(axis=-1)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            reached = self.below(middle) >= levels[:, None]
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
        return (low + high) / 2


def _straighten(loss: Floats, floor: Floats, ceiling: Floats) -> tuple[Floats, Floats]:
    """Return z of each loss, and the derivative of ln L by z; both (n, k)."""
    z = np.log(loss - floor) - np.log1p(-loss / ceiling)
    shrink = (loss - floor) * (1 - loss / ceiling) / (loss * (1 - floor / ceiling))
    return z, shrink


def _ceilings(largest: float, chance: float | None) -> Floats:
    """Return the finite ceilings over the largest loss: the known one, or those to try."""
    if chance is None:
        return CEILINGS
    return np.array([chance / largest]) if chance > largest else np.array([])


def _grid(ceilings: Floats) -> tuple[Floats, ...]:
    """Return gap, relative ceiling and drift, noise and prior of every hypothesis, each (k,)."""
    share = CEILING if len(ceilings) else 0.0
    blocks = [_block(GAPS, np.array([np.inf]), 1 - share)]
    if len(ceilings):
        blocks.append(_block(GAPS_BELOW_CEILING, ceilings, share))
    return tuple(np.concatenate(parts) for parts in zip(*blocks, strict=True))


def _block(gaps: Floats, ceilings: Floats, share: float) -> tuple[Floats, ...]:
    """Combine floors, ceilings, drifts and noises; the prior sums to `share`."""
    floor_prior = gaps**GAP_POWER
    floor_prior *= (1 - NO_FLOOR) / floor_prior.sum()
    priors = (
        np.append(NO_FLOOR, floor_prior),
        np.full(len(ceilings), share / len(ceilings)),
        DRIFT_PRIOR,
        np.full(len(NOISES), 1 / len(NOISES)),
    )
    axes = np.meshgrid(np.append(1.0, gaps), ceilings, DRIFTS, NOISES, indexing="ij")
    return *(axis.ravel() for axis in axes), reduce(np.multiply.outer, priors).ravel()


def _start(z: Floats, slope: Floats, drift: Floats, variance: Floats) -> State:
    """Return the state at the first run; the slope may be off by as much as its own size."""
    none = np.zeros_like(z)
    return State(z, slope, none, variance, slope**2, drift, none, none, none)


def _laws(
    weight: Floats, has_floor: np.ndarray, drifts: np.ndarray, has_ceiling: np.ndarray
) -> dict[str, float]:
    """Sum the weights by kind of law."""
    kind = np.where(has_ceiling, len(NAMES) - 1, 2 * has_floor + drifts)
    totals = np.bincount(kind, weights=weight, minlength=len(NAMES))
    return dict(zip(NAMES, totals.tolist(), strict=True))
