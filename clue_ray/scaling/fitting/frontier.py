"""Which runs speak for the best use of compute: no other setting did better with as much.

Takes finished runs, gives them marked. One idea: settings compete, not runs, by their means over
seeds; the luckiest of three seeds would else stand beside the only one of a dear setting, and every
law would fall too slowly.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

from clue_ray.spec.columns import fixed_columns

X, Y = "train_flops", "loss"
LITTLE_MORE = 1.1  # times the compute of a run, for which another does not count as larger
# exponent of compute beyond any that a loss was seen to have; published ones are .05 to .15
STEEPEST = 0.25
LARGEST_LEVEL_SHARE = 0.99  # share of the largest compute that still counts as the largest level
SAME_HORIZON = 1.02
"""Seeds of one setting draw other users, so their compute differs by so little."""


def mark(done: pd.DataFrame) -> pd.DataFrame:
    """Add the columns `frontier` and `held_out`, and bring the compute of a setting's seeds to
    their mean.
    """
    number = settings_of(done)
    means = done[[X, Y]].astype(float).groupby(number).mean()
    spent = means[X].to_numpy()[number]
    held_out = spent >= LARGEST_LEVEL_SHARE * spent.max()
    return done.assign(**{X: spent}, frontier=frontier(means)[number], held_out=held_out)


def frontier(table: pd.DataFrame, x: str = X, y: str = Y) -> npt.NDArray[np.bool_]:
    """Mark the rows that none beats in y with at most as much x, ties included: (rows,) booleans.

    With up to a tenth more x a row beats another too if y falls faster than x ** -STEEPEST between
    them: then it is not x that tells them apart, as between runs of one budget on few users and on
    many.
    """
    spent, found = (table[name].to_numpy(dtype=float) for name in (x, y))
    more = spent / spent[:, None]  # [row, other]
    beaten = (more <= LITTLE_MORE) & (found < found[:, None] * np.maximum(more, 1) ** -STEEPEST)
    return ~beaten.any(axis=1)


def settings_of(done: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Number each run's setting, (rows,): runs share one that differ in their seed alone.

    Where a seed comes twice in what the columns call one setting, something else was varied: its
    runs stand alone.
    """
    alone = np.arange(len(done))
    keys = [name for name in fixed_columns() if name in done]
    if "seed" not in done or not keys:
        return alone
    order = done.reset_index(drop=True).assign(row=alone).sort_values([*keys, X], kind="stable")
    before = order[keys].shift()
    other = ((order[keys] != before) & ~(order[keys].isna() & before.isna())).any(axis=1)
    larger = order[X].astype(float) > SAME_HORIZON * order[X].astype(float).shift()
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


MIN_FITTED_RUNS = 4  # runs under a headline fit
