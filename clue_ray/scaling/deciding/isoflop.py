"""The best size at each level of compute by parabolas (isoFLOP analysis).

This is approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556): near its minimum, the loss at equal
compute is a parabola in the log of the size, and a line through the minima is the power law of the
best size. The estimate depends on sizes spread evenly around the optimum (Czech et al. 2026, arXiv
2603.22339), so it is to be compared with `parametric`, the exponent implied by a law of size and
data over the same runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

from clue_ray.errors import FitError
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.result import Prediction
from clue_ray.scaling.fitting.table import Sample, Table, check_once, finished, select
from clue_ray.scaling.laws.law import Floats

SAME_LEVEL = 1.1
"""Consecutive runs whose compute differs by less than this factor belong to one level."""
FEWEST_SIZES = 4  # a parabola takes three; the fourth tests it
ENOUGH_SIZES = 5
FEWEST_LEVELS = 2


class Line(NamedTuple):
    """The power law optimum = coefficient * compute ** exponent.

    Attributes:
        coefficient: the optimum at a compute of 1 FLOP.
        exponent: the exponent of the compute.
        error: the standard error of the exponent; nan for two points.
    """

    coefficient: float
    exponent: float
    error: float

    def interval(self, points: int) -> tuple[float, float]:
        """Return the 95 % interval of the exponent; infinite for a line through two points.

        It uses Student's t with (points - 2) degrees of freedom and assumes independent normal
        residuals of equal variance.
        """
        freedom = points - 2
        reach = float(stdtrit(freedom, 0.975)) * self.error if freedom else np.inf
        return self.exponent - reach, self.exponent + reach


@dataclass(frozen=True)
class IsoFlop:
    """The best sizes found by parabolas, and the line through them.

    Attributes:
        levels: one row per level of compute: compute, optimum (size of the lowest loss; nan without
            one), loss (at the optimum), num_runs, low and high (range of sizes), curvature (nats
            per squared decade), used (whether the line uses it).
        line: the line through the optima used; `interval` is that of its exponent.
        warnings: a sentence for each level that is left out or has few runs, and for a line through
            two levels.
        sample: the runs, with predictors compute and size.
    """

    levels: pd.DataFrame
    line: Line
    warnings: tuple[str, ...]
    sample: Sample = field(repr=False, compare=False)

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the exponent of the line; infinite for two levels.

        An error common to all parabolas is not included.
        """
        return self.line.interval(int(self.levels["used"].sum()))

    @cached_property
    def parametric(self) -> Prediction:
        """The exponent by approach 3, beta / (alpha + beta) of `parametric_loss` over all runs.

        The data are compute / size, so that the best size grows as C^(beta / (alpha + beta)) for
        any cost of a token (Hoffmann et al. 2022, equation 4). The interval is a profile interval.

        Raises:
            FitError: the law cannot be fitted to the runs, or they bound neither exponent.
        """
        compute, size = self.sample.x
        table = {"size": size, "data": compute / size, "loss": self.sample.y}
        fit = fit_law("parametric_loss", table, x=["size", "data"], y="loss")

        def share(theta: Any) -> Any:
            alpha, beta = (fit.problem.natural(theta, name) for name in ("alpha", "beta"))
            with np.errstate(invalid="ignore"):  # both exponents 0: no best size
                return beta / (alpha + beta)

        value = float(share(fit.theta))
        low, high = np.clip(fit.likelihood.interval(share, 0.95), 0, 1)
        if not (np.isfinite(value) and (low > 0 or high < 1)):
            raise FitError(
                "The runs bound neither exponent of parametric_loss; add sizes or levels of "
                "compute."
            )
        return Prediction(value, float(min(low, value)), float(max(high, value)))


def fit_isoflop(
    table: Table, *, size: str, compute: str = "train_flops", y: str = "loss"
) -> IsoFlop:
    """Fit a parabola of y in log10 size to each level of compute, and a line through the minima.

    A minimum outside the range of sizes is kept in `levels` with a warning, but the line does not
    use it.

    Raises:
        FitError: fewer than two levels have a minimum within the range of sizes.
        RunsError: as in `fit_law`.
    """
    check_once(finished(table))
    sample = select(table, (compute, size), y)
    number = _levels(sample.x[0])
    members = [number == level for level in range(number.max() + 1)]
    rows = [_parabola(sample.x[0][own], sample.x[1][own], sample.y[own]) for own in members]
    levels = pd.DataFrame(rows)
    warnings = [*_warn_of_few(rows), *(s for row in rows for s in _warn_of_level(row, size))]
    used = levels[levels["used"]]
    if len(used) < FEWEST_LEVELS:
        raise FitError(
            f"{len(used)} of {len(levels)} levels of {compute} have a minimum between the smallest "
            f"and the largest {size}, but a line needs {FEWEST_LEVELS}; add runs with other {size} "
            "at these levels, or at other levels."
        )
    if len(used) == FEWEST_LEVELS:
        warnings.append("Only two levels have a minimum, so the error of the line is unknown.")
    line = fit_line(used["compute"].to_numpy(), used["optimum"].to_numpy())
    return IsoFlop(levels, line, tuple(warnings), sample)


