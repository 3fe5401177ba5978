"""Read event files part by part, in order, with a one-sentence error for what cannot be read.

A part is what one task reads: some row groups of a Parquet file, or a whole CSV or JSON Lines file,
which is streamed. Ray Data's own readers are not used. They do not number rows, and the number is
needed for the order of appearance and for messages; nor do they mix formats in one dataset.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import pyarrow as pa

from clue_ray.corpus.logs.csv_files import csv_schema, read_csv
from clue_ray.corpus.logs.encoding import decode
from clue_ray.corpus.logs.files import EventFile, find_log
from clue_ray.corpus.logs.items import Joined, join_items
from clue_ray.corpus.logs.jsonlines import has_key, json_schema, read_json_lines
from clue_ray.corpus.logs.parquet import parquet_schema, read_parquet
from clue_ray.corpus.logs.schema import Log, check_columns, logs_of, template_fields
from clue_ray.corpus.logs.table import Block
from clue_ray.errors import EventLogError
from clue_ray.spec.items import ItemsSpec
from clue_ray.spec.specs import CorpusSpec
from clue_ray.storage.delimited import NAMES
from clue_ray.storage.place import explain_access

ROWS_PER_PART = 500_000
SCHEMA_READERS = 16
"""Threads that read schemas concurrently; on object storage each read waits for the network."""
UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""What a damaged file raises; EventLogError is none of these."""


@dataclass(frozen=True)
class Part:
    """What one task reads.

    Attributes:
        log: index of its log.
        number: index of its file among the log's files, sorted by name.
        row_groups: indices of row groups of a Parquet file; None for other formats.
        first_row: number of its first row in the file.
    """

    log: int
    number: int
    file: EventFile
    row_groups: tuple[int, ...] | None = None
    first_row: int = 0


@dataclass(frozen=True)
class Reading:
    """Everything that is read for a corpus: the spec, its logs, and their parts in order."""

    spec: CorpusSpec
    logs: tuple[Log, ...]
    parts: tuple[Part, ...]
    empty_files: tuple[str, ...] = ()
    "files without content, which are passed over"
    other_files: tuple[str, ...] = ()
    "files of other formats in the logs' folders"
    separators: tuple[tuple[str, int], ...] = ()
    "how the columns of CSV files are separated, and in how many files"
    catalogues: tuple["CataloguePlan", ...] = ()
    "catalogues that are joined to the logs; load them before reading a part"

    @property
    def files(self) -> list[EventFile]:
        """The files, each once, in order."""
        return list(dict.fromkeys(part.file for part in self.parts))


@dataclass(frozen=True)
class CataloguePlan:
    """How a catalogue is read: like a log, with its key in the place of the user.

    Attributes:
        name: its key in the spec, such as events.sku.
    """

    name: str
    spec: ItemsSpec
    log: Log
    parts: tuple[Part, ...]

    @property
    def files(self) -> list[EventFile]:
        """The files, each once, in order."""
        return list(dict.fromkeys(part.file for part in self.parts))


def plan_reading(spec: CorpusSpec, *, sample: bool = False, numbers: bool = False) -> Reading:
    """Find and check all files of a corpus's logs, and divide them into parts.

    Args:
        sample: whether a key of JSON that is missing in the first lines of a file is looked for in
            its first megabytes only, instead of in the whole file.
        numbers: whether a text may be a bare number, which is usually an id by mistake.

    Raises:
        EventLogError: a file cannot be read or lacks a column, or all files are empty.
    """
    logs, parts, empty, others = [], [], [], []
    separators: Counter[str] = Counter()
    for index, planned in enumerate(logs_of(spec)):
        log, whole, unread, ignored = _find_schemas(replace(planned, numbers=numbers), sample)
        empty += unread
        others += ignored
        _check_time(log, spec)
        logs.append(log)
        separators.update(NAMES.get(s.separator, s.separator) for _, s in whole if s.separator)
        for number, (file, schema) in enumerate(whole):
            parts += _divide(Part(index, number, file), schema)
    told = tuple(sorted(separators.items()))
    catalogues = plan_catalogues(spec.items)
    return Reading(spec, tuple(logs), tuple(parts), tuple(empty), tuple(others), told, catalogues)


def _find_schemas(
    log: Log, sample: bool
) -> tuple[Log, list[tuple[EventFile, "Schema"]], list[str], list[str]]:
    """Find and check the files of a log.

    Returns:
        The log, now known to have times or not; its files with their schemas; those without
        content; and those of other formats.
    """
    found, ignored = find_log(log.places)
    with ThreadPoolExecutor(SCHEMA_READERS) as pool:
        schemas = list(pool.map(_read_schema, found, [log] * len(found)))
    whole = [(file, schema) for file, schema in zip(found, schemas, strict=True) if schema]
    empty = [str(file) for file, schema in zip(found, schemas, strict=True) if not schema]
    if not whole:
        raise EventLogError(f"Event log {', '.join(log.places)} is empty; give a file with rows.")
    files, stored = [file for file, _ in whole], _add_late_keys(log, whole, sample)
    if log.has_time:  # a catalogue has no times
        log = replace(log, has_time=_has_time(log, files, stored))
    _check_files(log, files, stored)
    return log, list(zip(files, stored, strict=True)), empty, ignored


