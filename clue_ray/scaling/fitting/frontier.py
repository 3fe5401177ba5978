"""The runs that show the best use of compute: no other setting was better with as little.

Headline laws are fitted to these. Settings compete by their means over seeds, not run by run:
otherwise the best of three cheap seeds competes with the only seed of an expensive setting, and
every law falls too slowly. This selects rows before any fit, so it needs no law.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

from clue_ray.spec.columns import fixed_columns

X, Y = "train_flops", "loss"
MIN_FITTED_RUNS = 4
"""Runs under a headline fit."""
LARGEST_LEVEL_SHARE = 0.99
"""Share of the largest compute that still counts as the largest level."""
COMPUTE_TOLERANCE = 1.1
"""Ratio of computes up to which the larger run may still beat the smaller one."""
MAX_LOSS_EXPONENT = 0.25
"""Exponent of compute beyond any that a loss was seen to have; published ones are .05 to .15."""
SEED_COMPUTE_TOLERANCE = 1.02
"""Seeds of one setting draw different users, so their computes differ by up to this ratio."""


def mark(done: pd.DataFrame) -> pd.DataFrame:
    """Add the columns `frontier` and `held_out`; set the compute of seeds to their mean."""
    number = settings_of(done)
    means = done[[X, Y]].astype(float).groupby(number).mean()
    spent = means[X].to_numpy()[number]
    held_out = spent >= LARGEST_LEVEL_SHARE * spent.max()
    return done.assign(**{X: spent}, frontier=frontier(means)[number], held_out=held_out)


def frontier(table: pd.DataFrame, x: str = X, y: str = Y) -> npt.NDArray[np.bool_]:
    """Mark the rows that no row beats in y with at most as much x, ties included: (rows,) booleans.

    A row with up to a tenth more x also beats another if y falls faster than
    x ** -MAX_LOSS_EXPONENT between them. Then the difference does not come from x: it is that of
    runs of one budget on few and on many users, for instance.
    """
    spent, found = (table[name].to_numpy(dtype=float) for name in (x, y))
    ratio = spent / spent[:, None]  # [row, other]
    expected = found[:, None] * np.maximum(ratio, 1) ** -MAX_LOSS_EXPONENT
    beaten = (ratio <= COMPUTE_TOLERANCE) & (found < expected)
    return ~beaten.any(axis=1)


def settings_of(done: pd.DataFrame, x: str = X) -> npt.NDArray[np.int64]:
    """Number the setting of each run, (rows,); runs that differ only in their seed share one.

    They agree in the columns of a study file, and nearly in compute (in x where the table has no
    compute); in a table without such columns, exactly in x.
    Where a seed appears twice in what the columns call one setting, something else was varied, and
    each of its runs is a setting of its own.
    """
    alone = np.arange(len(done))
    if "seed" not in done:
        return alone
    keys = [name for name in fixed_columns() if name in done] or [x]
    x = X if X in done else x
    order = done.reset_index(drop=True).assign(row=alone).sort_values([*keys, x], kind="stable")
    before = order[keys].shift()
    # nan != nan, but two runs without a value share it.
    other = ((order[keys] != before) & ~(order[keys].isna() & before.isna())).any(axis=1)
    larger = order[x].astype(float) > SEED_COMPUTE_TOLERANCE * order[x].astype(float).shift()
    group = (other | larger).cumsum().to_numpy()
    twice = (
        order.assign(group=group)
        .duplicated(["group", "seed"], keep=False)
        .groupby(group)
        .transform("any")
    )
    shared = np.where(twice, len(done) + order["row"], group)
    found = np.empty(len(done), dtype=np.int64)
    found[order["row"]] = np.unique(shared, return_inverse=True)[1]
    return found
