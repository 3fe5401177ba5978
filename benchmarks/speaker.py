"""Which of two laws should speak: what four rules err at ten times the compute, with and without a planted floor.

    python benchmarks/speaker.py             # 30 studies a row, about two minutes on 2 cores

Rules: the plain law always; the floor law always; the floor law unless the backtest tells it from the plain power law
by two standard errors; and the package's, the floor law unless it erred more than the plain power law or is told apart.
"""

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: small matrices gain nothing from threads

import numpy as np
from rich.console import Console
from rich.table import Table

from clue_ray.scaling.backtest import backtest
from clue_ray.scaling.fit import fit_law
from clue_ray.scaling.laws import Floats

PLAIN, FLOOR = "power_law", "power_law_plus_constant"
NOISE, RUNS = 0.004, 8


def pure(x: Floats) -> Floats:
    """Give a power law without a floor."""
    return np.asarray(3.5 * x**-0.08)


def floored(x: Floats) -> Floats:
    """Give a power law with a weak floor."""
    return np.asarray(1.8 + 1.0 * x**-0.15)


CASES = {
    f"{name}, {decades} decades": (law, decades)
    for name, law in (("3.5 x^-.08", pure), ("1.8 + x^-.15", floored))
    for decades in (2, 3)
}


def errors(law: Callable[[Floats], Floats], decades: int, seed: int) -> list[float]:
    """Draw a study; give the relative error at ten times the compute under each rule, and whether the floor spoke."""
    x = np.logspace(0, decades, RUNS)
    loss = law(x) * np.exp(NOISE * np.random.default_rng(seed).normal(size=RUNS))
    judged = backtest([PLAIN, FLOOR], {"x": x, "loss": loss}, x="x", y="loss")
    below, at = {"x": x[:-1], "loss": loss[:-1]}, x[-1:] * 10
    missed = {
        name: float(np.abs(fit_law(name, below, x="x", y="loss").curve(at) / law(at) - 1)[0]) for name in (PLAIN, FLOOR)
    }
    tied = FLOOR if FLOOR in (judged.preferred, *judged.tied) else PLAIN
    return [missed[PLAIN], missed[FLOOR], missed[tied], missed[judged.preferred], float(judged.preferred == FLOOR)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Mean error at ten times the compute by the rule of who speaks.")
    parser.add_argument("--draws", type=int, default=30, help="studies a row")
    options = parser.parse_args()
    table = Table("planted law", "plain always", "floor always", "unless told apart", "the package's", "floor spoke")
    with ProcessPoolExecutor(2) as pool:
        for name, (law, decades) in CASES.items():
            found = np.mean(list(pool.map(partial(errors, law, decades), range(options.draws), chunksize=5)), axis=0)
            table.add_row(name, *(f"{value:.2%}" for value in found[:4]), f"{found[4]:.0%}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
