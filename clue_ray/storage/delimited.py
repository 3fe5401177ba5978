"""Find the separator of a CSV file in its first line."""

import csv
import re
from collections.abc import Collection

SEPARATORS = (",", ";", "\t", "|", "\x01")
"""In the order of preference; the last one is Hive's."""
DECIMAL_COMMA = r"[+-]?\d+(,\d+)?([eE][+-]?\d+)?"
"""A number as spreadsheets of many countries write it to files that commas do not separate."""
NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar", "\x01": "\\x01"}
"""How a separator is called in messages."""


def find_separator(header: str, wanted: Collection[str] = ()) -> str:
    """Return the separator that divides a header into most wanted names, or into most names."""

    def score(separator: str) -> tuple[int, int]:
        names = split_header(header, separator)
        return len(set(names) & set(wanted)), len(names)

    return max(SEPARATORS, key=score)  # the first of equals


def split_header(header: str, separator: str) -> list[str]:
    """Split a header into the names of its columns."""
    try:
        rows = list(csv.reader([header], delimiter=separator))
    except csv.Error:
        rows = [header.split(separator)]
    return [name.strip() for name in rows[0]] if rows else []


def declared_separator(line: str) -> str | None:
    """Return the separator that a first line such as `sep=;` declares, as Excel writes it."""
    found = re.fullmatch(r'"?sep=(.)"?\s*', line)
    return found[1] if found else None
