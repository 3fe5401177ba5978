"""Write the answer of a study in a few plain sentences.

The answer states what was measured first, then what is forecast: the value, its interval, how far
beyond the runs, and how such forecasts fared. The helpers for numbers and lists are
shared with the warnings and the report, so that all of them round alike.
"""

from collections.abc import Sequence

import pandas as pd

from clue_ray.scaling.forecasting.forecast import Forecast
from clue_ray.scaling.laws.catalogue import LAWS
from clue_ray.spec.columns import in_unit, noun, short_label

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def measured(points: pd.DataFrame, candidates: int | None, chance: float | None) -> str:
    """Describe how far compute lowered the measured loss, from the cheapest run to the best.

    Both are on the frontier: a poor cheap run next to a good one would make compute seem to help
    more than it does.
    """
    cheapest = points[points["frontier"]].sort_values(["train_flops", "loss"]).iloc[0]
    best = points.sort_values(["loss", "train_flops"]).iloc[0]
    level = _chance_level(float(best["loss"]), candidates, chance)
    more = best["train_flops"] / cheapest["train_flops"]
    if more <= 1:
        beyond = _times(float(points["train_flops"].max()) / best["train_flops"])
        return (
            f"The lowest {short_label('loss')}, {loss_words(best['loss'])}, was reached with the "
            f"least {noun('train_flops')}, {flop_words(best['train_flops'])}{level}; {beyond} "
            f"times more {noun('train_flops')} did not lower it."
        )
    return (
        f"{_times(more)} times more {noun('train_flops')}, {flop(best['train_flops'])} instead of "
        f"{flop_words(cheapest['train_flops'])}, lowered the {short_label('loss')} from "
        f"{_digits(cheapest['loss'], 3)} to {loss_words(best['loss'])}{level}."
    )


def few(count: int, what: str, one: str, more: str) -> str:
    """Begin a sentence with too small a number: No run lies, Only 1 run lies, Only 2 runs lie.

    Args:
        one, more: the verb of one and of several.
    """
    if count > 1:
        return f"Only {count} {what}s {more}"
    return f"Only 1 {what} {one}" if count else f"No {what} {one}"


def lowest(points: pd.DataFrame, candidates: int | None, chance: float | None) -> str:
    """Describe the lowest loss, without a cause: the sentence where no law is preferred."""
    best = float(points["loss"].min())
    level = _chance_level(best, candidates, chance)
    runs = f"of {len(points)} runs" if len(points) > 1 else "is that of the only run:"
    verb = " is" if len(points) > 1 else ""
    return f"The lowest {short_label('loss')} {runs}{verb} {loss_words(best)}{level}."


def forecasted(forecast: Forecast) -> str:
    """State the forecast, its 80 % interval, its reach, and how such forecasts fared."""
    low, high = forecast.interval(0.8)
    return (
        f"At {flop_words(forecast.at)}, {_times(forecast.reach)} times the {noun('train_flops')} "
        f"of the largest run on the frontier, the {noun('loss')} is forecast to be "
        f"{loss_words(forecast.value, 2)} (80 % interval: {_digits(low, 2)} to "
        f"{_digits(high, 2)}). {forecast.record()}"
    )


def law_words(law: str) -> str:
    """Format the name of a law for a sentence."""
    return LAWS[law].words


def flop(value: float) -> str:
    """Format a number of FLOP with two digits and an exponent: 3.3e12."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def flop_words(value: float) -> str:
    """Format a compute with its unit: 3.3e12 FLOP."""
    return f"{flop(value)}{in_unit('train_flops')}"


def loss_words(value: float, digits: int = 3) -> str:
    """Format a loss with its unit and so many decimals: 4.924 nats."""
    return f"{_digits(value, digits)}{in_unit('loss')}"


def _digits(value: float, digits: int) -> str:
    """Format a number with decimals, a small one with as many significant digits."""
    return f"{value:.{digits}f}" if value >= 0.1 else f"{value:.{digits}g}"


def number(count: int) -> str:
    """Format a count, a small one as a word."""
    return NUMBERS[count] if count < len(NUMBERS) else f"{count:,}"


def listing(parts: Sequence[str]) -> str:
    """Join words by commas and a last `and`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _times(ratio: float) -> str:
    """Format a ratio for `... times more`: 58, 5.8, 1,200."""
    return f"{ratio:.2g}" if ratio < 10 else f"{float(f'{ratio:.2g}'):,.0f}"


def _chance_level(best: float, candidates: int | None, chance: float | None) -> str:
    """State the chance level, where it is known, and that nothing was learned at or above it."""
    if chance is None:
        return ""
    level = f"chance: ln {candidates} = {chance:.3f}" if candidates else f"chance: {chance:.3g}"
    return f" ({level}, so nothing was learned)" if best >= chance else f" ({level})"
