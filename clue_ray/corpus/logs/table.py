"""Tables of raw rows, with the lines that could not be read in their places.

Every line of a file is a row, also one that is not a record of the format: it has null in each
column and a fault, so that it is counted and written to `rejected/` like any other unusable row.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa

from clue_ray.storage.unpack import Readable

FAULT, LINE = "clue_ray.fault", "clue_ray.line"
"""Columns of a table with faults: why a line cannot be read, and its beginning."""
LINE_LENGTH = 1000
"""Characters of an unreadable line that are kept."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a file, as its reader yields them.

    Attributes:
        table: the needed columns; with FAULT and LINE if a line could not be read.
        recoded: number of values that were not UTF-8.
        lines: lines or rows that an independent count found since the previous block.
        other_lines: lines that are no rows: the header, blank lines, line ends within quotes.
        literal: lines of CSV in which a misplaced quote was read as a character.
    """

    table: pa.Table
    recoded: int = 0
    lines: int = 0
    other_lines: int = 0
    literal: int = 0

    def with_lines(self, lines: int, other: int) -> Self:
        """Return this block with the independent count, and more lines that are no rows."""
        return replace(self, lines=lines, other_lines=self.other_lines + other)


def with_faults(table: pa.Table, faults: dict[int, tuple[str, str]]) -> pa.Table:
    """Insert rows for lines that could not be read.

    Args:
        faults: place of the row -> fault and line.
    """
    if not faults:
        return table
    places = np.array(sorted(faults))
    rows = table.num_rows + len(places)
    is_bad = np.zeros(rows, bool)
    is_bad[places] = True
    source = np.cumsum(~is_bad) - 1
    indices = pa.array(source, mask=is_bad)
    texts: Any = {FAULT: [None] * rows, LINE: [None] * rows}
    for place, (fault, line) in faults.items():
        texts[FAULT][place], texts[LINE][place] = fault, line[:LINE_LENGTH]
    if not table.num_rows:
        columns = {name: pa.nulls(rows, pa.string()) for name in table.column_names}
    else:
        columns = {name: table[name].take(indices) for name in table.column_names}
    return pa.table(columns | {name: pa.array(t, pa.string()) for name, t in texts.items()})


class LineCounter:
    """A stream that counts the line ends of all bytes that pass through it.

    The count knows nothing of records or parsers, so that it can check both.
    """

    def __init__(self, source: Readable, *, carriage_returns: bool = True):
        self.source = source
        self.carriage_returns = carriage_returns
        self.lines = 0
        self.taken = 0
        self.last = b""
        self.ended = False

    def read(self, size: int) -> bytes:
        """Read like the stream itself."""
        data = bytes(self.source.read(size))
        if not data and not self.ended:
            self.ended = True
            terminators = b"\n\r" if self.carriage_returns else b"\n"
            self.lines += bool(self.last) and self.last not in terminators
        # numpy counts one byte several times as fast as bytes.count.
        self.lines += int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))
        if self.carriage_returns and (b"\r" in data or self.last == b"\r"):
            pairs = data.count(b"\r\n") + (self.last == b"\r" and data.startswith(b"\n"))
            self.lines += data.count(b"\r") - pairs
        self.last = data[-1:] or self.last
        return data

    def take(self) -> int:
        """Return the lines counted since the last call."""
        new, self.taken = self.lines - self.taken, self.lines
        return new
