"""Normalise event logs: the roles of their columns, and rows of one schema for every log.

Each row that cannot be used carries a reason. Such rows are not dropped here, so that the caller
can count them and write them to `rejected/`.
"""

import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clue_ray.corpus.logs.encoding import kind_of
from clue_ray.corpus.logs.ids import as_ids, as_text, without_missing
from clue_ray.corpus.logs.items import ITEM, ItemJoin
from clue_ray.corpus.logs.table import FAULT
from clue_ray.corpus.logs.times import as_seconds
from clue_ray.corpus.logs.typed import (
    CLOSE,
    OPEN,
    check_type,
    code_columns,
    holds_codes,
    write_typed,
)
from clue_ray.errors import EventLogError, nearest
from clue_ray.spec.items import split_item_key
from clue_ray.spec.specs import CorpusSpec

ROLES = ("user_id", "service", "timestamp")
LATEST_TIME = 4_102_444_800.0
"""The year 2100. A later time means that its unit or date was misread."""
BYTE_ORDER_MARK = "\ufeff"
TIME_FAULT = "timestamp cannot be read"
UNREAD_TIME = f"^({TIME_FAULT}|timestamp is not like)"
"""Pattern of the reasons of rows whose timestamp cannot be read."""
ROWS_PER_FILE = 2**32
"""Order of appearance = file number * this + row number; exact in float64 for two million files."""
MOST_NAMES = 40
"""Columns that a message lists."""
KINDS = ("text", "whole numbers", "numbers", "times", "bool", "unknown", "UUIDs")
"""Kinds of values that a needed column may hold."""
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
"""Normalised rows: `row` is the number in the file, `reason` is null for a row that can be used."""


@dataclass(frozen=True)
class Log:
    """One log of a corpus: its files and the names of its columns.

    Attributes:
        places: files, folders, globs and URIs.
        service: the service of every event; None if a column names it.
        columns: role -> name of the log's column, where the two differ.
        text: template of the item text.
        has_time: whether events have timestamps; otherwise they are in order of appearance.
        timestamp_format: how timestamps are written, for strptime.
        separator: character between the columns of CSV files; found in each file if None.
        items: catalogues whose texts stand for the ids in columns of the template.
        numbers: whether the text may be a bare number, as that of a label may.
    """

    places: tuple[str, ...]
    service: str | None
    columns: dict[str, str]
    text: str
    has_time: bool = True
    timestamp_format: str | None = None
    separator: str | None = None
    items: tuple[ItemJoin, ...] = ()
    numbers: bool = False

    def column(self, role: str) -> str:
        """Return the name of the log's column for a role."""
        return self.columns.get(role, role)

    def source(self, field: str) -> str:
        """Return the name of the log's column for a field of the template.

        Only `text` is a role, which `columns` may rename; other fields are columns of the log.
        """
        return self.column(field) if field == "text" else field

    @property
    def roles(self) -> list[str]:
        """The roles that are read from a column."""
        absent = {"service"} if self.service is not None else set()
        return [
            role for role in ROLES if role not in absent and (role != "timestamp" or self.has_time)
        ]

    @property
    def needed(self) -> list[str]:
        """The columns that are read from the log, each once, in a fixed order."""
        fields = [self.source(field) for field in template_fields(self.text)]
        return list(dict.fromkeys([*(self.column(role) for role in self.roles), *fields]))


def logs_of(spec: CorpusSpec) -> list[Log]:
    """List the logs of a corpus: one with a column `service`, or one per service.

    Raises:
        EventLogError: a role is unknown, or no log uses the items of a catalogue.
    """
    logs = [replace(log, items=_joins_of(log, spec)) for log in _plain_logs(spec)]
    joined = {join.name for log in logs for join in log.items}
    if unused := [name for name in spec.items or () if name not in joined]:
        raise EventLogError(
            f"items has a catalogue for {unused[0]!r}, but no log has that service and that column "
            f"in its text template; name it there as '{{{_item_column(unused[0], spec)}}}'."
        )
    return logs


