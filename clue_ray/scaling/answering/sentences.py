"""Numbers and lists as sentences say them: 3.3e12 FLOP, 58 times, five, a, b and c.

Takes values, gives short strings. The one idea: the answer and the warnings round in one place.


The answer of a study in two or three plain sentences.

Takes the runs, the laws as tabulated and their backtest; gives text. The one idea: what was
measured comes first, then what is predicted, with its interval, the spread of rival laws and the
error made where it could be checked.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from clue_ray.scaling.judging.backtest import LOOK_AHEAD
from clue_ray.scaling.laws.catalogue import LAWS

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def flop(value: float) -> str:
    """Write a number of FLOP with two digits and an exponent: 3.3e12."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _times(ratio: float) -> str:
    """Write a ratio for `... times more`: 58, 5.8, 1,200."""
    return f"{ratio:.2g}" if ratio < 10 else f"{float(f'{ratio:.2g}'):,.0f}"


def number(count: int) -> str:
    """Write a small count as a word."""
    return NUMBERS[count] if count < len(NUMBERS) else f"{count:,}"


def listing(parts: Sequence[str]) -> str:
    """Join words by commas and a last `and`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _span(low: float | None, high: float | None) -> str:
    """Write a 95 % interval of a loss in nats; ends that no data bound are named."""
    if low is None and high is None:
        return "95 % unbounded"
    if low is None:
        return f"95 % below {high:.2f}"
    return f"95 % above {low:.2f}" if high is None else f"95 % {low:.2f} to {high:.2f}"


def measured(points: pd.DataFrame, candidates: int, chance: float) -> str:
    """Say how far compute lowered the measured loss, from the run with the least to the best."""
    cheapest = points.sort_values(["train_flops", "loss"]).iloc[0]
    best = points.sort_values(["loss", "train_flops"]).iloc[0]
    guess = f"a guess among {candidates} costs {chance:.3f}"
    if best["loss"] >= chance:
        guess += ", so nothing is learnt"
    more, largest = (
        best["train_flops"] / cheapest["train_flops"],
        float(points["train_flops"].max()),
    )
    if more <= 1:
        beyond = _times(largest / best["train_flops"])
        return (
            f"The lowest held-out loss, {best['loss']:.3f} nats, was reached with the least "
            f"compute, "
            f"{flop(best['train_flops'])} FLOP ({guess}); {beyond} times more did not lower it."
        )
    return (
        f"{_times(more)} times more compute, {flop(best['train_flops'])} instead of "
        f"{flop(cheapest['train_flops'])} "
        f"FLOP, lowered held-out loss from {cheapest['loss']:.3f} to {best['loss']:.3f} nats "
        f"({guess})."
    )


def lowest(points: pd.DataFrame, candidates: int, chance: float) -> str:
    """Say how low the runs came, and nothing of why: what is said where no law speaks."""
    best = float(points["loss"].min())
    guess = f"a guess among {candidates} costs {chance:.3f}" + (
        ", so nothing is learnt" if best >= chance else ""
    )
    return f"The lowest held-out loss of {len(points)} runs is {best:.3f} nats ({guess})."


def predicted(rows: list[dict[str, Any]], points: pd.DataFrame) -> str:
    """Say what the first law of the table predicts at `LOOK_AHEAD` times the compute, and how it fared
    before.
    """
    row, largest = rows[0], float(points["train_flops"].max())
    best = points.sort_values(["loss", "train_flops"]).iloc[0]
    more = "Ten times more" if best["train_flops"] == largest else "Ten times the largest compute"
    law = in_words(row["law"])
    if row["loss_at_10x"] is None:
        return f"The {law} cannot be extended to {flop(LOOK_AHEAD * largest)} FLOP; fit another law to predict further."
    ends = _span(row["loss_at_10x_low"], row["loss_at_10x_high"])
    return (
        f"{more}, {flop(LOOK_AHEAD * largest)} FLOP, is predicted to reach {row['loss_at_10x']:.2f} "
        f"nats ({ends}) "
        f"by the {law}, which missed larger runs by {row['backtest_error_nats']:.3f} nats on "
        f"average in the backtest"
        f"{_rivals(rows)}."
    )


def in_words(law: str) -> str:
    """Write a law's name as a sentence says it."""
    return LAWS[law].words


def _rivals(rows: list[dict[str, Any]]) -> str:
    """Give the range of all laws' predictions, and that of the intervals of those that are as good
    as the first.

    The choice of form is often the larger doubt.
    """
    ahead = [row for row in rows if row["loss_at_10x"] is not None]
    if len(ahead) < 2:
        return ""
    values = [row["loss_at_10x"] for row in ahead]
    said = f"; the {number(len(values))} laws fitted say {min(values):.2f} to {max(values):.2f}"
    level = [row for row in ahead if row["as_good"]]
    if len(level) < 2:
        return said
    lows, highs = ([row[f"loss_at_10x_{end}"] for row in level] for end in ("low", "high"))
    ends = _span(None if None in lows else min(lows), None if None in highs else max(highs))
    return f"{said}, those that the backtest cannot tell apart, with their intervals, {ends}"
