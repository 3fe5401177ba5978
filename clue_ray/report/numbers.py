"""Numbers as a reader wants them: three significant digits, 1.2e12 FLOP, thousands separators, 3.4
min.

Takes numbers as they stand in tables (None and NaN included), gives short strings. One idea:
rounding happens here, once, and nowhere else in the report.
"""

import math
from typing import Any

from clue_ray.scaling.answering import sentences as words

ABSENT = "–"  # noqa: RUF001  (an en dash, the typographic sign for "no value")


MOST_LETTERS = 40
"""Letters of a name that a sentence has room for."""
LABEL_LETTERS = 18
"""Letters of a name that a figure has room for beside its axes."""


def shortened(name: str, most: int = MOST_LETTERS) -> str:
    """Cut a name to `most` letters, the last an ellipsis."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def is_absent(value: Any) -> bool:
    """Say whether a table cell holds no value: None, NaN, infinity, or pandas' missing marker."""
    if value is None or value != value or type(value).__name__ in {"NAType", "NaTType"}:
        return True
    return isinstance(value, float) and math.isinf(value)


def significant(value: Any, digits: int = 3) -> str:
    """Write a number with `digits` significant digits, keeping trailing zeros: 5.10, 0.0120,
    1,230.
    """
    if is_absent(value):
        return ABSENT
    number = float(value)
    if number == 0:
        return "0"
    rounded = float(f"{number:.{digits - 1}e}")
    magnitude = math.floor(math.log10(abs(rounded)))
    if magnitude < -4 or magnitude > 8:
        return (
            f"{number:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
        )
    return f"{rounded:,.{max(0, digits - 1 - magnitude)}f}"


def flop(value: Any) -> str:
    """Write a number of FLOP with two digits and an exponent: 1.2e12."""
    return ABSENT if is_absent(value) else words.flop(float(value))


def count(value: Any) -> str:
    """Write a whole number with thousands separators: 12,345."""
    return ABSENT if is_absent(value) else f"{round(float(value)):,}"


def compact(value: Any) -> str:
    """Write a number in as few letters as a plot allows: 32, 1.5k, 50k, 2M; text stays text,
    shortened.
    """
    if isinstance(value, str) or is_absent(value):
        return shortened(value, LABEL_LETTERS) if isinstance(value, str) else ABSENT
    number = float(value)
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{float(f'{number / size:.2e}'):g}{letter}"
    return f"{number:g}"


def percent(value: Any) -> str:
    """Write a fraction as a percentage with two significant digits: 0.20%, 8.4%, 94%, 100%."""
    if is_absent(value):
        return ABSENT
    return f"{100 * value:.0f}%" if abs(value) >= 0.995 else f"{significant(100 * value, 2)}%"


def signed(value: Any) -> str:
    """Write a signed number with two significant digits: +0.053 or, with a true minus sign,
    \N{MINUS SIGN}0.053.
    """
    if is_absent(value):
        return ABSENT
    return ("+" if value >= 0 else "\N{MINUS SIGN}") + significant(abs(value), 2)


def signed_percent(value: Any) -> str:
    """Format a signed fraction as a percentage with a true minus sign: +0.84%."""
    if is_absent(value):
        return ABSENT
    return ("+" if value >= 0 else "\N{MINUS SIGN}") + percent(abs(value))


def seconds(value: Any) -> str:
    """Write a duration in the unit that reads best: 12 s, 3.4 min, 2.1 h."""
    if is_absent(value):
        return ABSENT
    duration = float(value)
    if duration < 60:
        return f"{significant(duration, 2)} s"
    if duration < 3600:
        return f"{significant(duration / 60, 2)} min"
    return f"{significant(duration / 3600, 3 if duration >= 36000 else 2)} h"


def interval(value: Any, low: Any, high: Any) -> str:
    """Write an estimate and its 95% interval: 5.10 [5.02, 5.17]; ends no data bound are named."""
    if is_absent(value):
        return ABSENT
    if is_absent(low) and is_absent(high):
        return f"{significant(value)} [unbounded]"
    ends = ("unbounded" if is_absent(end) else significant(end) for end in (low, high))
    return f"{significant(value)} [{', '.join(ends)}]"


def decade(value: float) -> str:
    """Write a power of ten for an axis tick, with raised digits: 10¹²; other numbers compactly."""
    exponent = math.log10(value) if value > 0 else math.nan
    if not math.isfinite(exponent) or abs(exponent - round(exponent)) > 1e-6:
        return compact(value)
    return "10" + str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