def _item_column(name: str, spec: CorpusSpec) -> str:
    return split_item_key(name, list(spec.events) if isinstance(spec.events, dict) else [])[1]


def _joins_of(log: Log, spec: CorpusSpec) -> tuple[ItemJoin, ...]:
    """Return the catalogues of a log: those of a column in its template."""
    known = list(spec.events) if isinstance(spec.events, dict) else []
    columns = [log.source(field) for field in template_fields(log.text)]
    joins = []
    for name, items in (spec.items or {}).items():
        service, column = split_item_key(name, known)
        if column in columns and (None in (service, log.service) or service == log.service):
            joins.append(ItemJoin(name, column, service, items))
    return tuple(joins)


def _plain_logs(spec: CorpusSpec) -> list[Log]:
    """List the logs of a corpus, without catalogues."""
    for role in spec.columns:
        _check_role(role)
    if not isinstance(spec.events, dict):
        places = _as_tuple(spec.events)
        written = (spec.timestamp_format, spec.separator)
        return [Log(places, None, spec.columns, spec.text, True, *written)]
    return [
        Log(
            _as_tuple(log.events),
            service.strip(),
            {**spec.columns, **(log.columns or {})},
            log.text or spec.text,
            timestamp_format=log.timestamp_format or spec.timestamp_format,
            separator=log.separator or spec.separator,
        )
        for service, log in spec.events.items()
        if spec.services is None or service in spec.services
    ]


def _as_tuple(places: str | Sequence[str]) -> tuple[str, ...]:
    return (places,) if isinstance(places, str) else tuple(places)


def _check_role(role: str) -> None:
    if role not in (*ROLES, "text"):
        raise EventLogError(
            f"columns renames the unknown role {role!r}; {nearest(role, [*ROLES, 'text'])}"
        )


def template_fields(template: str) -> list[str]:
    """List the fields of a text template.

    Raises:
        EventLogError: the template is malformed, has no named field, or an unknown type.
    """
    try:
        parsed = [part for part in string.Formatter().parse(template) if part[1] is not None]
        fields = [str(field) for _, field, _, _ in parsed]
    except ValueError as error:
        raise EventLogError(
            f"Text template {template!r} is malformed ({error}); write it like "
            "'{brand}; {title}'."
        ) from None
    for _, field, type_, _ in parsed:
        check_type(template, str(field), type_)
    if not fields or "" in fields:
        raise EventLogError(
            f"Text template {template!r} names no column; write it like '{{brand}}; {{title}}'."
        )
    return fields


def check_columns(schema: pa.Schema, log: Log, elsewhere: Collection[str] = ()) -> None:
    """Check that a file has the columns that it needs and that its text is not a bare number.

    Args:
        elsewhere: columns that other files of the log have. A field of the template may be missing
            where another file has it, and is then empty; but a file needs one field at least.

    Raises:
        EventLogError: a column is missing, repeated, or of a kind that cannot be read.
    """
    for role in log.columns:
        _check_role(role)
    fields = [log.source(field) for field in template_fields(log.text)]
    some = any(field in schema.names for field in fields)
    absent = {field for field in fields if some and field in elsewhere} - set(schema.names)
    lists = {log.source(field) for field in code_columns(log.text)}
    for column in (name for name in log.needed if name not in absent):
        _check_column(schema, column, lists=column in lists)
    if len(fields) > 1:
        return
    only = fields[0]
    # A lone number is usually an id, and the digits of an id say nothing about an item.
    joined = [join.column for join in log.items]
    number = kind_of(schema.field(only).type) not in ("text", "unknown")
    typed = any(type_ for _, _, type_, _ in string.Formatter().parse(log.text))
    allowed = typed or log.numbers or only in joined
    if number and not allowed:
        raise EventLogError(
            f"Text column {only!r} holds {schema.field(only).type}, not words; build the text from "
            "columns with words, as in '{brand}; {title}'."
        )


