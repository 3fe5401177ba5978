"""Replay the choice of `--grow` on public scaling runs of other people's models.

    python -m benchmarks.replay --data DIR      # a few minutes on 2 cores

DIR holds the files that `benchmarks.forecasts` reads. The runs below each of its cuts are a pool of
which only the five cheapest on the frontier were trained. Each rule buys others, two at a time, for
a tenth of the pool's compute, knowing the compute of a run but not its loss. Then `forecast`
predicts the frontier run beyond the pool, 4 to 10.5 times larger. The candidates are the runs on
the frontier, as `--grow` leaves out those that a joint law expects elsewhere.

A pool is used where a tenth of its compute buys more than was trained already, at most six per set.
Printed are medians over sets of the median over pools.
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from benchmarks.forecasts import Case, frontier, read_cases, score
from clue_ray.errors import FitError
from clue_ray.scaling.deciding.add_runs import choose_runs
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.forecasting.forecast import forecast
from clue_ray.scaling.laws.law import Floats

TRAINED, FEWEST_RUNS, MOST_POOLS = 5, 7, 6
SHARE, MOST_TRAINED = 0.1, 0.5
"""The budget as a share of the pool's compute, and the share of it that may be spent before."""
AT_ONCE, SEEDS = 2, 8

Rule = Callable[[Floats, Floats, Floats, float, float, np.random.Generator], list[int]]
"""Choose from compute and loss of the trained runs, compute of the others, budget and place."""


def by_variance(
    x: Floats, y: Floats, others: Floats, budget: float, at: float, _: np.random.Generator
) -> list[int]:
    """Choose as `--grow` does, by the interval of the law with a floor."""
    fit = fit_law("power_law_plus_constant", {"x": x, "y": y}, x="x", y="y")
    return choose_runs(fit, x, others, budget, at)[0]


def by_chance(
    x: Floats, y: Floats, others: Floats, budget: float, at: float, rng: np.random.Generator
) -> list[int]:
    """Choose one run that the budget allows at random."""
    free = np.flatnonzero(others <= budget)
    return [int(rng.choice(free))] if len(free) else []


def by_compute(
    x: Floats, y: Floats, others: Floats, budget: float, at: float, _: np.random.Generator
) -> list[int]:
    """Choose the largest run that the budget allows."""
    free = np.flatnonzero(others <= budget)
    return [int(free[np.argmax(others[free])])] if len(free) else []


RULES: dict[str, tuple[Rule, int]] = {
    "as --grow": (by_variance, 1),
    "largest first": (by_compute, 1),
    "random": (by_chance, SEEDS),
}


def pools(cases: list[Case]) -> Iterator[tuple[Case, Floats, Floats, float]]:
    """Yield each pool's case, the compute and loss of its frontier, and the budget."""
    used: Counter[str] = Counter()
    for case in cases:
        order = np.argsort(case.compute, kind="stable")
        points = order[frontier(case.compute, case.loss)[order]]
        x, y, budget = case.compute[points], case.loss[points], SHARE * float(case.compute.sum())
        enough = len(x) >= FEWEST_RUNS and x[:TRAINED].sum() <= MOST_TRAINED * budget
        if enough and used[case.data_set] < MOST_POOLS:
            used[case.data_set] += 1
            yield case, x, y, budget


def buy(x: Floats, y: Floats, budget: float, at: float, rule: Rule, seed: int) -> list[int]:
    """Return the places of the trained and bought runs, in order."""
    have, rng = list(range(TRAINED)), np.random.default_rng(seed)
    while True:
        others = [place for place in range(len(x)) if place not in have]
        left = budget - float(x[have].sum())
        chosen = rule(x[have], y[have], x[others], left, at, rng)[:AT_ONCE]
        if not chosen:
            return have
        have = sorted([*have, *(others[place] for place in chosen)])


def predict(case: Case, x: Floats, y: Floats) -> dict[str, float]:
    """Forecast a pool's target from some of its runs and return its error and interval score."""

    def method(_: Case) -> tuple[float, float, float, float, float]:
        made = forecast({"x": x, "y": y}, x="x", y="y", at=case.at)
        return (made.value, *made.interval(0.8), *made.interval(0.95))

    row = score(case, method)
    return {"error": row.get("error", np.nan), "score": row.get("interval_score", np.nan)}


def replay(cases: list[Case]) -> pd.DataFrame:
    """Tabulate error, interval score and bought compute by pool and rule."""
    rows = []
    for pool, (case, x, y, budget) in enumerate(pools(cases)):
        key = {"set": case.data_set, "pool": pool}
        found = predict(case, case.compute, case.loss)
        rows.append({**key, "rule": "all runs", "share": 1.0, **found})
        found = predict(case, x[:TRAINED], y[:TRAINED])
        share = float(x[:TRAINED].sum()) * SHARE / budget
        rows.append({**key, "rule": "trained before", "share": share, **found})
        for name, (rule, seeds) in RULES.items():
            for seed in range(seeds):
                try:
                    have = buy(x, y, budget, case.at, rule, seed)
                except FitError:
                    continue
                share, found = (
                    float(x[have].sum()) * SHARE / budget,
                    predict(case, x[have], y[have]),
                )
                rows.append({**key, "rule": name, "share": share, **found})
    return pd.DataFrame(rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of CSV files")
    parser.add_argument("--sets", nargs="*", default=[], help="names of files, without ending")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = replay(read_cases(given.data, given.sets))
    by_pool = rows.groupby(["rule", "set", "pool"]).mean().groupby(["rule", "set"]).median()
    table = Table("runs bought", "share of compute", "median error", "interval score")
    for name, row in by_pool.groupby("rule").median().iterrows():
        table.add_row(
            str(name), f"{row['share']:.1%}", f"{row['error']:.3f}", f"{row['score']:.0f}"
        )
    pooled, sets = rows["pool"].nunique(), rows["set"].nunique()
    Console(width=110).print(f"{pooled} pools of {sets} sets", table)


if __name__ == "__main__":
    main()
