"""Reading event files part by part, in order, with a sentence for whatever cannot be read.

A part is what one task reads: some row groups of a Parquet file, or a whole CSV or JSON Lines file,
streamed. Ray Data's own readers know neither the number of a row, which is the order of appearance
and the place of a mistake, nor files of different formats in one log.
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
"""One thread a task; with more, Arrow does not number the rows of its complaints."""
SCHEMA_READERS = 16
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Part:
    """What one task reads.

    Attributes:
        log: index of its log.
        number: of its file, among the log's files in order of name.
        row_groups: of a Parquet file; None stands for the whole file.
        first_row: number of its first row in its file.
    """

    log: int
    number: int
    file: EventFile
    row_groups: tuple[int, ...] | None = None
    first_row: int = 0


@dataclass(frozen=True)
class Reading:
    """All that is read for a corpus: the spec, its logs, and their parts in order."""

    spec: CorpusSpec
    logs: tuple[Log, ...]
    parts: tuple[Part, ...]

    @property
    def files(self) -> list[EventFile]:
        """List the files, each once, in order."""
        return list(dict.fromkeys(part.file for part in self.parts))


def plan_reading(spec: CorpusSpec) -> Reading:
    """Find and check every file of a corpus's logs, and cut them into parts.

    Raises:
        EventLogError: a file cannot be read, lacks a column, or disagrees with another of its log.
    """
    logs, parts = [], []
    for index, log in enumerate(logs_of(spec)):
        files = find_files(log.places)
        with ThreadPoolExecutor(SCHEMA_READERS) as pool:
            heads = list(pool.map(_read_schemas, files))
        log = replace(log, has_time=_has_time(log, files, heads))
        _check_files(log, files, heads)
        _check_order(log, spec)
        logs.append(log)
        for number, (file, head) in enumerate(zip(files, heads, strict=True)):
            parts += _cut(Part(index, number, file), head)
    return Reading(spec, tuple(logs), tuple(parts))


@dataclass(frozen=True)
class Head:
    """What a file says of itself: its columns, and the rows of each Parquet row group."""

    schema: pa.Schema
    group_rows: tuple[int, ...] = ()


def _read_schemas(file: EventFile) -> Head:
    """Read a file's columns, those of its folders included; raise EventLogError when it is empty or
    unreadable.
    """
    try:
        head = _read_head(file)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from None
    for name, _ in file.partition:
        if name not in head.schema.names:
            head = replace(head, schema=head.schema.append(pa.field(name, pa.string())))
    return head


def _read_head(file: EventFile) -> Head:
    if file.format == "parquet":
        with file.open() as source:
            parquet = pq.ParquetFile(source)
            groups = range(parquet.metadata.num_row_groups)
            return Head(
                parquet.schema_arrow, tuple(parquet.metadata.row_group(i).num_rows for i in groups)
            )
    with file.stream() as source:
        if source.read(2) in UTF_16_MARKS:
            raise pa.ArrowInvalid("it is UTF-16, where UTF-8 is read: convert it")
    with file.stream() as source:
        is_json = file.format == "json"
        return Head(
            json_schema(source, str(file))
            if is_json
            else pa.csv.open_csv(source, CSV_READING).schema
        )


def _unreadable(file: EventFile, error: Exception) -> EventLogError:
    """Say in one sentence that a file cannot be read, and why."""
    return EventLogError(
        f"Event log {file} cannot be read ({explain_access(error)}); mend the file or leave it out."
    )


def _has_time(log: Log, files: list[EventFile], heads: list[Head]) -> bool:
    """Tell whether a log carries times: a column that was named must be there, an unnamed one in
    all files or none.
    """
    if "timestamp" in log.columns:
        return True
    having = ["timestamp" in head.schema.names for head in heads]
    if any(having) and not all(having):
        raise EventLogError(
            f"Event log file {files[having.index(False)]} has no column 'timestamp', but "
            f"{files[having.index(True)]} "
            "has; files of one log must agree."
        )
    return all(having)


def _check_order(log: Log, spec: CorpusSpec) -> None:
    if log.has_time:
        return
    wish = (
        "duplicates: drop"
        if spec.duplicates == "drop"
        else "split.time"
        if spec.split.time
        else None
    )
    if wish:
        raise EventLogError(
            f"{wish} needs event times, but log {', '.join(log.places)} has no column 'timestamp'; "
            f"name it with "
            "columns, or leave that setting out."
        )


def _check_files(log: Log, files: list[EventFile], heads: list[Head]) -> None:
    """Refuse a file that lacks a column, or holds another kind of value in it than the files
    before.
    """
    seen: dict[str, tuple[str, EventFile]] = {}
    for file, head in zip(files, heads, strict=True):
        try:
            check_columns(head.schema, log)
        except EventLogError as error:
            raise EventLogError(
                f"{str(error).rstrip('.')} (in {file})." if len(files) > 1 else str(error)
            ) from None
        for column in log.needed:
            kind = "text" if file.format == "csv" else kind_of(head.schema.field(column).type)
            before, other = seen.setdefault(column, (kind, file))
            if before == "unknown":
                seen[column] = (kind, file)
            elif kind not in (before, "unknown"):
                raise EventLogError(
                    f"Column {column!r} holds {before} in {other} but {kind} in {file}; files of "
                    f"one log must agree."
                )


def _cut(whole: Part, head: Head) -> list[Part]:
    """Cut a Parquet file between row groups into parts of about ROWS_PER_PART rows."""
    if whole.file.format != "parquet":
        return [whole]
    parts: list[Part] = []
    groups: list[int] = []
    start = row = 0
    for group, rows in enumerate(head.group_rows):
        groups.append(group)
        row += rows
        if row - start >= ROWS_PER_PART or group == len(head.group_rows) - 1:
            parts.append(replace(whole, row_groups=tuple(groups), first_row=start))
            groups, start = [], row
    return parts


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a file: the number of the first, their needed columns, and how many were
    recoded.
    """

    first_row: int
    table: pa.Table
    recoded: int


def read_part(part: Part, log: Log) -> Iterator[Batch]:
    """Read a part in order, in batches; values that are not UTF-8 are recoded from Windows-1252."""
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
    """Read text columns as bytes: neither ids nor words lose anything, whatever they look like."""
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