def _check_column(schema: pa.Schema, column: str, *, lists: bool) -> None:
    """Raise EventLogError for a column that is missing, twice there, or of another kind."""
    more = f" and {len(schema.names) - MOST_NAMES} more" if len(schema.names) > MOST_NAMES else ""
    found = (", ".join(map(repr, schema.names[:MOST_NAMES])) or "none") + more
    if column not in schema.names:
        if len(schema.names) == 1 and set(schema.names[0]) & set(",;\t|"):
            raise EventLogError(
                f"The event log has one column only, {found}; name the character that separates "
                "its columns in separator."
            )
        raise EventLogError(
            f"The event log has no column {column!r}; columns found are {found}; "
            f"{_advise_on_names(schema.names, column)}."
        )
    if (count := schema.names.count(column)) > 1:
        raise EventLogError(
            f"The event log has {count} columns {column!r}; rename or remove all but one."
        )
    type_ = schema.field(column).type
    if (kind := kind_of(type_)) not in KINDS and not (lists and holds_codes(type_)):
        raise EventLogError(
            f"Column {column!r} holds {kind}; ids, services and texts must be text or numbers, "
            f"and timestamps text, numbers or dates{_advise_on_fields(schema.names, column)}."
        )


def _advise_on_names(names: list[str], column: str) -> str:
    """Say how a missing column may be named; a header with a number is probably a row."""
    if any(name.strip().isdigit() for name in names):
        return "a line with the names of the columns must come first"
    alike = [name for name in names if _bare(name.rpartition(".")[2]) == _bare(column)]
    return f"rename with columns, as in {column}={alike[0]}" if alike else "rename with columns"


def _advise_on_fields(names: list[str], column: str) -> str:
    inner = next((name for name in names if name.startswith(f"{column}.")), None)
    return f"; name a field of it, such as {inner}" if inner else ""


