"""Check event logs before a corpus is built: read a sample of each file, without Ray.

The sample goes through the same code as preparation, so that what it shows is what will be read.
"""

import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clue_ray.corpus.logs.catalogue import load_catalogues
from clue_ray.corpus.logs.encoding import kind_of
from clue_ray.corpus.logs.reading import Batch, Part, Reading, plan_reading, read_part
from clue_ray.corpus.logs.schema import UNREAD_TIME, Log, good_rows, normalise, template_fields
from clue_ray.corpus.logs.table import LINE
from clue_ray.corpus.logs.times import EARLIEST_DATE, explain_unread
from clue_ray.spec.specs import CorpusSpec

MOST_FILES, MOST_ROWS = 20, 20_000
"""Files of all logs together, and rows of each of them, that are read."""
FIRST_ROWS = 5
EXAMPLES = 3
LONGEST_VALUE = 120
"""Characters of a value that are shown."""


@dataclass
class LogCheck:
    """What a sample shows of a log.

    Attributes:
        columns: what each column is taken for, its kinds of values, and examples as written.
        first_rows: the first usable rows as they will be read.
        rejected: reason -> number of rows, and the file, row (from 0) and content of the first one.
    """

    files: int
    sampled_files: int = 0
    rows: int = 0
    events: int = 0
    omitted: int = 0
    "rows of services that the spec leaves out"
    latest: float | None = None
    "the last time of an event, in seconds since 1970; None without timestamps"
    columns: list[dict[str, Any]] = field(default_factory=list)
    services: dict[str, int] = field(default_factory=dict)
    first_rows: list[dict[str, Any]] = field(default_factory=list)
    rejected: dict[str, dict[str, Any]] = field(default_factory=dict)
    unread_times: list[str] = field(default_factory=list)
    "up to three timestamps that cannot be read"
    literal: int = 0
    "lines of CSV with a misplaced quote"
    recoded: int = 0
    "values that are not UTF-8"


