"""Measure the coverage of nominal 95 % intervals on studies drawn from known laws.

    python -m benchmarks.coverage            # 400 studies per row, about ten minutes on 2 cores
    python -m benchmarks.coverage --draws 100
    python -m benchmarks.coverage --forecast # next to the intervals of `forecast`, no other table

Each row draws studies from one law with normal noise and fits each with the package's defaults. It
counts how often the reported interval covers the true exponent, floor and loss at ten times the
compute of the largest run. (For the joint law both axes grow by the square root of ten.)

The noise is constant in log loss, as the fit assumes, with two exceptions. Rows marked "in nats"
show the cost of a wrong noise model. The last row uses the design, the fit and the residuals of
real runs; it is printed only if these data are next to the checkout. The standard error of a
coverage near 95 % is 1.1 points at 400 draws.

With `--forecast`, the laws of one axis are drawn and a new run at ten times the compute is
predicted twice: by the true law with `Fit.predict_run`, and by `forecast`, which is not told the
law.
"""

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before numpy: small matrices gain nothing from threads

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.anchors import FITDATA, epoch_fit, epoch_points
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.forecasting.forecast import forecast
from clue_ray.scaling.laws.catalogue import LAWS
from clue_ray.scaling.laws.law import Floats

ALLOWED = (0.93, 0.98)


@dataclass(frozen=True)
class Case:
    """A known law and the studies drawn from it.

    Attributes:
        x: Predictors of the runs, shape (predictors, n).
        truth: Parameters in the law's order.
        noise: Standard deviation of log loss, or of the loss if `additive`.
        residuals: Log residuals of real runs, shape (n,). Each study uses them with random signs
            instead of normal noise.
        exponents: Names of the exponents to check.
        floor: Name of the irreducible loss to check.
    """

    name: str
    law: str
    x: Floats
    truth: tuple[float, ...]
    exponents: tuple[str, ...]
    floor: str
    noise: float = 0.004
    additive: bool = False
    residuals: Floats | None = None

    @property
    def further(self) -> Floats:
        """Predictors at ten times the compute of the largest run, shape (predictors,)."""
        return np.asarray(self.x.max(axis=1) * 10 ** (1 / len(self.x)))

    def loss(self, x: Floats) -> Floats:
        """Evaluate the true law at predictors of shape (predictors, n)."""
        return np.asarray(LAWS[self.law](list(x), self.truth))

    def draw(self, seed: int) -> dict[str, Floats]:
        """Draw one study, as a table with columns x0, x1, ... and y."""
        rng, clean = np.random.default_rng(seed), self.loss(self.x)
        if self.residuals is not None:
            shock = self.residuals * rng.choice([-1.0, 1.0], size=len(clean))
        else:
            shock = self.noise * rng.normal(size=len(clean))
        columns = {f"x{i}": column for i, column in enumerate(self.x)}
        return columns | {"y": clean + shock if self.additive else clean * np.exp(shock)}


def one_axis(
    runs: int, name: str = "", decades: float = 3, b: float = 0.25, additive: bool = False
) -> Case:
    """Build a case of E + a x^-b with runs equally spaced in log x."""
    height = 3.5 if b > 0.2 else 1.0
    label = f"power_law_plus_constant, n = {runs}{name}"
    names = ("exponent",)
    x = np.logspace(0, decades, runs)[None]
    noise = 0.01 if additive else 0.004
    return Case(
        label,
        "power_law_plus_constant",
        x,
        (1.8, height, b),
        names,
        "irreducible_loss",
        noise=noise,
        additive=additive,
    )


def two_axes(side: int) -> Case:
    """Build a case of E + A N^-alpha + B D^-beta on a square grid over two decades of each."""
    grid = np.array(list(product(np.logspace(4, 6, side), np.logspace(6, 8, side)))).T
    truth = (1.8, 30.0, 120.0, 0.34, 0.37)
    return Case(
        f"parametric_loss, n = {side**2}", "parametric_loss", grid, truth, ("alpha", "beta"), "E"
    )


CASES = (
    one_axis(6),
    one_axis(8),
    one_axis(12),
    one_axis(8, ", shallow: 2 decades, exponent .15", decades=2, b=0.15),
    two_axes(4),
    one_axis(8, ", noise in nats", additive=True),
    one_axis(12, ", noise in nats", additive=True),
    one_axis(48),
    two_axes(7),
)


