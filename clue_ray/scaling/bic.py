"""Weigh laws by BIC: how well each fits for the parameters it spends.

Takes laws and a runs table; gives one row a law. The one idea: differences under 2 mean nothing (Raftery 1995), so
laws get weights and none is crowned; the backtest, not BIC, chooses what speaks.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from clue_ray.errors import FitError
from clue_ray.scaling.fit import fit_law
from clue_ray.scaling.fitted import Fit
from clue_ray.scaling.intervals import SMALLEST_NOISE
from clue_ray.scaling.law import Law
from clue_ray.scaling.sample import Table, as_names

BIC_COLUMNS = ["law", "num_parameters", "bic", "difference", "weight"]


def compare_bic(laws: Sequence[str | Law], table: Table, *, x: str | Sequence[str], y: str) -> pd.DataFrame:
    """Tabulate law, num_parameters, bic, difference from the lowest and weight, the lowest BIC first.

    BIC = n ln(RSS / n) + (p + 1) ln n, of log residuals at their least squares, the noise being the parameter counted
    beside the law's p (Schwarz 1978); weight = exp(-difference / 2), normalised, which is about the law's posterior
    probability where all were equally likely before (Kass and Raftery 1995). Laws that the runs cannot identify are
    left out. Raises RunsError as `fit_law` does.
    """
    fits = []
    for law in laws:
        try:
            fits.append(fit_law(law, table, x=as_names(x), y=y, loss="log_least_squares"))
        except FitError:
            continue
    rows = [[fit.law.name, len(fit.parameters), _bic(fit)] for fit in fits]
    frame = pd.DataFrame(rows, columns=BIC_COLUMNS[:3]).sort_values("bic", kind="stable", ignore_index=True)
    difference = frame["bic"] - frame["bic"].min()
    weight = np.exp(-difference / 2)
    return frame.assign(difference=difference, weight=weight / weight.sum())


def _bic(fit: Fit) -> float:
    """Give a least-squares fit's BIC; exact data count as noise of `SMALLEST_NOISE`."""
    residual = fit.problem.log_values(fit.theta) - fit.problem.log_y
    variance = max(float(np.mean(residual**2)), SMALLEST_NOISE**2)
    return len(residual) * float(np.log(variance)) + (len(fit.parameters) + 1) * float(np.log(len(residual)))