@dataclass
class Check:
    """What a sample shows of all logs of a corpus; `warnings` are full sentences."""

    logs: list[LogCheck]
    separators: dict[str, int]
    empty_files: list[str]
    other_files: list[str]
    warnings: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return the check as values of JSON."""
        return asdict(self)


def check_events(spec: CorpusSpec) -> Check:
    """Read a sample of each log of a corpus; nothing is written.

    Raises:
        EventLogError: a file cannot be read or lacks a column, or all files are empty.
    """
    reading = load_catalogues(plan_reading(spec, sample=True))
    logs = [_check_log(reading, index) for index in range(len(reading.logs))]
    return Check(
        logs,
        dict(reading.separators),
        list(reading.empty_files),
        list(reading.other_files),
        _find_warnings(logs, spec),
    )


def _check_log(reading: Reading, index: int) -> LogCheck:
    """Read a sample of one log."""
    log = reading.logs[index]
    # The parts of a file are in order, so the first one seen has the file's first rows.
    first = {part.number: part for part in reversed(reading.parts) if part.log == index}
    parts = [first[number] for number in sorted(first)]
    check = LogCheck(files=len(parts))
    tables = []
    for part in _spread(parts, max(1, MOST_FILES // len(reading.logs))):
        check.sampled_files += 1
        for batch in _read_start(part, log):
            tables += [batch.table] if batch.table.num_rows else []
            _add_rows(check, part, batch, log, reading.spec)
    check.columns = _describe_columns(log, tables)
    return check


def _spread(parts: list[Part], most: int) -> list[Part]:
    """Select parts at equal distances, the first and the last included."""
    if len(parts) <= most:
        return parts
    return [parts[place] for place in np.linspace(0, len(parts) - 1, most).round().astype(int)]


def _read_start(part: Part, log: Log) -> Iterator[Batch]:
    """Yield the first rows of a part."""
    left = MOST_ROWS
    with closing(read_part(part, log)) as batches:  # type: ignore[type-var]  # generator
        for batch in batches:
            table = batch.table.slice(0, left)
            yield replace(batch, table=table)
            left -= table.num_rows
            if left <= 0:
                return


def _add_rows(check: LogCheck, part: Part, batch: Batch, log: Log, spec: CorpusSpec) -> None:
    """Add consecutive rows of a file to the check of its log."""
    table, first_row = batch.table, batch.first_row
    rows = normalise(table, log, spec, file=part.number, first_row=first_row)
    good = good_rows(rows)
    check.rows += table.num_rows
    check.events += good.num_rows
    check.omitted += table.num_rows - rows.num_rows
    check.literal += batch.literal
    check.recoded += batch.recoded
    if log.has_time and good.num_rows:
        check.latest = max(check.latest or 0.0, pc.max(good["timestamp"]).as_py())
    for count in pc.value_counts(good["service"]).to_pylist():
        name = count["values"]
        check.services[name] = check.services.get(name, 0) + count["counts"]
    missing = FIRST_ROWS - len(check.first_rows)
    check.first_rows += [_as_read(row, log) for row in good.slice(0, missing).to_pylist()]
    bad = rows.filter(pc.is_valid(rows["reason"]))
    _add_rejected(check, part, batch, bad)
    if log.has_time:
        unread = bad.filter(pc.match_substring_regex(bad["reason"], UNREAD_TIME))["row"]
        times = table[log.column("timestamp")].take(pc.subtract(unread, first_row)).drop_null()
        found = [*check.unread_times, *filter(None, map(_short, times.to_pylist()))]
        check.unread_times = list(dict.fromkeys(found))[:EXAMPLES]


def _add_rejected(check: LogCheck, part: Part, batch: Batch, bad: pa.Table) -> None:
    """Count rows by their reason, with the place and content of the first one."""
    for reason, row in zip(bad["reason"].to_pylist(), bad["row"].to_pylist(), strict=True):
        found = check.rejected.get(reason)
        if found is None:
            content = _as_written(batch.table.slice(row - batch.first_row, 1).to_pylist()[0])
            found = {"rows": 0, "file": str(part.file), "row": row, "content": content}
            check.rejected[reason] = found
        found["rows"] += 1


def _as_read(row: dict[str, Any], log: Log) -> dict[str, Any]:
    """Return a normalised row with its time as a date, or as its place in the log."""
    read = {name: row[name] for name in ("user_id", "service", "timestamp", "text")}
    read["text"] = _short(read["text"])
    if not log.has_time:
        read["timestamp"] = None
    elif read["timestamp"] >= EARLIEST_DATE:
        read["timestamp"] = f"{np.datetime64(int(read['timestamp'] * 1000), 'ms')}Z"
    return read


def _as_written(row: dict[str, Any]) -> str:
    """Return the beginning of a row as it is in the file: its line, or its needed columns."""
    line = row.get(LINE)
    values = [f"{name}={_short(value)}" for name, value in row.items() if "clue_ray." not in name]
    return _short(line) if line is not None else ", ".join(values)


def _short(value: Any) -> str:
    """Format a value, cut where it is long; null is null, and 16 bytes are a UUID."""
    if isinstance(value, bytes) and len(value) == 16:
        value = uuid.UUID(bytes=value)
    text = "null" if value is None else str(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def _describe_columns(log: Log, tables: list[pa.Table]) -> list[dict[str, Any]]:
    """List what each column of a log is taken for; roles without a column are listed too."""
    taken_for: dict[str, list[str]] = {column: [] for column in log.needed}
    for role in log.roles:
        taken_for[log.column(role)].append(role)
    for name in dict.fromkeys(template_fields(log.text)):
        taken_for[log.source(name)].append("text" if log.text == "{text}" else f"text {log.text}")
    described = [
        {"column": column, "taken_for": ", ".join(roles), **_describe_values(column, tables)}
        for column, roles in taken_for.items()
    ]
    absent = {}
    if log.service is not None:
        absent["service"] = f"{log.service!r} for all events"
    if not log.has_time:
        absent["timestamp"] = "order of appearance"
    return described + [
        {"column": None, "taken_for": role, "holds": what, "examples": []}
        for role, what in absent.items()
    ]


def _describe_values(column: str, tables: list[pa.Table]) -> dict[str, Any]:
    """Return the kinds of values of a column over all files, and some as they are written."""
    having = [table[column] for table in tables if column in table.column_names]
    kinds = {kind_of(values.type) for values in having}
    examples = dict.fromkeys(
        _short(value) for values in having for value in values.drop_null()[:100].to_pylist()
    )
    return {
        "holds": ", ".join(sorted(kinds - {"unknown"} or kinds)) or "nothing",
        "examples": list(examples)[:EXAMPLES],
    }


def _find_warnings(logs: list[LogCheck], spec: CorpusSpec) -> list[str]:
    """List what would stop the preparation if all rows were like the sample, and doubtful times."""
    early = [log.latest for log in logs if log.latest is not None and log.latest < EARLIEST_DATE]
    doubts = [
        f"The times of a log are numbers up to {latest:,.0f}, too small for times since 1980, and "
        "are taken for an order; if they are days or another count, convert them to ISO 8601."
        for latest in early
    ]
    unread = [f"{explain_unread(log.unread_times)}." for log in logs if log.unread_times]
    return [*_find_faults(logs, spec), *unread, *doubts]


def _find_faults(logs: list[LogCheck], spec: CorpusSpec) -> list[str]:
    """List what would stop the preparation if all rows were like the sample."""
    rows = sum(log.rows - log.omitted for log in logs)
    rejected = rows - sum(log.events for log in logs)
    if rejected and rejected == rows:
        return ["No row of the sample can be used; see the reasons."]
    if rejected > spec.max_rejected * rows:
        return [
            f"{rejected / rows:.1%} of the sampled rows would be rejected, and preparation stops "
            f"above max_rejected = {spec.max_rejected:.1%}; fix the log or its options first."
        ]
    return []