def epoch_case() -> Case:
    """Build a case from Epoch AI's 240 points: their design, fit and heavy-tailed residuals."""
    fit, points = epoch_fit(), epoch_points()
    residuals = np.log(points["L"].to_numpy()) - np.log(fit.expected(points))
    x, truth = points[["N", "D"]].to_numpy(dtype=float).T, tuple(fit.parameters.values())
    return Case(
        "Epoch's 240 points",
        "parametric_loss",
        x,
        truth,
        ("alpha", "beta"),
        "E",
        residuals=residuals,
    )


def hits(case: Case, seed: int) -> list[bool]:
    """Fit one study and return whether each interval covers the truth.

    Order: the exponents, the floor, the loss at ten times the compute."""
    columns = [f"x{i}" for i in range(len(case.x))]
    fit = fit_law(case.law, case.draw(seed), x=columns, y="y")
    planted = dict(zip(LAWS[case.law].parameters, case.truth, strict=True))
    held = [_holds(fit.interval(name), planted[name]) for name in (*case.exponents, case.floor)]
    ahead = fit.predict(**dict(zip(columns, map(float, case.further), strict=True)))
    return [*held, _holds(ahead[1:], float(case.loss(case.further[:, None])[0]))]


def coverage(case: Case, draws: int, workers: int = 1) -> dict[str, float]:
    """Return the share of studies with an interval that covers the truth, by quantity."""
    names = [*case.exponents, "floor", "loss at 10x"]
    work = partial(hits, case)
    if workers == 1:
        held = [work(seed) for seed in range(draws)]
    else:
        with ProcessPoolExecutor(workers) as pool:
            held = list(pool.map(work, range(draws), chunksize=10))
    return dict(zip(names, map(float, np.mean(held, axis=0)), strict=True))


def compare_intervals(case: Case, seed: int) -> list[float]:
    """Predict a new run at ten times the compute by the true law and by `forecast`.

    Order: whether the 95 % intervals of law and forecast hold it, the same at 80 %, the ratio of
    the widths at 95 % (forecast over law), and the relative errors of law and forecast."""
    at, table = float(case.further[0]), case.draw(seed)
    shock = case.noise * np.random.default_rng([seed, 1]).normal()
    clean = float(case.loss(case.further[:, None])[0])
    measured = clean + shock if case.additive else clean * np.exp(shock)
    made, fit = forecast(table, x="x0", y="y", at=at), fit_law(case.law, table, x="x0", y="y")
    held, widths = [], []
    for level in (0.95, 0.8):
        law, combined = fit.predict_run(x0=at, level=level)[1:], made.interval(level)
        held += [_holds(law, measured), _holds(combined, measured)]
        widths.append((combined[1] - combined[0]) / (law[1] - law[0]))
    value = fit.predict(x0=at).value
    return [*held, widths[0], abs(value / measured - 1), abs(made.value / measured - 1)]


def _holds(ends: Sequence[float], truth: float) -> bool:
    return bool(ends[0] <= truth <= ends[1])


def print_forecasts(draws: int, workers: int) -> None:
    """Print coverage, width and error of `forecast` next to those of the true law."""
    heads = ("95 % law", "forecast", "80 % law", "forecast", "width", "error, law", "forecast")
    table = Table("law and study", *heads)
    for case in (case for case in CASES if len(case.x) == 1):
        with ProcessPoolExecutor(workers) as pool:
            work = partial(compare_intervals, case)
            found = np.array(list(pool.map(work, range(draws), chunksize=10)))
        shares, (width, *errors) = found[:, :4].mean(axis=0), np.median(found[:, 4:], axis=0)
        cells = [*(f"{share:.1%}" for share in shares), f"{width:.2f}"]
        table.add_row(case.name, *cells, *(f"{error:.2%}" for error in errors))
    Console(width=130).print(table)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Coverage of nominal 95 % intervals.")
    parser.add_argument("--draws", type=int, default=400, help="studies per row")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--forecast", action="store_true", help="compare with `forecast` instead")
    options = parser.parse_args()
    if options.forecast:
        print_forecasts(options.draws, options.workers)
        return
    table = Table(
        "law and study", "exponent(s)", "floor", "loss at 10x", "within 93-98 %", "seconds"
    )
    for case in [*CASES, *([epoch_case()] if FITDATA.is_dir() else [])]:
        start = time.perf_counter()
        found = coverage(case, options.draws, options.workers)
        inside = sum(ALLOWED[0] <= value <= ALLOWED[1] for value in found.values())
        exponents = " / ".join(f"{found[name]:.1%}" for name in case.exponents)
        cells = [case.name, exponents, f"{found['floor']:.1%}", f"{found['loss at 10x']:.1%}"]
        table.add_row(*cells, f"{inside} of {len(found)}", f"{time.perf_counter() - start:.0f}")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
