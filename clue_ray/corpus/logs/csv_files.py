"""Read CSV files with Arrow's parser, block by block, and count their lines independently of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.csv

from clue_ray.corpus.logs.csv_records import (
    BLANK,
    LINE_END,
    LONGEST_FIELD,
    Record,
    Scan,
    find_line_ends,
    scan,
    split_records,
)
from clue_ray.corpus.logs.encoding import decode_bytes
from clue_ray.corpus.logs.table import Block, LineCounter, with_faults
from clue_ray.storage.delimited import declared_separator, find_separator, split_header
from clue_ray.storage.unpack import Readable

BLOCK, HEADER = 16_000_000, 1_000_000
SLOW_RECORDS = 20_000
"""Records that are divided one by one before the rest of a block is scanned again."""
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Header:
    """The first line of a CSV file.

    Attributes:
        names: of the columns; none if the file is empty.
        separator: of the columns.
        size: bytes up to the first record.
        lines: lines up to the first record.
    """

    names: tuple[str, ...]
    separator: str
    size: int
    lines: int


def csv_schema(
    source: Readable, wanted: Sequence[str], separator: str | None
) -> tuple[pa.Schema, str]:
    """Return a file's columns, with types as its first rows suggest, and its separator.

    Raises:
        ArrowInvalid: the file is not text.
    """
    start = _read_fully(source, HEADER)
    header = _parse_header(start, wanted, separator)
    types = _guess_types(start[header.size :], header)
    return pa.schema(list(zip(header.names, types, strict=True))), header.separator


def _guess_types(data: bytes, header: Header) -> list[pa.DataType]:
    """Guess the types of columns; text where the rows cannot be parsed."""
    texts = [pa.string()] * len(header.names)
    if not data.strip():
        return texts
    data = data.decode("utf-8", "replace").encode()
    reading = pa.csv.ReadOptions(column_names=[str(n) for n in range(len(texts))])
    parsing = pa.csv.ParseOptions(
        delimiter=header.separator, newlines_in_values=True, invalid_row_handler=lambda _: "skip"
    )
    try:
        return pa.csv.open_csv(pa.BufferReader(data), reading, parsing).schema.types
    except pa.ArrowException:
        return texts


def _parse_header(start: bytes, wanted: Sequence[str], separator: str | None) -> Header:
    place, lines = (len(BOM) if start.startswith(BOM) else 0), 0
    declared = None
    while place < len(start):
        line, end = _first_record(start, place)
        lines += len(LINE_END.findall(start, place, end)) or 1
        place = end
        text = decode_bytes(line)[0] or ""
        if declared_separator(text) and not declared:
            declared = declared_separator(text)
        elif "\0" in text:
            raise pa.ArrowInvalid(
                "its header holds NUL bytes, so it is UTF-16 or a binary format such as Parquet; "
                "only UTF-8, and UTF-16 with a byte order mark, are read"
            )
        elif text.strip():
            used = separator or declared or find_separator(text, wanted)
            return Header(tuple(split_header(text, used)), used, place, lines)
    return Header((), separator or declared or ",", place, lines)


def _first_record(data: bytes, place: int) -> tuple[bytes, int]:
    """Return the header, which may have quoted line ends, and where the next record begins."""
    stop = place
    while found := LINE_END.search(data, stop):
        if data.count(b'"', place, found.start()) % 2 == 0:
            return data[place : found.start()], found.end()
        stop = found.end()
    found = LINE_END.search(data, place)  # a quote that is never closed is a character
    return (data[place : found.start()], found.end()) if found else (data[place:], len(data))


def read_csv(source: Readable, wanted: Sequence[str], separator: str | None) -> Iterator[Block]:
    """Yield those of the wanted columns that the file has, as bytes, block by block.

    All columns are read as bytes, so that Arrow does not turn the id 007 into the number 7. A line
    that cannot be read is a row with a fault.

    Raises:
        ArrowInvalid: the lines of the file do not add up.
    """
    counter = LineCounter(source)
    data = _read_fully(counter, HEADER)
    header = _parse_header(data, wanted, separator)
    columns = [name for name in wanted if name in header.names]
    reader = _Reader(header, [header.names.index(name) for name in columns], columns)
    data, other = data[header.size :], header.lines
    final, stuck = False, True
    while data or not final:
        if not final and (stuck or len(data) < BLOCK):
            more = _read_fully(counter, BLOCK)
            final = not more
            data += more
        if final and data and not data.endswith((b"\n", b"\r")):
            data += b"\n"
        block, rest = reader.read(data, final)
        stuck = len(rest) == len(data)
        if stuck and final and rest:
            raise pa.ArrowInvalid(f"its last {len(rest):,} bytes cannot be divided into lines")
        data = rest
        yield block.with_lines(counter.take(), other)
        other = 0


def _read_fully(source: Readable, size: int) -> bytes:
    """Read until `size` bytes are there or the file ends; a stream may return fewer at a time."""
    parts, left = [], size
    while left > 0 and (more := source.read(left)):
        parts.append(more)
        left -= len(more)
    while parts and parts[-1].endswith(b"\r"):  # LF may follow, also the next CR
        parts.append(source.read(1))
    return b"".join(parts)  # without a copy if it is one part


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Reader:
    """Turns blocks of bytes into tables.

    Args:
        indices: of the columns that are read.
    """

    def __init__(self, header: Header, indices: list[int], names: list[str]):
        self.separator, self.indices, self.names = header.separator.encode(), indices, names
        self.keys = [f"{number}" for number in range(len(header.names))]
        kept = [self.keys[index] for index in indices]
        self.convert = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(kept, pa.binary()), include_columns=kept
        )

    def read(self, data: bytes, final: bool) -> tuple[Block, bytes]:
        """Read the whole records of some bytes, and return the rest."""
        ends = find_line_ends(data)
        whole = data[: int(ends[-1]) + 1] if len(ends) else b""
        found = scan(whole, ends, self.separator, len(self.keys))
        left = len(data) - found.cut
        stuck = found.waiting and (final or left > LONGEST_FIELD + BLOCK)
        if found.clean and not stuck and not data.startswith(BOM):  # Arrow drops a BOM
            block = self._parse(whole[: found.cut], found)
            if block:
                return block, data[found.cut :]
        slow = split_records(whole, self.separator, len(self.keys), final=final)
        records = list(islice(slow, SLOW_RECORDS))
        end = records[-1].end if records else 0
        return self._build(records), data[end:]

    def _parse(self, data: bytes, found: Scan) -> Block | None:
        """Read a block of proper quotes with Arrow, or return None if Arrow rejects it.

        Ragged rows become faults. Arrow cannot pass them on if they are not UTF-8.
        """
        if not found.records:
            return Block(self._empty(), other_lines=found.other_lines)
        faults: dict[int, tuple[str, str]] = {}

        def note(row: pa.csv.InvalidRow) -> str:
            fault = (
                f"the line has {row.actual_columns} fields, and the header {row.expected_columns}"
            )
            faults[row.number - 1] = (fault, row.text)
            return "skip"

        table = self._read_arrow(data, found, None)
        if table is None and _is_utf8(data):  # rare: the check would cost time in every block
            table = self._read_arrow(data, found, note)
        if table is None:
            return None
        if table.num_rows + len(faults) != found.records:
            raise pa.ArrowInvalid(
                f"{table.num_rows + len(faults):,} rows were parsed of {found.records:,} records"
            )
        return Block(with_faults(table, faults), other_lines=found.other_lines)

    def _read_arrow(
        self, data: bytes, found: Scan, on_ragged: Callable[[pa.csv.InvalidRow], str] | None
    ) -> pa.Table | None:
        """Read a block with Arrow, or return None if Arrow rejects it."""
        reading = pa.csv.ReadOptions(
            block_size=len(data) + 1, use_threads=False, column_names=self.keys
        )
        parsing = pa.csv.ParseOptions(
            delimiter=self.separator.decode(),
            newlines_in_values=found.multiline,
            invalid_row_handler=on_ragged,
        )
        try:
            table = pa.csv.read_csv(pa.BufferReader(data), reading, parsing, self.convert)
        except pa.ArrowInvalid:
            return None
        return table.rename_columns(self.names)

    def _build(self, records: list[Record]) -> Block:
        """Make a table of records that were divided one by one."""
        other = sum(record.lines - (record.fault != BLANK) for record in records)
        rows = [record for record in records if record.fault != BLANK]
        good = [record.fields for record in rows if not record.fault]
        columns = [
            pa.array([fields[index] for fields in good], pa.binary()) for index in self.indices
        ]
        faults = {
            place: (record.fault, record.line.decode("utf-8", "replace"))
            for place, record in enumerate(rows)
            if record.fault
        }
        table = pa.table(dict(zip(self.names, columns, strict=True))) if columns else self._empty()
        literal = sum(record.literal for record in rows)
        return Block(with_faults(table, faults), other_lines=other, literal=literal)

    def _empty(self) -> pa.Table:
        return pa.table({name: pa.array([], pa.binary()) for name in self.names})
