"""Read event files part by part, in order, with a one-sentence error for what cannot be read.

A part is what one task reads: some row groups of a Parquet file, or a whole CSV or JSON Lines file,
which is streamed. Ray Data's own readers are not used. They do not number rows, and the number is
needed for the order of appearance and for messages; nor do they mix formats in one dataset.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from clue_ray.corpus.logs.encoding import decode, kind_of
from clue_ray.corpus.logs.files import EventFile, find_files
from clue_ray.corpus.logs.jsonlines import json_schema, read_json_lines
from clue_ray.corpus.logs.schema import Log, check_columns, logs_of
from clue_ray.errors import EventLogError
from clue_ray.spec.specs import CorpusSpec
from clue_ray.storage.place import explain_access

ROWS_PER_PART = 500_000
ROWS_PER_BATCH = 250_000
CSV_READING = pa.csv.ReadOptions(block_size=16_000_000, use_threads=False)
"""One thread per task: with more, Arrow's errors do not contain row numbers."""
SCHEMA_READERS = 16
"""Threads that read schemas concurrently; on object storage each read waits for the network."""
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


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

    @property
    def files(self) -> list[EventFile]:
        """The files, each once, in order."""
        return list(dict.fromkeys(part.file for part in self.parts))


def plan_reading(spec: CorpusSpec) -> Reading:
    """Find and check all files of a corpus's logs, and divide them into parts.

    Raises:
        EventLogError: a file cannot be read, lacks a column, or differs in kind from another file
            of its log.
    """
    logs, parts = [], []
    for index, log in enumerate(logs_of(spec)):
        files = find_files(log.places)
        with ThreadPoolExecutor(SCHEMA_READERS) as pool:
            schemas = list(pool.map(_read_schema, files))
        log = replace(log, has_time=_has_time(log, files, schemas))
        _check_files(log, files, schemas)
        _check_time(log, spec)
        logs.append(log)
        for number, (file, schema) in enumerate(zip(files, schemas, strict=True)):
            parts += _divide(Part(index, number, file), schema)
    return Reading(spec, tuple(logs), tuple(parts))


@dataclass(frozen=True)
class Schema:
    """A file's schema: its columns, and the number of rows in each row group of a Parquet file."""

    columns: pa.Schema
    group_rows: tuple[int, ...] = ()


def _read_schema(file: EventFile) -> Schema:
    """Read the schema of a file, including the columns that come from its folders.

    Raises:
        EventLogError: the file is empty or cannot be read.
    """
    try:
        schema = _read_stored_schema(file)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from None
    for name, _ in file.partition:
        if name not in schema.columns.names:
            schema = replace(schema, columns=schema.columns.append(pa.field(name, pa.string())))
    return schema


def _read_stored_schema(file: EventFile) -> Schema:
    """Read the schema that a file itself contains."""
    if file.format == "parquet":
        with file.open() as source:
            parquet = pq.ParquetFile(source)
            groups = range(parquet.metadata.num_row_groups)
            rows = tuple(parquet.metadata.row_group(group).num_rows for group in groups)
            return Schema(parquet.schema_arrow, rows)
    with file.stream() as source:
        if source.read(2) in UTF_16_MARKS:
            raise pa.ArrowInvalid("it is UTF-16, but only UTF-8 is supported: convert it")
    with file.stream() as source:
        if file.format == "json":
            return Schema(json_schema(source, str(file)))
        return Schema(pa.csv.open_csv(source, CSV_READING).schema)


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
    """Check that every file of a log has the needed columns, of the same kind in all files."""
    seen: dict[str, tuple[str, EventFile]] = {}
    for file, schema in zip(files, schemas, strict=True):
        try:
            check_columns(schema.columns, log)
        except EventLogError as error:
            raise EventLogError(
                f"{str(error).rstrip('.')} (in {file})." if len(files) > 1 else str(error)
            ) from None
        for column in log.needed:
            # Columns of CSV files are read as bytes, whatever Arrow infers from their first rows.
            kind = "text" if file.format == "csv" else kind_of(schema.columns.field(column).type)
            before, other = seen.setdefault(column, (kind, file))
            if before == "unknown":
                seen[column] = (kind, file)
            elif kind not in (before, "unknown"):
                raise EventLogError(
                    f"Column {column!r} holds {before} in {other} but {kind} in {file}; files of "
                    "one log must agree."
                )


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
        table: the needed columns.
        recoded: number of values that were not UTF-8.
    """

    first_row: int
    table: pa.Table
    recoded: int


def read_part(part: Part, log: Log) -> Iterator[Batch]:
    """Yield the batches of a part in order, decoding values that are not UTF-8 as Windows-1252.

    Raises:
        EventLogError: the file cannot be read.
    """
    row = part.first_row
    readers = {"parquet": _read_parquet, "csv": _read_csv, "json": _read_json}
    try:
        for raw, before in readers[part.file.format](part, log):
            table, recoded = decode(_with_partition(raw, part.file, log))
            yield Batch(row, table, before + recoded)
            row += table.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(part.file, error) from None


def _read_parquet(part: Part, log: Log) -> Iterator[tuple[pa.Table, int]]:
    with part.file.open() as source:
        parquet = pq.ParquetFile(source)
        columns = [name for name in log.needed if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(
            ROWS_PER_BATCH, row_groups=list(part.row_groups or ()), columns=columns
        ):
            yield pa.Table.from_batches([batch]), 0


def _read_csv(part: Part, log: Log) -> Iterator[tuple[pa.Table, int]]:
    """Read all columns as bytes, so that Arrow does not turn the id 007 into the number 7."""
    with part.file.stream() as source:
        names = pa.csv.open_csv(source, CSV_READING).schema.names
    columns = [name for name in log.needed if name in names]
    options = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.binary()), include_columns=columns
    )
    with part.file.stream() as source:
        reader = pa.csv.open_csv(
            source,
            read_options=CSV_READING,
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=options,
        )
        for batch in reader:
            yield pa.Table.from_batches([batch]), 0


def _read_json(part: Part, log: Log) -> Iterator[tuple[pa.Table, int]]:
    folders = {name for name, _ in part.file.partition}
    with part.file.stream() as source:
        yield from read_json_lines(
            source, [name for name in log.needed if name not in folders], str(part.file)
        )


def _with_partition(table: pa.Table, file: EventFile, log: Log) -> pa.Table:
    for name, value in file.partition:
        if name in log.needed and name not in table.column_names:
            table = table.append_column(
                name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows)
            )
    return table
