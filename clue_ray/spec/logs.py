"""Checks of the fields that say how a log is written."""

import re
from datetime import UTC, datetime

EXAMPLE_TIME = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


def check_timestamp_format(pattern: str | None) -> str | None:
    """Check that a format of timestamps is one of strptime's and holds a date."""
    if pattern is None:
        return None
    try:
        found = datetime.strptime(EXAMPLE_TIME.strftime(pattern), pattern).date()
    except (ValueError, re.error):
        found = None
    if found != EXAMPLE_TIME.date():
        raise ValueError(
            f"is {pattern!r}, which does not describe a date; write it as in Python's strptime, "
            "such as '%d/%m/%Y %H:%M:%S' for 31/12/2023 23:59:59"
        )
    return pattern


def check_separator(separator: str | None) -> str | None:
    r"""Return the separator of columns as one character; tab may be written as \t or tab."""
    if separator is None:
        return None
    one = {"\\t": "\t", "tab": "\t"}.get(separator, separator)
    if len(one) != 1 or one.isalnum() or one in "\"'\r\n." or ord(one) > 127:
        raise ValueError(f"is {separator!r}; give one ASCII character such as ';' or '|', or 'tab'")
    return one
