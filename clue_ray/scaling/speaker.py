"""Which law speaks for a study, or why none does.

Takes the backtest and the fits; gives a law and a reason for silence. The one idea: the law that predicted larger runs
best speaks only if it says that compute lowers the loss; a law that rises or stays flat describes runs that overfit
or do not learn, and nobody should be sold ten times the compute on it.
"""

import pandas as pd

from clue_ray.scaling.answer import FURTHER
from clue_ray.scaling.backtest import Backtest, loses
from clue_ray.scaling.fitted import Fit

FALL = 1e-6  # relative fall from the least to the furthest compute under which a law is flat


def choose_speaker(judged: Backtest, fits: dict[str, Fit], compute: pd.Series) -> tuple[str, str]:
    """Name the law that speaks over training compute (runs,), and why it may not: an empty reason where it may.

    The preferred law speaks if it falls; else a falling law that the backtest cannot tell from it and that does not
    lose to the plain power law. Otherwise the reason says what the loss does, and the law is only the one to draw.
    Without a backtest none speaks: nothing would be known of how it predicts.
    """
    order = _order(judged, fits)
    if not judged.preferred:
        return order[0], (
            "There is no answer yet for more compute: the runs are too few to test any law on a larger run than it was "
            "fitted to; add runs at other computes."
        )
    level = [law for law in order if law in (order[0], *judged.tied)]
    heirs = [law for law in level[1:] if not loses(judged.summary, law)]
    speakers = [law for law in (order[0], *heirs) if trend(fits[law], compute) < 0]
    if speakers:
        return speakers[0], ""
    rising = trend(fits[order[0]], compute) > 0
    shown = min(order, key=lambda law: trend(fits[law], compute) > 0)  # the first that does not rise
    says = "rises" if rising else "does not fall"
    return shown, (
        f"There is no answer yet for more compute: the law that describes these runs best, the "
        f"{fits[order[0]].law.words}, says that held-out loss {says} with it."
    )


def trend(fit: Fit, compute: pd.Series) -> int:
    """Tell where a law of compute goes from the least compute to `FURTHER` times the most: 1 up, 0 nowhere, -1 down.

    A law that fell within the runs and rises beyond them goes up: it would speak of what lies beyond.
    """
    least, most = float(compute.min()), float(compute.max())
    first, last, beyond = fit.curve([least, most, FURTHER * most])
    if beyond > min(first, last) * (1 + FALL):
        return 1
    return -1 if beyond < first * (1 - FALL) else 0


def _order(judged: Backtest, fits: dict[str, Fit]) -> list[str]:
    """List the laws: preferred, tied, then by error; by fewest parameters and lowest cost without a backtest."""
    if not judged.preferred:
        return sorted(fits, key=lambda law: (len(fits[law].parameters), fits[law].objective))
    return list(dict.fromkeys([judged.preferred, *judged.tied, *judged.summary["law"]]))
