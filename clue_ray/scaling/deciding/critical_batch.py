"""The steps that each batch size needs to reach a loss, the input of the law `critical_batch`."""

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
    """Find the steps at which each batch size first reaches a loss.

    The rows of the table are points of learning curves, or runs of several lengths. Between two
    points, log steps are interpolated linearly in the loss. Fit the law `critical_batch` to the
    result.

    Returns:
        One row per batch size, with columns `batch` and `steps`. Batch sizes that never reach the
        loss, or are below it from their first row on, have no row.

    Raises:
        RunsError: fewer than two batch sizes cross the loss, or `fit_law` refuses the table.

    Example:
        >>> from clue_ray import steps_to_loss
        >>> curves = {"steps": [100, 400, 100, 400], "loss": [5.0, 4.0, 4.8, 3.8]}
        >>> steps_to_loss({"global_batch_size": [32, 32, 64, 64], **curves}, 4.4).round()
           global_batch_size  steps
        0               32.0  230.0
        1               64.0  174.0
    """
    select(table, (batch, steps), y)
    rows = Runs(as_frame(table)).done
    reached = pd.DataFrame(_crossings(rows, target, batch, steps, y), columns=[batch, steps])
    if len(reached) < 2:
        raise RunsError(
            f"{len(reached)} of {rows[batch].nunique()} batch sizes cross a {y} of {target:g}, "
            f"and two or more are needed (rows reach from {rows[y].max():.4g} to "
            f"{rows[y].min():.4g}); choose a {y} that more of them cross."
        )
    return reached


def _crossings(
    rows: pd.DataFrame, target: float, batch: str, steps: str, y: str
) -> Iterator[tuple[float, float]]:
    """Yield each batch size with the interpolated steps at which its curve crosses the target."""
    for _, curve in rows.groupby(batch):
        ordered = curve.sort_values(steps)
        taken, loss = ordered[steps].to_numpy(dtype=float), ordered[y].to_numpy(dtype=float)
        below = np.flatnonzero(loss <= target)
        # A curve that starts below the target has no crossing to interpolate.
        if len(below) and below[0] > 0:
            pair = slice(below[0] - 1, below[0] + 1)
            yield (
                float(ordered[batch].iloc[0]),
                float(np.exp(np.interp(-target, -loss[pair], np.log(taken[pair])))),
            )
