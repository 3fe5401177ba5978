"""Checks of the fields that say where logs are and how they are written."""

import re
from datetime import UTC, datetime
from typing import Any

from clue_ray.spec.yaml import Spec

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


def logs_by_service(events: Any) -> Any:
    """Return the given logs, each log of a mapping from service to files as a document.

    Raises:
        ValueError: no files are given, or a service has no name.
    """
    if isinstance(events, dict) and events:
        unnamed = [name for name in events if not str(name).strip()]
        if unnamed:
            raise ValueError(f"names a service {unnamed[0]!r}; give it a name")
        return {
            name: log if isinstance(log, dict | Spec) else {"events": log}
            for name, log in events.items()
        }
    if not events or not isinstance(events, str | list | tuple):
        raise ValueError(
            f"is {events!r}; give files, folders, globs or URIs, or a mapping from service to these"
        )
    return events
