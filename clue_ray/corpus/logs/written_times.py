"""Parse one written time: the unambiguous forms of databases, mail and server logs.

A form is read only if it can mean one time: the month has a name, or the year comes first. So
03/04/2023 is not read here. Years may lie outside those that pandas or datetime can hold.
"""

import json
import re
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MAIL_ZONES = {
    "EST": -5,
    "EDT": -4,
    "CST": -6,
    "CDT": -5,
    "MST": -7,
    "MDT": -6,
    "PST": -8,
    "PDT": -7,
}
"""Hours from UTC of the zones that RFC 2822 defines; they count only with a month's name."""
YEAR, DAY = r"(?P<year>\d{4})", r"(?P<day>\d{1,2})"
NAME = r"(?P<name>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)(?:[a-z]+\.?|\.)?"
DATES = (
    r"(?P<year>[+-]\d{4,6}|\d{4})(?P<mark>[-/.])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})",
    rf"{YEAR}(?P<month>\d\d)(?P<day>\d\d)(?=T|$)",
    rf"{YEAR}-(?P<yearday>\d{{3}})",
    rf"{YEAR}-?W(?P<week>\d\d)-?(?P<weekday>[1-7])",
    rf"{DAY}(?:st|nd|rd|th)?(?:[-/ .]|, )?{NAME}(?:[-/ .]|, )?{YEAR}",
    rf"{NAME} {DAY}(?:st|nd|rd|th)?,? {YEAR}",
    rf"{YEAR}[-/ ]?{NAME}[-/ ]?{DAY}",
)
TIME = (
    r"(?:(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d+))?)?"
    r"|(?P<hour2>\d\d)(?P<minute2>\d\d)(?:(?P<second2>\d\d)(?:[.,](?P<fraction2>\d+))?)?)"
    r" ?(?P<half>[ap]\.?m\.?(?![a-z]))?"
)
ZONE = (
    r"(?:\[?(?:UTC|GMT|UT|Z)\]?)?(?P<offset> ?[+-]\d{1,2}(?::?\d\d(?::?\d\d)?)?)?"
    r" ?(?P<area>\[?[a-z_]+(?:/[a-z0-9_+-]+)+\]?)?(?P<mail> ?[ECMP][SD]T)?"
    r"(?: ?\[?(?:UTC|GMT|Z)\]?)?(?: ?\([^()]*\))?(?: m=[+-][\d.]+)?"
)
PATTERNS = [
    re.compile(rf"{day}(?:(?:T|[ ,:@]| at | @ |, )\s?{TIME}\s?{ZONE})?", re.IGNORECASE)
    for day in DATES
]
WEEKDAY = re.compile(r"^(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,? ?(?=[\da-z])", re.IGNORECASE)
YEAR_LAST = re.compile(
    rf"^({NAME} \d{{1,2}}),? ([\d:.]+)((?: [A-Z+-][A-Z0-9:+-]*)?) (\d{{4}})$", re.I
)
"""The order of C's asctime and of Unix's date: Nov 14 22:13:20 UTC 2023."""
MILLISECONDS = re.compile(r"/Date\((-?\d+)(?:[+-]\d{4})?\)/")
"""Dates of .NET's older JSON."""


def parse_time(text: str) -> float | None:
    """Return the seconds since 1970 of a written time, or None if it cannot be read."""
    text = " ".join(text.split())
    if text.startswith("{"):
        return _parse_mongo(text)
    if found := MILLISECONDS.fullmatch(text):
        return int(found[1]) / 1000
    text = text.strip("\"'")
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    text = WEEKDAY.sub("", text)
    text = YEAR_LAST.sub(r"\1 \5 \3\4", text)
    for pattern in PATTERNS:
        if found := pattern.fullmatch(text):
            return _seconds(found.groupdict())
    return None


def _parse_mongo(text: str) -> float | None:
    """Read MongoDB's {"$date": ...}: ISO 8601, or milliseconds whatever their size."""
    try:
        value: Any = json.loads(text)["$date"]
        if isinstance(value, dict):
            value = int(value["$numberLong"])
    except (ValueError, KeyError, TypeError):
        return None
    if isinstance(value, str):
        return parse_time(value)
    return value / 1000 if isinstance(value, int | float) else None


def _seconds(part: dict[str, str | None]) -> float | None:
    """Return the seconds since 1970 of a match, or None if there is no such date or time."""
    try:
        days = _days(part)
        clock = _clock(part)
        local = days * 86_400 + clock
        seconds = local - _offset(part, local)
    except (ValueError, KeyError, OSError, OverflowError):  # no such day, time or zone
        return None
    fraction = part.get("fraction") or part.get("fraction2")
    return float(seconds) + (float(f"0.{fraction}") if fraction else 0.0)


def _days(part: dict[str, str | None]) -> int:
    """Return the days since 1970 of a date, in the Gregorian calendar of any year."""
    year = int(part["year"] or 0)
    like = 2000 + year % 400  # the calendar repeats itself after 400 years
    if yearday := part.get("yearday"):
        start = date(like, 1, 1)
        if not 1 <= int(yearday) <= (date(like, 12, 31) - start).days + 1:
            raise ValueError(yearday)
        day = start.toordinal() + int(yearday) - 1
    elif week := part.get("week"):
        day = date.fromisocalendar(like, int(week), int(part["weekday"] or 1)).toordinal()
    else:
        name = part.get("name")
        month = MONTHS.index(name.lower()) + 1 if name else int(part["month"] or 0)
        day = date(like, month, int(part["day"] or 0)).toordinal()
    return day - date(1970, 1, 1).toordinal() + (year - like) // 400 * 146_097


def _clock(part: dict[str, str | None]) -> int:
    """Return the seconds since midnight; 24:00:00 is the next midnight, 60 a leap second."""
    hour, minute, second = (
        int(part.get(name) or part.get(f"{name}2") or 0) for name in ("hour", "minute", "second")
    )
    if half := part.get("half"):
        if not 1 <= hour <= 12:
            raise ValueError(hour)
        hour = hour % 12 + (12 if half[0] in "pP" else 0)
    clock = hour * 3600 + minute * 60 + second
    if hour > 24 or minute > 59 or second > 60 or clock > 86_400:
        raise ValueError(clock)
    return clock


def _offset(part: dict[str, str | None], local: int) -> int:
    """Return the seconds that a zone is ahead of UTC; an offset counts before a name."""
    if offset := (part.get("offset") or "").strip():
        digits = offset[1:].replace(":", "")
        digits = digits.zfill(2) if len(digits) < 3 else digits.zfill(len(digits) + len(digits) % 2)
        hours, minutes, seconds = (int(digits[i : i + 2] or 0) for i in (0, 2, 4))
        if hours > 18 or minutes > 59 or seconds > 59:
            raise ValueError(offset)
        return (hours * 3600 + minutes * 60 + seconds) * (-1 if offset[0] == "-" else 1)
    if area := part.get("area"):
        there = datetime(1970, 1, 1, tzinfo=ZoneInfo(area.strip("[]")))
        shift = (there + timedelta(seconds=local)).utcoffset()
        return int(shift.total_seconds()) if shift else 0
    if mail := (part.get("mail") or "").strip().upper():
        if not part.get("name"):
            raise ValueError(mail)
        return MAIL_ZONES[mail] * 3600
    return 0