def plan_catalogues(items: Mapping[str, ItemsSpec] | None) -> tuple[CataloguePlan, ...]:
    """Find and check the tables of catalogues.

    Raises:
        EventLogError: a table cannot be read, or lacks a column.
    """
    return tuple(_plan_catalogue(*named) for named in (items or {}).items())


def _plan_catalogue(name: str, spec: ItemsSpec) -> CataloguePlan:
    """Find and check the files of a catalogue.

    Raises:
        EventLogError: a file cannot be read or lacks a column, or all files are empty.
    """
    columns = {"user_id": spec.key}
    log = Log((spec.table,), "item", columns, spec.text, has_time=False, numbers=True)
    try:
        whole = _find_schemas(log, sample=False)[1]
    except EventLogError as error:
        said = re.sub(
            r"\b(?:The e|E)vent log\b", f"Catalogue {spec.table} of {name}:", str(error), count=1
        )
        raise EventLogError(said) from None
    parts = [
        part
        for number, (file, schema) in enumerate(whole)
        for part in _divide(Part(0, number, file), schema)
    ]
    return CataloguePlan(name, spec, log, tuple(parts))


def find_first_part(log: Log) -> tuple[Part, list[str]]:
    """Return the first part of a log that is not empty, and the names of its columns.

    Raises:
        EventLogError: there is none, or it cannot be read.
    """
    for file in find_log(log.places)[0]:
        schema = _read_schema(file, log)
        if schema is None:
            continue
        filled = tuple(group for group, rows in enumerate(schema.group_rows) if rows)
        if filled or file.format != "parquet":
            return Part(0, 0, file, filled[:1] or None), schema.columns.names
    raise EventLogError(f"Event log {', '.join(log.places)} is empty; give a file with rows.")


@dataclass(frozen=True)
class Schema:
    """A file's schema.

    Attributes:
        columns: names and types, those that come from folders included.
        group_rows: number of rows in each row group of a Parquet file.
        separator: of a CSV file.
    """

    columns: pa.Schema
    group_rows: tuple[int, ...] = ()
    separator: str = ""

    def has(self, column: str) -> bool:
        """Return whether the file has a column."""
        return column in self.columns.names

    def with_column(self, name: str, type_: pa.DataType) -> "Schema":
        """Return the schema with one column more."""
        return replace(self, columns=self.columns.append(pa.field(name, type_)))


def _read_schema(file: EventFile, log: Log) -> Schema | None:
    """Read the schema of a file, including the columns of its folders; None if it is empty.

    Raises:
        EventLogError: the file cannot be read.
    """
    try:
        schema = _read_stored_schema(file, log)
    except UNREADABLE as error:
        raise _unreadable(file, error) from None
    for name, _ in file.partition:
        if schema and not schema.has(name):
            schema = schema.with_column(name, pa.string())
    return schema


def _read_stored_schema(file: EventFile, log: Log) -> Schema | None:
    """Read the schema that a file itself contains."""
    if not file.size:
        return None
    if file.format == "parquet":
        return Schema(*parquet_schema(file))
    with file.stream() as source:
        if file.format == "json":
            found = json_schema(source)
            return None if found is None else Schema(found)
        columns, separator = csv_schema(source, log.needed, log.separator)
        return Schema(columns, separator=separator) if columns.names else None


def _add_late_keys(log: Log, whole: list[tuple[EventFile, Schema]], sample: bool) -> list[Schema]:
    """Add the needed keys of JSON files that occur only after the lines that were sampled."""
    wanted = log.needed if "timestamp" in log.columns else [*log.needed, "timestamp"]
    wanted = list(dict.fromkeys(wanted))
    known = {name for _, schema in whole for name in schema.columns.names}
    fields = {log.source(field) for field in template_fields(log.text)}
    schemas = []
    for file, schema in whole:
        for column in wanted if file.format == "json" else ():
            if schema.has(column) or (column in fields and column in known):
                continue
            if _occurs(file, column, sample):
                schema = schema.with_column(column, pa.null())
                known.add(column)
        schemas.append(schema)
    return schemas


