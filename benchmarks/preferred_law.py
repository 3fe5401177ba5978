"""Compare rules that select the preferred law, by their error at ten times the compute.

The planted laws have no floor, a floor, or a floor and a ceiling.

    python benchmarks/preferred_law.py             # 30 studies a row, about six minutes on 2 cores

The rules: always the same law; the rule of the package; and the same rule with a backtest that
looks any distance ahead instead of at most ten times the fitted compute.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from unittest import mock

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before numpy: small matrices gain nothing from threads

import numpy as np
from rich.console import Console
from rich.table import Table

from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.judging import backtest
from clue_ray.scaling.laws.law import Floats

PLAIN, FLOOR, BOUNDED = LAWS = ("power_law", "power_law_plus_constant", "bounded_power_law")
NOISE, CANDIDATES = 0.005, 256
GUESS = np.log(CANDIDATES)


def pure(x: Floats) -> Floats:
    """Return a power law without a floor."""
    return np.asarray(3.5 * x**-0.08)


def floored(x: Floats) -> Floats:
    """Return a power law with a weak floor."""
    return np.asarray(1.8 + 1.0 * x**-0.15)


def between(x: Floats) -> Floats:
    """Return a loss from near chance level to a floor, by a formula that the package lacks."""
    return np.asarray(3.0 + (GUESS - 3.0) / (1 + (x / 30) ** 0.8))


def shallow(x: Floats) -> Floats:
    """Return the same with little between chance level and floor, as with few users."""
    return np.asarray(5.2 + (GUESS - 5.2) / (1 + (x / 20) ** 0.8))


CASES = {
    "3.5 x^-.08, 2 decades, 8 runs": (pure, 2, 8),
    "3.5 x^-.08, 3 decades, 8 runs": (pure, 3, 8),
    "1.8 + x^-.15, 2 decades, 8 runs": (floored, 2, 8),
    "1.8 + x^-.15, 3 decades, 8 runs": (floored, 3, 8),
    "a guess to 3.0, 3 decades, 12 runs": (between, 3, 12),
    "a guess to 5.2, 3 decades, 12 runs": (shallow, 3, 12),
}


def errors(case: str, seed: int) -> list[float]:
    """Draw a study; return the relative error by rule and whether the intervals hold the truth."""
    law, decades, runs = CASES[case]
    x = np.logspace(0, decades, runs)
    loss = law(x) * np.exp(NOISE * np.random.default_rng(seed).normal(size=runs))
    table = {"train_flops": x, "loss": loss, "loss_candidates": np.full(runs, CANDIDATES)}
    below, at = {name: column[:-1] for name, column in table.items()}, 10 * float(x[-1])
    truth = float(law(np.array([at]))[0])
    ahead = {
        name: fit_law(name, below, x="train_flops", y="loss").predict(train_flops=at)
        for name in LAWS
    }
    missed = {name: abs(found.value / truth - 1) for name, found in ahead.items()}
    judged = backtest.backtest(LAWS, table, x="train_flops", y="loss")
    preferred, as_good = judged.preferred, {judged.preferred, *judged.tied}
    with mock.patch.object(backtest, "LOOK_AHEAD", 1e9):
        unlimited = backtest.backtest(LAWS, table, x="train_flops", y="loss").preferred
    low, high = min(ahead[name].low for name in as_good), max(ahead[name].high for name in as_good)
    held = [ahead[preferred].low <= truth <= ahead[preferred].high, low <= truth <= high]
    return [*missed.values(), missed[unlimited], missed[preferred], *map(float, held)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description="Mean error at ten times the compute, by rule that selects the law."
    )
    parser.add_argument("--draws", type=int, default=30, help="studies per row")
    options = parser.parse_args()
    heads = (
        "power law",
        "with a floor",
        "bounded",
        "judged at any distance",
        "the package's",
        "its interval held it",
        "those of tied laws",
    )
    table = Table("planted law", *heads)
    with ProcessPoolExecutor(2) as pool:
        for case in CASES:
            found = np.mean(
                list(pool.map(partial(errors, case), range(options.draws), chunksize=5)), axis=0
            )
            table.add_row(
                case,
                *(f"{value:.2%}" for value in found[:-2]),
                *(f"{value:.0%}" for value in found[-2:]),
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
