"""Format numbers for reading: three significant digits, 1.2e12 FLOP, 12,345, 3.4 min.

The functions accept the values of a table, including None and NaN. The report rounds only here, so
that a number has the same digits wherever it is shown.
"""

import math
from typing import Any

from clue_ray.scaling.answering import sentences

ABSENT = "–"  # noqa: RUF001  (an en dash, the typographic sign for "no value")
MOST_LETTERS = 40
"""Length of a name in a sentence."""
LABEL_LETTERS = 18
"""Length of a name next to the axes of a figure."""


def shortened(name: str, most: int = MOST_LETTERS) -> str:
    """Truncate a name to `most` characters, the last one an ellipsis."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def is_absent(value: Any) -> bool:
    """Return whether a table cell has no value: None, NaN, infinity or the missing value of pandas.

    The last is recognised by its type's name, because comparing it raises an error.
    """
    if value is None or value != value or type(value).__name__ in {"NAType", "NaTType"}:
        return True
    return isinstance(value, float) and math.isinf(value)


def significant(value: Any, digits: int = 3) -> str:
    """Format a number with `digits` significant digits and trailing zeros: 5.10, 0.0120, 1,230."""
    if is_absent(value):
        return ABSENT
    number = float(value)
    if number == 0:
        return "0"
    rounded = float(f"{number:.{digits - 1}e}")  # first, because 9.999 gains a digit
    magnitude = math.floor(math.log10(abs(rounded)))
    if magnitude < -4 or magnitude > 8:
        return (
            f"{number:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
        )
    return f"{rounded:,.{max(0, digits - 1 - magnitude)}f}"


def flop(value: Any) -> str:
    """Format a number of FLOP with two digits and an exponent: 1.2e12."""
    return ABSENT if is_absent(value) else sentences.flop(float(value))


def count(value: Any) -> str:
    """Format a whole number with thousands separators: 12,345."""
    return ABSENT if is_absent(value) else f"{round(float(value)):,}"


def plain(value: Any) -> str:
    """Format any value for a terminal: whole numbers with separators, others with four digits."""
    if isinstance(value, float):
        if value != value:
            return ""
        return f"{value:.3g}" if value >= 1e5 or value < 0.01 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def compact(value: Any) -> str:
    """Format a number for a plot: 32, 1.5k, 50k, 2M; text is only shortened."""
    if isinstance(value, str) or is_absent(value):
        return shortened(value, LABEL_LETTERS) if isinstance(value, str) else ABSENT
    number = float(value)
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{float(f'{number / size:.2e}'):g}{letter}"
    return f"{number:g}"


def percent(value: Any) -> str:
    """Format a fraction as a percentage with two significant digits: 0.20%, 8.4%, 94%, 100%."""
    if is_absent(value):
        return ABSENT
    return f"{100 * value:.0f}%" if abs(value) >= 0.995 else f"{significant(100 * value, 2)}%"


def share_percent(part: float) -> str:
    """Format a share as a percentage; only all is 100%, and only nothing is 0%."""
    return ">99%" if 0.995 <= part < 1 else "<0.01%" if 0 < part < 1e-4 else percent(part)


def signed(value: Any) -> str:
    """Format a signed number with two significant digits and a true minus sign: +0.053."""
    if is_absent(value):
        return ABSENT
    return ("+" if value >= 0 else "\N{MINUS SIGN}") + significant(abs(value), 2)


def signed_percent(value: Any) -> str:
    """Format a signed fraction as a percentage with a true minus sign: +0.84%."""
    if is_absent(value):
        return ABSENT
    return ("+" if value >= 0 else "\N{MINUS SIGN}") + percent(abs(value))


def seconds(value: Any) -> str:
    """Format a duration in seconds in a suitable unit: 12 s, 3.4 min, 2.1 h."""
    if is_absent(value):
        return ABSENT
    duration = float(value)
    if duration < 60:
        return f"{significant(duration, 2)} s"
    if duration < 3600:
        return f"{significant(duration / 60, 2)} min"
    return f"{significant(duration / 3600, 3 if duration >= 36000 else 2)} h"


def interval(value: Any, low: Any, high: Any) -> str:
    """Format an estimate and its 95% interval: 5.10 [5.02, 5.17], 5.10 [5.02, unbounded]."""
    if is_absent(value):
        return ABSENT
    if is_absent(low) and is_absent(high):
        return f"{significant(value)} [unbounded]"
    ends = ("unbounded" if is_absent(end) else significant(end) for end in (low, high))
    return f"{significant(value)} [{', '.join(ends)}]"


def decade(value: float) -> str:
    """Format a power of ten for an axis tick, 10¹²; other numbers compactly."""
    exponent = math.log10(value) if value > 0 else math.nan
    if not math.isfinite(exponent) or abs(exponent - round(exponent)) > 1e-6:
        return compact(value)
    return "10" + str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
