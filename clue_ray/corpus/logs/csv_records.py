"""Find the records of a CSV block, independently of the parser that reads them.

A record ends at a line end outside of quotes, as RFC 4180 has it. `scan` finds the ends with
numpy, and returns whether every quote of the block is where a quote may be. A block in which one is
not, such as an unclosed quote, is divided by `split_records`, record by record, so that one bad
line costs one line.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

LONGEST_FIELD = 64_000_000
"""Bytes of a quoted field with line ends; a longer one is an unclosed quote."""
QUOTE, LF, CR = ord('"'), ord("\n"), ord("\r")
QUOTES = b'"'
LONGEST_LINE = 100_000
"""Bytes of a line that is divided with regard to quotes; csv has a limit of its own."""
BLANK = "blank"
"""The fault of a blank line, which is not a record."""
LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class Scan:
    """What a block holds up to the end of its last whole record.

    Attributes:
        cut: bytes of whole records.
        records: number of records, without blank lines.
        other_lines: blank lines, and line ends within quotes.
        clean: whether every quote is where RFC 4180 allows one and no rows are within quotes.
        multiline: whether a line end is within quotes.
        waiting: whether a quote is open at the end of the block.
    """

    cut: int
    records: int
    other_lines: int
    clean: bool
    multiline: bool
    waiting: bool


def find_line_ends(data: bytes) -> NDArray[np.int64]:
    """Return the position of the last byte of each line end: LF, CR LF, or CR alone."""
    array = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(array == LF)
    if b"\r" not in data:
        return ends
    returns = np.flatnonzero(array == CR)
    alone = returns[array[np.minimum(returns + 1, len(array) - 1)] != LF]
    return np.sort(np.concatenate([ends, alone])) if len(alone) else ends


def scan(data: bytes, ends: NDArray[np.int64], separator: bytes, columns: int) -> Scan:
    """Find the records of a block that begins at a record and ends at a line end.

    Args:
        ends: the block's line ends, as from `find_line_ends`.
    """
    array = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(array == QUOTE)
    inside = (
        (np.searchsorted(quotes, ends) & 1).astype(bool)
        if len(quotes)
        else np.zeros(len(ends), bool)
    )
    stops = ends[~inside]
    cut = int(stops[-1]) + 1 if len(stops) else 0
    starts = np.concatenate([[0], stops[:-1] + 1]) if len(stops) else stops
    blank = _count_blank(array, starts, stops)
    within = ends[inside & (ends < cut)]
    clean = _quotes_are_in_place(array, quotes[quotes < cut], separator)
    if clean and len(within):
        clean = not _hides_rows(data, quotes, within, stops, separator, columns)
    return Scan(
        cut=cut,
        records=len(stops) - blank,
        other_lines=blank + len(within),
        clean=clean,
        multiline=bool(len(within)),
        waiting=bool(len(quotes) & 1),
    )


def _count_blank(
    array: NDArray[np.uint8], starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> int:
    """Count the records that hold nothing but their line end."""
    lengths = stops - starts
    pairs = starts[lengths == 1]  # one byte before the last: blank if it begins CR LF
    pairs = pairs[(array[pairs] == CR) & (array[pairs + 1] == LF)]
    return int((lengths == 0).sum()) + len(pairs)


def _quotes_are_in_place(
    array: NDArray[np.uint8], quotes: NDArray[np.int64], separator: bytes
) -> bool:
    """Return whether quotes open at the start of a field and close at its end."""
    if not len(quotes):
        return True
    allowed = np.zeros(256, bool)
    allowed[[separator[0], LF, CR, QUOTE]] = True
    opening, closing = quotes[0::2], quotes[1::2]
    before = np.where(opening == 0, LF, array[opening - 1])
    after = array[np.minimum(closing + 1, len(array) - 1)]
    return bool(allowed[before].all() and allowed[after].all()) and not len(quotes) & 1


def _hides_rows(
    data: bytes,
    quotes: NDArray[np.int64],
    within: NDArray[np.int64],
    stops: NDArray[np.int64],
    separator: bytes,
    columns: int,
) -> bool:
    """Return whether a quoted field of several lines holds lines that are rows themselves."""
    openings = np.unique(np.searchsorted(quotes, within) - 1)
    for index in openings.tolist():
        # A doubled quote closes and opens: the field goes on from the quote that began it.
        first, last = index, index + 1
        while first >= 2 and quotes[first] == quotes[first - 1] + 1:
            first -= 2
        while last + 1 < len(quotes) and quotes[last + 1] == quotes[last] + 1:
            last += 2
        opening, closing = int(quotes[first]), int(quotes[last])
        place = int(np.searchsorted(stops, opening))
        start = int(stops[place - 1]) + 1 if place else 0
        if _swallows_rows(data, start, opening, closing, separator, columns):
            return True
    return False


def _swallows_rows(
    data: bytes, start: int, opening: int, closing: int, separator: bytes, columns: int
) -> bool:
    """Return whether most lines of a quoted field look like rows of the file.

    This happens where a quote is not closed, and a quote further down seems to close it. A line
    looks like a row if it has all columns, and those around the quoted one are of the same kinds as
    in the record that the field belongs to.

    Args:
        start: of the record.
        opening, closing: places of the field's quotes.
    """
    lines = LINE_END.split(data[opening + 1 : closing])[1:]
    tail = LINE_END.split(data[closing : closing + 10_000], maxsplit=1)[0]
    before = [_kind(field) for field in _fields(data[start:opening], separator)[:-1]]
    after = [_kind(field) for field in _fields(tail[1:], separator)[1:]]
    if not any(before + after):
        return False
    rows = sum(_is_row(line, before, after, separator, columns) for line in lines[:-1][:100])
    # Behind the closing quote the record goes on, so its last line proves something only before.
    rows += any(before) and _is_row(lines[-1] + tail, before, after, separator, columns)
    return rows * 2 > min(len(lines), 101)


def _is_row(
    line: bytes,
    before: list[frozenset[str]],
    after: list[frozenset[str]],
    separator: bytes,
    columns: int,
) -> bool:
    """Return whether a line has all columns, of given kinds before and after the quoted one."""
    kinds = [_kind(field) for field in _fields(line, separator)]
    if len(kinds) != columns or columns == 1:
        return False
    return kinds[: len(before)] == before and kinds[columns - len(after) :] == after


def _fields(line: bytes, separator: bytes) -> list[bytes]:
    """Divide a line at the separators outside of quotes."""
    if QUOTES not in line or len(line) > LONGEST_LINE:
        return line.split(separator)
    reader = csv.reader([line.decode("latin-1")], delimiter=separator.decode("latin-1"))
    return [field.encode("latin-1") for field in next(reader, [])]


def _kind(field: bytes) -> frozenset[str]:
    """Return which kinds of characters a field holds: digits, letters, spaces, marks."""
    found = set()
    for character in field.decode("latin-1").strip('"'):
        if character.isdigit():
            found.add("digit")
        elif character.isalpha():
            found.add("letter")
        else:
            found.add(character)
    return frozenset(found)


@dataclass(frozen=True)
class Record:
    """A record of a block: its fields, or the reason why they cannot be separated.

    Attributes:
        end: place of the first byte behind its line end.
        lines: line ends in it.
        literal: whether a misplaced quote was read as a character.
    """

    fields: list[bytes]
    fault: str | None
    line: bytes
    end: int
    lines: int
    literal: bool = False


def split_records(data: bytes, separator: bytes, columns: int, *, final: bool) -> Iterator[Record]:
    """Divide a block into records, and read a line with a misplaced quote by itself.

    A block that does not end the file may end within a quoted field: the record is then left to the
    next block, unless the field is longer than any field should be.
    """
    patterns = _Patterns(separator)
    place = 0
    while place < len(data):
        found = LINE_END.search(data, place)
        stop, end = (found.start(), found.end()) if found else (len(data), len(data))
        line = data[place:stop]
        record = Record(line.split(separator), None, line, end, 1)
        if not line:
            record = Record([], BLANK, line, end, 1)
        elif b'"' in line:
            whole = _read_strictly(data, place, patterns, columns)
            if isinstance(whole, Open) and not final and len(data) - place <= LONGEST_FIELD:
                return
            record = _choose(whole, record, data, place, patterns, columns)
        if not record.fault and len(record.fields) != columns:
            fault = f"the line has {len(record.fields)} fields, and the header {columns}"
            record = replace(record, fault=fault)
        yield record
        place = record.end


def _choose(
    whole: "Record | Open | None",
    line: Record,
    data: bytes,
    place: int,
    patterns: "_Patterns",
    columns: int,
) -> Record:
    """Return a record as RFC 4180 reads it, or its first line by itself where that cannot be."""
    if isinstance(whole, Record) and (whole.lines == 1 or len(whole.fields) == columns):
        return whole
    fields = _read_line(line.line, patterns, columns)
    fault = None if fields else "a quote in the line is not closed"
    return replace(line, fields=fields or [], fault=fault, literal=fields is not None)


class Open:
    """A record with a quote that is open at the end of the block."""


class _Patterns:
    """The patterns of a field for one separator.

    Attributes:
        quoted: a quoted field that ends where a field may end.
        escaped: the same within a line, with quotes escaped by a backslash.
        plain: a field without quotes.
        open: a quoted field that does not end.
    """

    def __init__(self, separator: bytes):
        mark = re.escape(separator)
        self.separator = separator
        self.quoted = re.compile(rb'"([^"]*(?:""[^"]*)*)"(?=' + mark + rb"|\r|\n|\Z)")
        self.escaped = re.compile(rb'"((?:[^"\\]|\\.|"")*)"(?=' + mark + rb"|\Z)")
        self.plain = re.compile(b"[^\r\n" + mark + b"]*")
        self.open = re.compile(rb'"[^"]*(?:""[^"]*)*\Z')


def _read_strictly(
    data: bytes, start: int, patterns: _Patterns, columns: int
) -> Record | Open | None:
    """Read a record by RFC 4180, or return None if a quote is misplaced or hides rows."""
    separator, place, fields = patterns.separator, start, []
    while True:
        if data[place : place + 1] == b'"':
            found = patterns.quoted.match(data, place)
            if not found:
                return Open() if patterns.open.match(data, place) else None
            several = LINE_END.search(found[1])
            if several and _swallows_rows(data, start, place, found.end() - 1, separator, columns):
                return None
            fields.append(found[1].replace(b'""', b'"'))
        else:
            found = patterns.plain.match(data, place)
            assert found, "an empty field matches too"
            fields.append(found[0])
        place = found.end()
        if data[place : place + 1] != separator:
            break
        place += 1
    after = LINE_END.match(data, place)
    end = after.end() if after else place
    lines = len(LINE_END.findall(data, start, end)) or 1
    return Record(fields, None, data[start:place], end, lines)


def _read_line(line: bytes, patterns: _Patterns, columns: int) -> list[bytes] | None:
    """Read a line by itself: proper quotes, escaped quotes, and otherwise quotes as characters."""
    separator, fields, place = patterns.separator, [], 0
    while place <= len(line):
        found = patterns.escaped.match(line, place)
        if found:
            value = found[1].replace(b'""', b'"')
            fields.append(re.sub(rb"\\(.)", rb"\1", value) if b'\\"' in value else value)
            place = found.end() + 1
        else:
            stop = line.find(separator, place)
            stop = len(line) if stop < 0 else stop
            fields.append(line[place:stop])
            place = stop + 1
    if len(fields) == columns:
        return fields
    literal = line.split(separator)
    return literal if len(literal) == columns else None
