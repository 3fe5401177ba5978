"""Event logs: what their columns mean, and how rows of any shape become rows of one schema.

Takes tables as read; gives tables of EVENTS_SCHEMA, where `reason` names what is wrong with a row,
or is null for a good one. Bad rows are never dropped here: the caller keeps them aside.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clue_ray.corpus.logs.encoding import kind_of
from clue_ray.corpus.logs.times import as_seconds
from clue_ray.errors import EventLogError, nearest
from clue_ray.spec.specs import CorpusSpec

ROLES = ("user_id", "service", "timestamp")
LATEST = 4_102_444_800.0
"""The year 2100: a later time is a unit or a date misread."""
ROWS_PER_FILE = 2**32
"""Order of appearance is file number times this plus row number: exact in float64 for two million
files."""


KINDS = ("text", "whole numbers", "numbers", "times", "bool", "unknown")
"""What a needed column may hold."""


EVENTS_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("service", pa.string()),
        ("timestamp", pa.float64()),
        ("text", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Log:
    """One log of a corpus: where it lies and how its columns are named.

    Attributes:
        service: of every event, where the log has no column that names it.
        columns: the log's own name of each role, where it differs.
        has_time: whether events carry a time; else they count in order of appearance.
    """

    places: tuple[str, ...]
    service: str | None
    columns: dict[str, str]
    text: str
    has_time: bool = True

    def column(self, role: str) -> str:
        """Return the log's own name of a role."""
        return self.columns.get(role, role)

    def source(self, field: str) -> str:
        """Return the log's own name of a template's field: `text` may be renamed, other fields are
        the log's.
        """
        return self.column(field) if field == "text" else field

    @property
    def roles(self) -> list[str]:
        """List the roles that are read from a column."""
        absent = {"service"} if self.service is not None else set()
        return [
            role for role in ROLES if role not in absent and (role != "timestamp" or self.has_time)
        ]

    @property
    def needed(self) -> list[str]:
        """List the columns read from the log, each once, in a fixed order."""
        fields = [self.source(field) for field in template_fields(self.text)]
        return list(dict.fromkeys([*(self.column(role) for role in self.roles), *fields]))


def logs_of(spec: CorpusSpec) -> list[Log]:
    """List the logs of a corpus: one whose rows name their service, or one a service."""
    for role in spec.columns:
        _check_role(role)
    if not isinstance(spec.events, dict):
        return [Log(_as_tuple(spec.events), None, spec.columns, spec.text)]
    return [
        Log(
            _as_tuple(log.events),
            service.strip(),
            {**spec.columns, **(log.columns or {})},
            log.text or spec.text,
        )
        for service, log in spec.events.items()
        if spec.services is None or service in spec.services
    ]


def _as_tuple(places: str | Sequence[str]) -> tuple[str, ...]:
    return (places,) if isinstance(places, str) else tuple(places)


def _check_role(role: str) -> None:
    if role not in (*ROLES, "text"):
        raise EventLogError(
            f"Columns rename unknown role {role!r}; {nearest(role, [*ROLES, 'text'])}"
        )


def template_fields(template: str) -> list[str]:
    """List the columns a text template names; raise EventLogError when it names none or is
    malformed.
    """
    try:
        fields = [
            field for _, field, _, _ in string.Formatter().parse(template) if field is not None
        ]
    except ValueError as error:
        raise EventLogError(
            f"Text template {template!r} is malformed ({error}); write it like '{{brand}}; "
            f"{{title}}'."
        ) from None
    if not fields or "" in fields:
        raise EventLogError(
            f"Text template {template!r} names no column; write it like '{{brand}}; {{title}}'."
        )
    return fields


def check_columns(schema: pa.Schema, log: Log) -> None:
    """Refuse a file that lacks a needed column, or whose text would be a bare number."""
    for role in log.columns:
        _check_role(role)
    for column in log.needed:
        if column not in schema.names:
            found = ", ".join(map(repr, schema.names)) or "none"
            if len(schema.names) == 1 and set(schema.names[0]) & set(";\t|"):
                raise EventLogError(
                    f"The event log's only column is {found}; CSV files are separated by commas."
                )
            raise EventLogError(
                f"The event log has no column {column!r}; columns found are {found}; rename with "
                f"columns."
            )
        if schema.names.count(column) > 1:
            raise EventLogError(
                f"The event log has {schema.names.count(column)} columns {column!r}; rename or "
                f"remove all but one."
            )
        if (kind := kind_of(schema.field(column).type)) not in KINDS:
            raise EventLogError(
                f"Column {column!r} holds {kind}; ids, services and words may be text or numbers, "
                f"and timestamps dates."
            )
    fields = template_fields(log.text)
    only = log.source(fields[0])
    if len(fields) == 1 and kind_of(schema.field(only).type) not in ("text", "unknown"):
        raise EventLogError(
            f"Text column {only!r} holds {schema.field(only).type}, not words; build a text from "
            f"worded columns, "
            "as in '{brand}; {title}'."
        )


