"""What a reader should know before trusting an analysis: at most one sentence a subject, the gravest first.

Takes runs, fits and backtest; gives sentences without raw names. The one idea: doubts that share a cause are one.
"""

import numpy as np
import pandas as pd

from clue_ray.scaling.answer import FURTHER
from clue_ray.scaling.backtest import Backtest
from clue_ray.scaling.fit import Fit, Prediction
from clue_ray.scaling.identify import ENOUGH_DECADES
from clue_ray.scaling.intervals import ENOUGH_FREEDOM
from clue_ray.scaling.words import listing, number


def open_question(points: pd.DataFrame, ahead: Prediction | None) -> list[str]:
    """Say when the interval far out still holds the best loss measured."""
    best = float(points["loss"].min())
    if ahead is None or not ahead.high >= best:
        return []
    return [
        f"The interval at {FURTHER} times the compute holds the best loss measured, {best:.3f} nats: "
        "the runs do not exclude that more compute buys nothing."
    ]


def few_runs(fit: Fit) -> list[str]:
    """Say when the runs under the preferred law are too few to tell an outlier from noise."""
    if fit.num_runs - len(fit.parameters) >= ENOUGH_FREEDOM:
        return []
    return [
        f"Only {number(fit.num_runs)} runs lie under each law, too few to tell an outlier from noise: "
        "one odd run would move every number."
    ]


def undecided(judged: Backtest, fits: dict[str, Fit]) -> list[str]:
    """Say which laws the backtest cannot tell apart, and why one of them speaks."""
    if not judged.tied:
        return []
    count = int(judged.summary["num_predictions"].iloc[0])
    rivals = listing([f"the {fits[law].law.words}" for law in judged.tied])
    return [
        f"The backtest's {number(count)} predictions cannot tell the {fits[judged.preferred].law.words} from {rivals}; "
        f"the {fits[judged.preferred].law.words} speaks, for leaving out a floor that is there costs far more than "
        "keeping one that is not."
    ]


def floors(fits: dict[str, Fit], decades: float) -> list[str]:
    """Say which laws have a floor, the loss that no compute goes below, that the runs do not show."""
    bare = [fit.law.words for fit in fits.values() if fit.law.floor and not fit.identified(fit.law.floor)]
    short = f"{decades:.1f} decades of compute"
    if bare:
        return [f"Over {short} the runs do not show a floor: any floor fits in the {listing(bare)}."]
    held = [fit.law.words for fit in fits.values() if fit.law.floor]
    if held and decades < ENOUGH_DECADES:
        return [f"The floor of the {listing(held)} rests on {short}; under {ENOUGH_DECADES} it means little."]
    return []


def other_interval(fit: Fit, ahead: float) -> list[str]:
    """Say where a bootstrap of the preferred law's prediction disagrees with its interval."""
    found = fit.cross_check(**{fit.x[0]: ahead})
    if found is None:
        return []
    profile, rival = found
    side = "wider" if rival.high - rival.low > profile.high - profile.low else "narrower"
    return [
        f"A bootstrap of the {fit.law.words} gives {rival.low:.2f} to {rival.high:.2f} nats at {FURTHER} times the "
        f"compute, much {side} than the interval shown; trust the wider one."
    ]


def decades_of(values: pd.Series) -> float:
    """Measure a column's span in powers of ten."""
    return float(np.log10(values.max() / values.min()))
