"""Compare rules that select the preferred law by their error at ten times the compute.

    python -m benchmarks.preferred_law       # 30 studies per row, about six minutes on 2 cores

Studies are drawn from laws with and without a floor. The rules are: always the same law; the
package's rule; and the package's rule with backtests at any distance, instead of at most ten times
the compute of the fitted runs.
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
CHANCE = np.log(CANDIDATES)


def pure(x: Floats) -> Floats:
    """Evaluate a power law without a floor."""
    return np.asarray(3.5 * x**-0.08)


def floored(x: Floats) -> Floats:
    """Evaluate a power law with a weak floor."""
    return np.asarray(1.8 + 1.0 * x**-0.15)


def between(x: Floats) -> Floats:
    """Evaluate a loss that falls from chance to a floor; no law of the package has this form."""
    return np.asarray(3.0 + (CHANCE - 3.0) / (1 + (x / 30) ** 0.8))


def shallow(x: Floats) -> Floats:
    """Evaluate the same with a floor close to chance, as with few users."""
    return np.asarray(5.2 + (CHANCE - 5.2) / (1 + (x / 20) ** 0.8))


CASES = {
    "3.5 x^-.08, 2 decades, 8 runs": (pure, 2, 8),
    "3.5 x^-.08, 3 decades, 8 runs": (pure, 3, 8),
    "1.8 + x^-.15, 2 decades, 8 runs": (floored, 2, 8),
    "1.8 + x^-.15, 3 decades, 8 runs": (floored, 3, 8),
    "chance to 3.0, 3 decades, 12 runs": (between, 3, 12),
    "chance to 5.2, 3 decades, 12 runs": (shallow, 3, 12),
}


def errors(case: str, seed: int) -> list[float]:
    """Draw a study; return relative errors by rule, and whether the interval covers the truth."""
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
    evaluated = backtest.backtest(LAWS, table, x="train_flops", y="loss")
    preferred = evaluated.preferred
    with mock.patch.object(backtest, "LOOK_AHEAD", 1e9):
        at_any_distance = backtest.backtest(LAWS, table, x="train_flops", y="loss").preferred
    covered = ahead[preferred].low <= truth <= ahead[preferred].high
    return [*missed.values(), missed[at_any_distance], missed[preferred], float(covered)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description="Mean error at ten times the compute by the rule that selects the law."
    )
    parser.add_argument("--draws", type=int, default=30, help="studies per row")
    options = parser.parse_args()
    heads = (
        "power law",
        "with a floor",
        "bounded",
        "backtest at any distance",
        "the package's rule",
        "its interval covers",
    )
    table = Table("planted law", *heads)
    with ProcessPoolExecutor(2) as pool:
        for case in CASES:
            found = np.mean(
                list(pool.map(partial(errors, case), range(options.draws), chunksize=5)), axis=0
            )
            table.add_row(
                case,
                *(f"{value:.2%}" for value in found[:-1]),
                f"{found[-1]:.0%}",
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
