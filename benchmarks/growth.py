"""Measure the FLOPs that `clue-ray run --grow` saves compared with a larger grid.

    python -m benchmarks.growth     # 24 studies per planted law, a few minutes on 2 cores

A planted study has a grid of 4 encoder sizes by 4 history lengths at equal steps. The baseline
extends the grid to 5 x 5 and 6 x 6. `--grow` gets shares of the extra FLOPs of the larger grid and
selects runs by the package's own rule, two per round. Both are compared by the width of the 80 %
interval that is forecast at 100 times the compute.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before numpy: small matrices gain nothing from threads

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from clue_ray.scaling.answering.analysis import headline
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.frontier import mark
from clue_ray.scaling.fitting.result import Fit
from clue_ray.scaling.forecasting.forecast import Forecaster
from clue_ray.study.add_runs import next_runs

SIZES = [1e4 * 4.0**power for power in range(8)]
LENGTHS = [8 * 2**power for power in range(8)]
NOISE = 0.002
SHARES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
SAME = 1.02
"""Interval widths within this ratio count as equal."""
AT_ONCE = 2
PLANTED = {
    "4.6 + 6 N^-.28 + 1.2 S^-.5": (4.6, 6.0, 0.28, 1.2, 0.5),
    "4.2 + 4 N^-.2 + 2 S^-.4": (4.2, 4.0, 0.2, 2.0, 0.4),
    "4.8 + 9 N^-.35 + .8 S^-.3": (4.8, 9.0, 0.35, 0.8, 0.3),
}


def points(rows: int) -> pd.DataFrame:
    """List the grid of `rows` sizes by as many lengths."""
    table = pd.DataFrame(
        list(product(SIZES[:rows], LENGTHS[:rows])),
        columns=["non_embedding_params", "sequence_length"],
    )
    table["train_flops"] = 6e4 * table["non_embedding_params"] * table["sequence_length"]
    table["run_id"] = [
        f"{n:.0f}-{s}"
        for n, s in zip(table["non_embedding_params"], table["sequence_length"], strict=True)
    ]
    return table.assign(point=table["run_id"])


def train(table: pd.DataFrame, law: tuple[float, ...], seed: int) -> pd.DataFrame:
    """Add the loss of every point: the planted law with noise that depends on the point alone."""
    floor, a, alpha, b, beta = law
    loss = (
        floor + a * table["non_embedding_params"] ** -alpha + b * table["sequence_length"] ** -beta
    )
    drawn = [
        np.random.default_rng([seed, int(n), s]).normal()
        for n, s in table[["non_embedding_params", "sequence_length"]].astype(int).to_numpy()
    ]
    settings = {
        "status": "done",
        "loss_candidates": 256,
        "learning_rate": 3e-3,
        "seed": 0,
        "steps": 1000,
    }
    return table.assign(loss=loss * np.exp(NOISE * np.array(drawn)), **settings)


def fit_headline(table: pd.DataFrame) -> tuple[pd.DataFrame, Fit]:
    """Mark the frontier and the held-out run and fit the law, as `--grow` does."""
    fitted, marked, _ = headline(mark(table))
    return marked, fit_law("power_law_plus_constant", fitted, x="train_flops", y="loss")


def width(table: pd.DataFrame, at: float) -> float:
    """Return the width of the 80 % interval that is forecast at `at` FLOPs, in nats."""
    chance = float(np.log(table["loss_candidates"].iloc[0]))
    forecaster = Forecaster.build(table, x="train_flops", y="loss", chance=chance)
    low, high = forecaster.at(at).interval(0.8)
    return high - low


def grow(
    table: pd.DataFrame,
    candidates: pd.DataFrame,
    law: tuple[float, ...],
    budget: float,
    at: float,
    seed: int,
) -> pd.DataFrame:
    """Add runs in rounds within a budget of FLOPs, by the package's rule."""
    spent = 0.0
    while True:
        left = candidates[~candidates["run_id"].isin(table["run_id"])]
        chosen = next_runs(*fit_headline(table), left, budget - spent, at)[:AT_ONCE]
        if not chosen:
            return table
        added = left[left["run_id"].isin([run["point"] for run in chosen])]
        table = pd.concat([table, train(added, law, seed)], ignore_index=True)
        spent += float(added["train_flops"].sum())


def draw(law: tuple[float, ...], larger: int, seed: int) -> list[float]:
    """Draw one study and return interval widths.

    Order: the grid, the larger grid, and runs added for each share of its extra FLOPs."""
    start, rival, candidates = (
        train(points(4), law, seed),
        train(points(larger), law, seed),
        points(6),
    )
    at = 100 * float(start["train_flops"].max())
    extra = float(rival["train_flops"].sum() - start["train_flops"].sum())
    grown = [grow(start, candidates, law, share * extra, at, seed) for share in SHARES]
    return [width(table, at) for table in (start, rival, *grown)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description="Width of the 80 % interval of loss at 100 times the compute, nats, median."
    )
    parser.add_argument("--draws", type=int, default=24, help="studies per row")
    options = parser.parse_args()
    table = Table(
        "planted law",
        "grid 4x4",
        "continued to",
        "its width",
        *(f"grow {s:.0%}" for s in SHARES),
        "same width at",
    )
    with ProcessPoolExecutor(2) as pool:
        for (name, law), larger in product(PLANTED.items(), (5, 6)):
            found = np.array(list(pool.map(partial(draw, law, larger), range(options.draws))))
            share = [
                next(
                    (s for s, w in zip(SHARES, row[2:], strict=True) if w <= SAME * row[1]), np.inf
                )
                for row in found
            ]
            middle = np.median(found, axis=0)
            reached = np.median(share)
            words = f"{reached:.0%} of the FLOPs" if np.isfinite(reached) else "not reached"
            table.add_row(
                name,
                f"{middle[0]:.3f}",
                f"{larger}x{larger}",
                *(f"{v:.3f}" for v in middle[1:]),
                words,
            )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
