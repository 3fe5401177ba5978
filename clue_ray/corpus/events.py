"""Event logs: finding the files, checking the columns, and bringing every row to one schema.

Takes files a team already has; gives tables of (user_id, service, timestamp, text, reason), where `reason` names what
is wrong with a row, or is null for a good one. Bad rows are never dropped here: the caller keeps them aside.
"""

import glob
import string
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from clue_ray.errors import EventLogError, nearest
from clue_ray.spec import CorpusSpec

FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".json": "json", ".ndjson": "json"}
ROLES = ("user_id", "service", "timestamp")

EVENTS_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("service", pa.string()),
        ("timestamp", pa.float64()),
        ("text", pa.string()),
        ("reason", pa.string()),
    ]
)


def find_files(events: str | tuple[str, ...]) -> list[str]:
    """List the log's files, sorted; a folder stands for every file of a known format below it."""
    patterns = (events,) if isinstance(events, str) else events
    files = [file for pattern in patterns for file in _expand(pattern)]
    formats = {FORMATS[Path(file).suffix] for file in files}
    if len(formats) > 1:
        raise EventLogError(f"The log mixes {', '.join(sorted(formats))} files; give files of one format.")
    return sorted(set(files))


def _expand(pattern: str) -> list[str]:
    path = Path(pattern)
    matches = [str(p) for p in path.rglob("*")] if path.is_dir() else glob.glob(pattern, recursive=True)
    files = [str(Path(m).resolve()) for m in matches if Path(m).suffix in FORMATS and Path(m).is_file()]
    if files:
        return files
    known = ", ".join(FORMATS)
    if path.is_file():
        raise EventLogError(f"Event log {pattern} ends in {path.suffix or 'nothing'!r}; allowed are {known}.")
    what = "holds no event files" if path.is_dir() else "does not exist"
    raise EventLogError(f"Event log {path.absolute()} {what}; give a file, folder or glob of {known} files.")


def file_format(files: list[str]) -> str:
    """Return `parquet`, `csv` or `json`, by the files' ending."""
    return FORMATS[Path(files[0]).suffix]


def read_schema(file: str) -> pa.Schema:
    """Read the column names and types of one file; raise EventLogError when it is empty or unreadable."""
    try:
        if Path(file).suffix == ".parquet":
            return pa.parquet.read_schema(file)
        opener = pa.csv.open_csv if Path(file).suffix == ".csv" else pa.json.open_json
        return opener(file).schema
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise EventLogError(
            f"Event log {file} cannot be read ({reason}); give a file with a header and rows."
        ) from None


def template_fields(template: str) -> list[str]:
    """List the columns a text template names; raise EventLogError when it names none or is malformed."""
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise EventLogError(
            f"Text template {template!r} is malformed ({error}); write it like '{{brand}}; {{title}}'."
        ) from None
    if not fields or "" in fields:
        raise EventLogError(f"Text template {template!r} names no column; write it like '{{brand}}; {{title}}'.")
    return fields


def check_log(spec: CorpusSpec) -> list[str]:
    """Find the log's files and check the columns of each; return the files."""
    files = find_files(spec.events)
    for file in files:
        try:
            check_columns(read_schema(file), spec)
        except EventLogError as error:
            raise EventLogError(f"{error} (in {file})" if len(files) > 1 else str(error)) from None
    return files


def text_columns(spec: CorpusSpec) -> list[str]:
    """List the log's columns that are read as text whatever they look like: ids, services and words."""
    roles = [spec.columns.get(role, role) for role in ("user_id", "service")]
    return [*roles, *(source_column(field, spec) for field in template_fields(spec.text))]


