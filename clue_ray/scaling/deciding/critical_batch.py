"""The steps that each batch size takes to a loss, from which the critical batch size follows.

Takes curves of loss over steps; gives a table to which the law `critical_batch` is fitted. The one
idea: read every curve at one height.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from clue_ray.errors import RunsError
from clue_ray.runs import Runs
from clue_ray.scaling.fitting.table import Table, as_frame, select


def steps_to_loss(
    table: Table,
    target: float,
    *,
    batch: str = "global_batch_size",
    steps: str = "steps",
    y: str = "loss",
) -> pd.DataFrame:
    """Find the steps at which each batch size first reaches a loss: one row a batch, columns
    `batch` and `steps`.

    Rows are points of curves, or runs of several lengths. Between points, log steps run straight in
    loss. Fit `critical_batch` to the result. Raises RunsError where fewer than two batch sizes
    reach the loss, and for what `fit_law` refuses; batch sizes that never reach it, or are below it
    from their first row on, have no row.
    """
    select(table, (batch, steps), y)
    rows = Runs(as_frame(table)).done
    reached = pd.DataFrame(_crossings(rows, target, batch, steps, y), columns=[batch, steps])
    if len(reached) < 2:
        raise RunsError(
            f"{len(reached)} of {rows[batch].nunique()} batch sizes cross a {y} of {target:g}, "
            f"which takes two or more "
            f"(rows reach from {rows[y].max():.4g} to {rows[y].min():.4g}); choose a {y} that more "
            f"of them cross."
        )
    return reached


def _crossings(
    rows: pd.DataFrame, target: float, batch: str, steps: str, y: str
) -> Iterator[tuple[float, float]]:
    """Yield each batch size with the steps, interpolated, at which its curve first falls to the
    target.
    """
    for _, curve in rows.groupby(batch):
        ordered = curve.sort_values(steps)
        taken, loss = ordered[steps].to_numpy(dtype=float), ordered[y].to_numpy(dtype=float)
        below = np.flatnonzero(loss <= target)
        if len(below) and below[0] > 0:
            pair = slice(below[0] - 1, below[0] + 1)
            yield (
                float(ordered[batch].iloc[0]),
                float(np.exp(np.interp(-target, -loss[pair], np.log(taken[pair])))),
            )
