"""What a number is: any numeric type, or text that is a number whatever the language.

`100,008` and `1,234.5` are numbers with separated thousands. `1,5` is not read: it is one and a
half in one country and an error in another. `007` is a code, not a number.
"""

import re
from collections.abc import Sequence

NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d*|[1-9]\d{0,2}(?:,\d{3})+)?(?:\.\d*)?(?:[eE][+-]?\d+)?")
MOSTLY = 0.9
"""Share of numbers above which a column is one of numbers with exceptions."""


def as_number(text: str) -> float | None:
    """Return the number that a text means, or None if it means none."""
    stripped = text.strip()
    if not NUMBER.fullmatch(stripped):
        return None
    try:
        return float(stripped.replace(",", ""))
    except ValueError:
        return None


def find_exception(texts: Sequence[str]) -> str | None:
    """Return the first text that is not a number in a column of almost nothing but numbers."""
    odd = [text for text in texts if as_number(text) is None]
    return odd[0] if odd and len(odd) <= (1 - MOSTLY) * len(texts) else None