def fit_line(compute: Any, optimum: Any, std: Any = None) -> Line:
    """Fit optimum = a C^b by weighted least squares of logs (Porian et al. 2024, arXiv 2406.19146).

    The weights are 1 / std^2 where std (n,), the standard deviation of the natural logs, is given.
    The standard error assumes that the line holds and scales std to the observed residuals.

    Raises:
        FitError: fewer than two points at different compute, or a value that is not positive.
    """
    x, y = np.log(np.asarray(compute, dtype=float)), np.log(np.asarray(optimum, dtype=float))
    weight = 1 / (np.ones_like(x) if std is None else np.asarray(std, dtype=float))
    if len(x) < 2 or not np.isfinite([x, y, weight]).all() or len(np.unique(x)) < 2:
        raise FitError(
            f"A line through {len(x)} optima needs two or more at different compute, all positive "
            "and finite, and positive std; correct the input."
        )
    design = np.stack([np.ones_like(x), x - x.mean()], 1) * weight[:, None]
    (height, exponent), *_ = np.linalg.lstsq(design, y * weight, rcond=None)
    residual = y * weight - design @ [height, exponent]
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (
            np.divide(residual @ residual, len(x) - 2) * np.linalg.inv(design.T @ design)[1, 1]
        )
    error = float(np.sqrt(variance)) if len(x) > 2 else float("nan")
    return Line(float(np.exp(height - exponent * x.mean())), float(exponent), error)


def _levels(compute: Floats) -> npt.NDArray[np.int64]:
    """Number the levels of compute (n,) from 0, smallest first."""
    order = np.argsort(compute, kind="stable")
    steps = compute[order][1:] > compute[order][:-1] * SAME_LEVEL
    number = np.empty(len(compute), dtype=np.int64)
    number[order] = np.concatenate([[0], np.cumsum(steps)])
    return number


def _parabola(compute: Floats, size: Floats, loss: Floats) -> dict[str, Any]:
    """Fit loss = c + k (log10 size - m)^2 to one level."""
    x = np.log10(size)
    row = {
        "compute": float(np.exp(np.log(compute).mean())),
        "optimum": np.nan,
        "loss": np.nan,
        "num_runs": len(size),
        "low": float(size.min()),
        "high": float(size.max()),
        "curvature": np.nan,
        "used": False,
    }
    if len(np.unique(x)) < FEWEST_SIZES:
        return row
    middle = x.mean()
    curvature, slope, height = np.polyfit(x - middle, loss, 2)
    row["curvature"] = float(curvature)
    if curvature > 0:
        lowest = -slope / (2 * curvature)
        with np.errstate(over="ignore"):
            row["optimum"] = float(10.0 ** (middle + lowest))
        row["loss"] = float(height - curvature * lowest**2)
        row["used"] = row["low"] < row["optimum"] < row["high"]
    return row


def _warn_of_few(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Warn in one sentence of the levels without enough sizes: a table may have dozens."""
    few = [row["compute"] for row in rows if np.isnan(row["curvature"])]
    if len(few) == 1:
        yield f"At {few[0]:.3g} FLOP there are fewer than {FEWEST_SIZES} sizes; it is left out."
    elif few:
        total = f"{len(few)} of {len(rows)} levels"
        yield f"{total} have fewer than {FEWEST_SIZES} sizes and are left out."


def _warn_of_level(row: dict[str, Any], size: str) -> Iterator[str]:
    """Warn why a level with enough sizes is left out, or that it has few runs."""
    level = f"At {row['compute']:.3g} FLOP"
    if np.isnan(row["curvature"]):
        return
    if not row["curvature"] > 0:
        yield f"{level} the loss has no minimum in {size}; the level is left out."
    elif not row["used"]:
        edge = "smallest" if row["optimum"] <= row["low"] else "largest"
        yield (
            f"{level} the minimum lies at or beyond the {edge} {size} of the runs "
            f"({row['low']:.3g} to {row['high']:.3g}); the level is left out."
        )
    elif row["num_runs"] < ENOUGH_SIZES:
        yield (
            f"{level} the minimum rests on {row['num_runs']} "
            f"run{'s' * (row['num_runs'] != 1)}; a reliable one needs "
            f"{ENOUGH_SIZES}."
        )