def check_columns(schema: pa.Schema, spec: CorpusSpec) -> None:
    """Refuse a log that lacks a needed column, or whose text would be a bare number."""
    for role in spec.columns:
        if role not in (*ROLES, "text"):
            raise EventLogError(f"Columns rename unknown role {role!r}; {nearest(role, [*ROLES, 'text'])}")
    fields = [source_column(field, spec) for field in template_fields(spec.text)]
    for column in [*(spec.columns.get(role, role) for role in ROLES), *fields]:
        if column not in schema.names:
            found = ", ".join(map(repr, schema.names)) or "none"
            raise EventLogError(
                f"The event log has no column {column!r}; columns found are {found}; rename with columns."
            )
    if len(fields) == 1 and not _is_text(schema.field(fields[0]).type):
        kind = schema.field(fields[0]).type
        raise EventLogError(
            f"Text column {fields[0]!r} holds {kind}, not words; build a text from worded columns, "
            "as in '{brand}; {title}'."
        )


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)


def source_column(field: str, spec: CorpusSpec) -> str:
    """Return the log's own name of a template field: `text` may be renamed, other fields are the log's."""
    return spec.columns.get("text", "text") if field == "text" else field


def normalise(table: pa.Table, spec: CorpusSpec) -> pa.Table:
    """Bring rows of a log to EVENTS_SCHEMA; rows of services left out are dropped, bad rows carry their reason."""
    user, service, timestamp = (table[spec.columns.get(role, role)] for role in ROLES)
    rows = {
        "user_id": as_text(user),
        "service": as_text(service),
        "timestamp": as_seconds(timestamp),
        "text": build_text(table, spec),
    }
    rows["reason"] = find_reasons(rows)
    events = pa.table(rows, schema=EVENTS_SCHEMA)
    if spec.services is None:
        return events
    kept = pc.is_in(events["service"], value_set=pa.array(spec.services, pa.string()))
    return events.filter(pc.or_(kept, pc.is_null(events["service"])))


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast ids and names to text without surrounding space; numbers keep their digits."""
    return pc.utf8_trim_whitespace(column.cast(pa.string()))


def as_seconds(column: pa.ChunkedArray) -> pa.Array:
    """Turn timestamps into epoch seconds; null where unparsable.

    Numbers are taken as seconds, or by their size as milliseconds (from 1e11), microseconds (1e14) or nanoseconds
    (1e17); else dates, times or ISO 8601 text.
    """
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        numbers = column.cast(pa.float64(), safe=False).to_numpy()
        size = np.abs(numbers)
        return pa.array(
            numbers / np.select([size >= 1e17, size >= 1e14, size >= 1e11], [1e9, 1e6, 1e3], 1.0), from_pandas=True
        )
    times = pd.to_datetime(pd.Series(column.to_pandas()), errors="coerce", utc=True, format="ISO8601")
    seconds = (times - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    return pa.array(seconds.to_numpy(dtype=np.float64), from_pandas=True)


def build_text(table: pa.Table, spec: CorpusSpec) -> pa.ChunkedArray | pa.Array:
    """Fill the text template row by row; an empty field reads as nothing, a row of only empty fields as null."""
    template_fields(spec.text)
    parts: list[Any] = []
    present: Any = None
    for literal, field, _, _ in string.Formatter().parse(spec.text):
        parts.append(pa.scalar(literal))
        if field is None:
            continue
        column = as_text(table[source_column(field, spec)])
        filled = pc.fill_null(pc.greater(pc.utf8_length(column), 0), False)
        present = filled if present is None else pc.or_(present, filled)
        parts.append(pc.fill_null(column, ""))
    text = pc.utf8_trim_whitespace(pc.binary_join_element_wise(*parts, ""))
    return pc.if_else(present, text, pa.scalar(None, pa.string()))


def find_reasons(rows: dict[str, Any]) -> Any:
    """Name what is wrong with each row (first fault found), null for a good one."""
    faults = {
        f"{role} is null or empty": pc.fill_null(pc.equal(pc.utf8_length(rows[role]), 0), True)
        for role in ("user_id", "service", "text")
    }
    faults["timestamp cannot be read"] = pc.is_null(rows["timestamp"], nan_is_null=True)
    conditions = pc.make_struct(*(_flat(fault) for fault in faults.values()), field_names=list(faults))
    return pc.case_when(conditions, *(pa.scalar(fault) for fault in faults))


def _flat(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
