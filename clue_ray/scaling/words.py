"""Numbers and lists as sentences say them: 3.3e12 FLOP, 58 times, five, a, b and c.

Takes values, gives short strings. The one idea: the answer and the warnings round in one place.
"""

from collections.abc import Sequence

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def flop(value: float) -> str:
    """Write a number of FLOP with two digits and an exponent: 3.3e12."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def times(ratio: float) -> str:
    """Write a ratio for `... times more`: 58, 5.8, 1,200."""
    return f"{ratio:.2g}" if ratio < 10 else f"{float(f'{ratio:.2g}'):,.0f}"


def number(count: int) -> str:
    """Write a small count as a word."""
    return NUMBERS[count] if count < len(NUMBERS) else f"{count:,}"


def listing(parts: Sequence[str]) -> str:
    """Join words by commas and a last `and`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def span(low: float | None, high: float | None) -> str:
    """Write a 95 % interval of a loss in nats; ends that no data bound are named."""
    if low is None and high is None:
        return "95 % unbounded"
    if low is None:
        return f"95 % below {high:.2f}"
    return f"95 % above {low:.2f}" if high is None else f"95 % {low:.2f} to {high:.2f}"