def normalise(
    table: pa.Table, log: Log, spec: CorpusSpec, *, file: int = 0, first_row: int = 0
) -> pa.Table:
    """Bring rows of a log to EVENTS_SCHEMA; rows of services left out are dropped, bad rows carry
    their reason.

    Args:
        table: needed columns of consecutive rows, from row `first_row` of the log's file number
            `file`.
    """
    row = np.arange(first_row, first_row + table.num_rows)
    service = (
        pa.repeat(log.service, table.num_rows)
        if log.service
        else as_text(table[log.column("service")])
    )
    timestamp = (
        as_seconds(table[log.column("timestamp")])
        if log.has_time
        else pa.array(file * float(ROWS_PER_FILE) + row)
    )
    rows = {
        "user_id": as_text(table[log.column("user_id")]),
        "service": service,
        "timestamp": timestamp,
        "text": build_text(table, log),
        "row": row,
    }
    rows["reason"] = _find_reasons(rows, spec, log)
    events = pa.table(rows, schema=EVENTS_SCHEMA)
    if spec.services is None:
        return events
    kept = pc.is_in(events["service"], value_set=pa.array(spec.services, pa.string()))
    return events.filter(pc.or_(kept, pc.is_null(events["service"])))


def good_rows(events: pa.Table) -> pa.Table:
    """Leave out rows with a reason; mostly there are none, and nothing is copied."""
    return (
        events.filter(pc.is_null(events["reason"]))
        if events["reason"].null_count < len(events)
        else events
    )


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast ids and names to text without surrounding space; numbers keep their digits, and 7.0 is
    7.
    """
    text = column.cast(pa.string())
    if pa.types.is_floating(column.type):
        whole = column.cast(pa.int64(), safe=False)
        is_whole = pc.equal(whole.cast(pa.float64(), safe=False), column.cast(pa.float64()))
        text = pc.if_else(is_whole, whole.cast(pa.string()), text)
    return pc.utf8_trim_whitespace(text)


def build_text(table: pa.Table, log: Log) -> pa.ChunkedArray | pa.Array:
    """Fill the text template row by row; an empty field reads as nothing, a row of only empty
    fields as null.
    """
    if log.text == "{text}":
        return _untrimmed(table[log.column("text")].cast(pa.string()))
    parts: list[Any] = []
    present: Any = None
    for literal, field, _, _ in string.Formatter().parse(log.text):
        parts.append(pa.scalar(literal))
        if field is None:
            continue
        column = as_text(table[log.source(field)])
        filled = pc.fill_null(pc.greater(pc.utf8_length(column), 0), False)
        present = filled if present is None else pc.or_(present, filled)
        parts.append(pc.fill_null(column, ""))
    text = pc.utf8_trim_whitespace(pc.binary_join_element_wise(*parts, ""))
    return pc.if_else(present, text, pa.scalar(None, pa.string()))


def _untrimmed(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a text column as it is, null where it holds nothing but space."""
    empty = pc.fill_null(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(text)), 0), True)
    return pc.if_else(empty, pa.scalar(None, pa.string()), text)


def _find_reasons(rows: dict[str, Any], spec: CorpusSpec, log: Log) -> Any:
    """Name what is wrong with each row (first fault found), null for a good one."""
    lengths = {role: pc.utf8_length(rows[role]) for role in ("user_id", "service", "text")}
    faults = {
        f"{role} is null or empty": pc.fill_null(pc.equal(length, 0), True)
        for role, length in lengths.items()
    }
    long = f"text is longer than {spec.max_text_length:,} characters"
    faults[long] = pc.fill_null(pc.greater(lengths["text"], spec.max_text_length), False)
    faults["timestamp cannot be read"] = pc.is_null(rows["timestamp"], nan_is_null=True)
    if log.has_time:
        faults["timestamp is after the year 2100"] = pc.fill_null(
            pc.greater(rows["timestamp"], LATEST), False
        )
    if not any(pc.any(fault).as_py() for fault in faults.values()):
        return pa.nulls(len(rows["row"]), pa.string())
    conditions = pc.make_struct(
        *(_flat(fault) for fault in faults.values()), field_names=list(faults)
    )
    return pc.case_when(conditions, *(pa.scalar(fault) for fault in faults))


def _flat(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
