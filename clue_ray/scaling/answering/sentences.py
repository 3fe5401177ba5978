"""Write the answer of a study in a few plain sentences.

The answer states what was measured first, then what is predicted: the value, its interval, the
backtest error of the law and the spread over the other laws. The helpers for numbers and lists are
shared with the warnings and the report, so that all of them round alike.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from clue_ray.scaling.judging.backtest import LOOK_AHEAD
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


def predicted(rows: list[dict[str, Any]], points: pd.DataFrame) -> str:
    """Describe the prediction at `LOOK_AHEAD` times the compute, and the error in the backtest."""
    row, largest = rows[0], float(points["train_flops"].max())
    best = points.sort_values(["loss", "train_flops"]).iloc[0]
    law, budget = law_words(row["law"]), flop(LOOK_AHEAD * largest)
    if row["loss_at_10x"] is None:
        return (
            f"The {law} is not positive at {budget} FLOP, so it predicts no loss there; fit "
            "another law."
        )
    base = "compute" if best["train_flops"] == largest else "largest compute"
    ends = _ends(row["loss_at_10x_low"], row["loss_at_10x_high"])
    return (
        f"At ten times the {base}, {budget} FLOP, the {law} predicts {row['loss_at_10x']:.2f} nats "
        f"(95 % interval: {ends}). Its mean absolute error on larger runs in the backtest was "
        f"{row['backtest_error_nats']:.3f} nats.{_rivals(rows)}"
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


def _ends(low: float | None, high: float | None) -> str:
    """Format the ends of an interval in nats; None is an end that the data do not bound."""
    if low is None and high is None:
        return "unbounded"
    if low is None:
        return f"below {high:.2f}"
    return f"above {low:.2f}" if high is None else f"{low:.2f} to {high:.2f}"


def _rivals(rows: list[dict[str, Any]]) -> str:
    """Describe the spread of all predictions, and the intervals of the equally good laws.

    The choice of the law is often a larger uncertainty than the interval of one law.
    """
    ahead = [row for row in rows if row["loss_at_10x"] is not None]
    if len(ahead) < 2:
        return ""
    values = [row["loss_at_10x"] for row in ahead]
    spread = (
        f" The {number(len(values))} fitted laws predict {min(values):.2f} to {max(values):.2f}"
    )
    level = [row for row in ahead if row["as_good"]]
    if len(level) < 2:
        return f"{spread}."
    lows, highs = ([row[f"loss_at_10x_{end}"] for row in level] for end in ("low", "high"))
    ends = _ends(None if None in lows else min(lows), None if None in highs else max(highs))
    return (
        f"{spread}; the union of the 95 % intervals of the laws with indistinguishable backtest "
        f"error is {ends}."
    )