def _bare(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def normalise(
    table: pa.Table, log: Log, spec: CorpusSpec, *, file: int = 0, first_row: int = 0
) -> pa.Table:
    """Convert rows of a log to EVENTS_SCHEMA, dropping rows of services that `spec` leaves out.

    Args:
        table: the needed columns of consecutive rows.
        file: number of their file in the log.
        first_row: number of the first row in that file.
    """
    row = np.arange(first_row, first_row + table.num_rows)
    service = (
        pa.repeat(log.service, table.num_rows)
        if log.service
        else as_ids(table[log.column("service")])
    )
    timestamp = (
        as_seconds(table[log.column("timestamp")], log.timestamp_format)
        if log.has_time
        else pa.array(file * float(ROWS_PER_FILE) + row)
    )
    rows = {
        "user_id": as_ids(table[log.column("user_id")]),
        "service": service,
        "timestamp": timestamp,
        "text": build_text(table, log),
        "row": row,
    }
    rows["reason"] = _find_reasons(rows, spec, log)
    if FAULT in table.column_names:  # what is wrong with the line, not with the values it lacks
        rows["reason"] = pc.coalesce(table[FAULT], rows["reason"])
    events = pa.table(rows, schema=EVENTS_SCHEMA)
    if spec.services is None:
        return events
    # A row without a service may belong to any of them: keep it, so that it is counted as rejected.
    kept = pc.is_in(events["service"], value_set=pa.array(spec.services, pa.string()))
    return events.filter(pc.or_(kept, pc.is_null(events["service"])))


def good_rows(events: pa.Table) -> pa.Table:
    """Return the rows that can be used; the table itself, uncopied, if all can."""
    if events["reason"].null_count == len(events):
        return events
    return events.filter(pc.is_null(events["reason"]))


def build_text(table: pa.Table, log: Log) -> pa.ChunkedArray | pa.Array:
    """Fill the text template for each row; the result is null for a row of empty fields."""
    # By far the most common template, whose texts stay exactly as they are.
    if log.text == "{text}" and not log.items:
        return _untrimmed(table[log.column("text")].cast(pa.string()))
    parts: list[Any] = []
    present: Any = None
    for literal, field, type_, _ in string.Formatter().parse(log.text):
        parts.append(pa.scalar(literal))
        if field is None:
            continue
        joined, stored = ITEM + log.source(field), table[log.source(field)]
        if type_:  # of an id that is joined, the id itself: {sku} {sku:category}
            column = write_typed(stored, field, type_, log.timestamp_format)
        else:
            column = table[joined] if joined in table.column_names else as_text(stored)
        filled = pc.fill_null(pc.greater(pc.utf8_length(column), 0), False)
        present = filled if present is None else pc.or_(present, filled)
        parts.append(pc.fill_null(column, ""))
    text = pc.utf8_trim_whitespace(pc.binary_join_element_wise(*parts, ""))
    return pc.if_else(present, text, pa.scalar(None, pa.string()))


def _untrimmed(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a text column as it is, with null for white space and for missing values."""
    text = without_missing(text)
    empty = pc.fill_null(pc.equal(pc.binary_length(pc.utf8_trim_whitespace(text)), 0), True)
    return pc.if_else(empty, pa.scalar(None, pa.string()), text)


def _find_reasons(rows: dict[str, Any], spec: CorpusSpec, log: Log) -> Any:
    """Return the first fault of each row; null for a row that can be used."""
    lengths = {role: pc.binary_length(rows[role]) for role in ("user_id", "service", "text")}
    faults = {
        f"{role} is null or empty": pc.fill_null(pc.equal(length, 0), True)
        for role, length in lengths.items()
    }
    long = f"text is longer than {spec.max_text_length:,} characters"
    faults[long] = pc.fill_null(pc.greater(lengths["text"], spec.max_text_length), False)
    if pc.any(faults[long]).as_py():  # no text has more characters than bytes
        characters = pc.utf8_length(rows["text"])
        faults[long] = pc.fill_null(pc.greater(characters, spec.max_text_length), False)
    faults["the row repeats the header"] = _repeats_header(rows, log)
    unread = f"timestamp is not like {log.timestamp_format}" if log.timestamp_format else TIME_FAULT
    faults[unread] = pc.is_null(rows["timestamp"], nan_is_null=True)
    if log.has_time:
        faults["timestamp is after the year 2100"] = pc.fill_null(
            pc.greater(rows["timestamp"], LATEST_TIME), False
        )
    if not any(pc.any(fault).as_py() for fault in faults.values()):  # usual, and much cheaper
        return pa.nulls(len(rows["row"]), pa.string())
    conditions = pc.make_struct(
        *(_flat(fault) for fault in faults.values()), field_names=list(faults)
    )
    return pc.case_when(conditions, *(pa.scalar(fault) for fault in faults))


def _repeats_header(rows: dict[str, Any], log: Log) -> Any:
    """Return which rows are the header again, as where CSV files were joined to one."""
    texts = [
        literal + (_header_text(log, field, type_) if field else "")
        for literal, field, type_, _ in string.Formatter().parse(log.text)
    ]
    repeats: Any = None
    for role, name in (("user_id", log.column("user_id")), ("text", "".join(texts).strip())):
        same = pc.is_in(rows[role], value_set=pa.array([name, f"{BYTE_ORDER_MARK}{name}"]))
        repeats = same if repeats is None else pc.and_(repeats, same)
        if not pc.any(repeats).as_py():
            break
    return repeats


def _header_text(log: Log, field: str, type_: str | None) -> str:
    """Return what the text of a repeated header has for a field."""
    name = log.source(field)
    return f"{OPEN}{field}:{type_}={name}{CLOSE}" if type_ else name


def _flat(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
