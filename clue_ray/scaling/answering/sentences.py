"""Write the answer of a study in a few plain sentences.

The answer states what was measured first, then what is forecast: the value, its interval, how far
beyond the runs, and how such forecasts fared. The helpers for numbers and lists are
shared with the warnings and the report, so that all of them round alike.
"""

from collections.abc import Sequence

import pandas as pd

from clue_ray.scaling.forecasting.forecast import Forecast
from clue_ray.scaling.laws.catalogue import LAWS

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def measured(points: pd.DataFrame, candidates: int, chance: float) -> str:
    """Describe how far compute lowered the measured loss, from the cheapest run to the best."""
    cheapest = points.sort_values(["train_flops", "loss"]).iloc[0]
    best = points.sort_values(["loss", "train_flops"]).iloc[0]
    level = _chance_level(float(best["loss"]), candidates, chance)
    more = best["train_flops"] / cheapest["train_flops"]
    if more <= 1:
        beyond = _times(float(points["train_flops"].max()) / best["train_flops"])
        return (
            f"The lowest held-out loss, {best['loss']:.3f} nats, was reached with the least "
            f"compute, {flop(best['train_flops'])} FLOP ({level}); {beyond} times more compute "
            "did not lower it."
        )
    return (
        f"{_times(more)} times more compute, {flop(best['train_flops'])} instead of "
        f"{flop(cheapest['train_flops'])} FLOP, lowered the held-out loss from "
        f"{cheapest['loss']:.3f} to {best['loss']:.3f} nats ({level})."
    )


def lowest(points: pd.DataFrame, candidates: int, chance: float) -> str:
    """Describe the lowest loss, without a cause: the sentence where no law is preferred."""
    best = float(points["loss"].min())
    level = _chance_level(best, candidates, chance)
    return f"The lowest held-out loss of {len(points)} runs is {best:.3f} nats ({level})."


def forecasted(forecast: Forecast) -> str:
    """State the forecast, its 80 % interval, its reach, and how such forecasts fared."""
    low, high = forecast.interval(0.8)
    return (
        f"At {flop(forecast.at)} FLOP, {_times(forecast.reach)} times the compute of the largest "
        f"run on the frontier, the loss is forecast to be {forecast.value:.2f} nats (80 % "
        f"interval: {low:.2f} to {high:.2f}). {forecast.record()}"
    )


def law_words(law: str) -> str:
    """Format the name of a law for a sentence."""
    return LAWS[law].words


def flop(value: float) -> str:
    """Format a number of FLOP with two digits and an exponent: 3.3e12."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def number(count: int) -> str:
    """Format a count, a small one as a word."""
    return NUMBERS[count] if count < len(NUMBERS) else f"{count:,}"


def listing(parts: Sequence[str]) -> str:
    """Join words by commas and a last `and`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _times(ratio: float) -> str:
    """Format a ratio for `... times more`: 58, 5.8, 1,200."""
    return f"{ratio:.2g}" if ratio < 10 else f"{float(f'{ratio:.2g}'):,.0f}"


def _chance_level(best: float, candidates: int, chance: float) -> str:
    """State the chance level, and that nothing was learned where the best loss is not below it."""
    level = f"chance: ln {candidates} = {chance:.3f}"
    return f"{level}, so nothing was learned" if best >= chance else level