@lru_cache(maxsize=10_000)  # a study plans its reading more than once, and this may read all of it
def _occurs(file: EventFile, key: str, sample: bool) -> bool:
    """Return whether a key occurs in a file of JSON Lines, or in its beginning."""
    try:
        with file.stream() as source:
            return has_key(source, key, sample=sample)
    except UNREADABLE as error:
        raise _unreadable(file, error) from None


def _unreadable(file: EventFile, error: Exception) -> EventLogError:
    """Return the one-sentence error for a file that cannot be read."""
    return EventLogError(
        f"Event log {file} cannot be read ({explain_access(error)}); fix the file or leave it out."
    )


def _has_time(log: Log, files: list[EventFile], schemas: list[Schema]) -> bool:
    """Return whether a log has timestamps.

    A column that the spec names must exist, which `check_columns` checks. The default column may be
    missing, but then in all files: order of appearance cannot be compared with time.
    """
    if "timestamp" in log.columns:
        return True
    having = ["timestamp" in schema.columns.names for schema in schemas]
    if any(having) and not all(having):
        raise EventLogError(
            f"Event log file {files[having.index(False)]} has no column 'timestamp', but "
            f"{files[having.index(True)]} has; files of one log must agree."
        )
    return all(having)


def _check_time(log: Log, spec: CorpusSpec) -> None:
    """Raise EventLogError if a setting needs timestamps that a log does not have."""
    settings = {"duplicates: drop": spec.duplicates == "drop", "split.time": spec.split.time}
    setting = next((name for name, needs_time in settings.items() if needs_time), None)
    if setting and not log.has_time:
        raise EventLogError(
            f"{setting} needs event times, but log {', '.join(log.places)} has no column "
            "'timestamp'; name it with columns, or leave that setting out."
        )


def _check_files(log: Log, files: list[EventFile], schemas: list[Schema]) -> None:
    """Check that every file of a log has the columns that it needs."""
    known = {name for schema in schemas for name in schema.columns.names}
    for file, schema in zip(files, schemas, strict=True):
        try:
            check_columns(schema.columns, log, known)
        except EventLogError as error:
            raise EventLogError(
                f"{str(error).rstrip('.')} (in {file})." if len(files) > 1 else str(error)
            ) from None


def _divide(whole: Part, schema: Schema) -> list[Part]:
    """Divide a Parquet file at its row groups into parts of at least ROWS_PER_PART rows."""
    if whole.file.format != "parquet":  # rows of a text file can be numbered only from its start
        return [whole]
    parts: list[Part] = []
    groups: list[int] = []
    start = row = 0
    for group, rows in enumerate(schema.group_rows):
        groups.append(group)
        row += rows
        if row - start >= ROWS_PER_PART or group == len(schema.group_rows) - 1:
            parts.append(replace(whole, row_groups=tuple(groups), first_row=start))
            groups, start = [], row
    return parts


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a file.

    Attributes:
        first_row: number of the first row in the file.
        table: the needed columns; see `Block` for those of lines that could not be read.
        recoded: number of values that were not UTF-8.
        lines, other_lines, literal: see `Block`.
        joined: what was found in each catalogue.
    """

    first_row: int
    table: pa.Table
    recoded: int
    lines: int = 0
    other_lines: int = 0
    literal: int = 0
    joined: tuple[Joined, ...] = ()


def read_part(part: Part, log: Log) -> Iterator[Batch]:
    """Yield the batches of a part in order, decoding values that are not UTF-8 as Windows-1252.

    Raises:
        EventLogError: the file cannot be read.
    """
    row = part.first_row
    try:
        for block in _read_blocks(part, log):
            table, recoded = decode(_with_all_columns(block.table, part.file, log))
            service = None if log.service is not None else log.column("service")
            table, joined = join_items(table, log.items, service)
            counts = (block.recoded + recoded, block.lines, block.other_lines, block.literal)
            yield Batch(row, table, *counts, joined)
            row += table.num_rows
    except UNREADABLE as error:
        raise _unreadable(part.file, error) from None


def _read_blocks(part: Part, log: Log) -> Iterator[Block]:
    """Yield the columns that a file itself holds, block by block."""
    file = part.file
    folders = {name for name, _ in file.partition}
    if file.format == "parquet":
        yield from read_parquet(file, log.needed, part.row_groups or ())
        return
    with file.stream() as source:
        if file.format == "csv":
            yield from read_csv(source, log.needed, log.separator)
        else:
            yield from read_json_lines(source, [c for c in log.needed if c not in folders])


def _with_all_columns(table: pa.Table, file: EventFile, log: Log) -> pa.Table:
    """Add the columns that come from folders, and nulls for those that only other files have."""
    for name, value in (*file.partition, *((name, None) for name in log.needed)):
        if name in log.needed and name not in table.column_names:
            column = pa.repeat(pa.scalar(value, pa.string()), table.num_rows)
            table = table.append_column(name, column)
    return table
