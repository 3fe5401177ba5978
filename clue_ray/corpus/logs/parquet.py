"""Read Parquet files by row groups; times beyond the range of nanoseconds do not wrap around."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clue_ray.corpus.logs.files import EventFile
from clue_ray.corpus.logs.nested import flatten_schema, pick
from clue_ray.corpus.logs.table import Block

ROWS_PER_BATCH = 250_000
NANOSECONDS = 9_223_372_036_000
"""Milliseconds from 1970 that 64-bit nanoseconds hold, to either side."""
MICROSECONDS = 9_223_372_036_854_775
"""Milliseconds from 1970 that 64-bit microseconds hold, to either side."""


def parquet_schema(file: EventFile) -> tuple[pa.Schema, tuple[int, ...]]:
    """Return the schema of a file, with paths into structs, and the rows of each row group."""
    with file.open() as source:
        parquet = pq.ParquetFile(source)
        groups = range(parquet.metadata.num_row_groups)
        rows = tuple(parquet.metadata.row_group(group).num_rows for group in groups)
        return flatten_schema(parquet.schema_arrow), rows


def read_parquet(
    file: EventFile, wanted: Sequence[str], row_groups: Sequence[int]
) -> Iterator[Block]:
    """Yield the wanted columns of some row groups, with the rows that the file's metadata counts.

    Raises:
        ArrowInvalid: the row groups hold other numbers of rows than the metadata says.
    """
    with file.open() as source, file.open() as again:
        parquet = pq.ParquetFile(source)
        names = flatten_schema(parquet.schema_arrow).names
        columns = [name for name in wanted if name in names]
        counted = sum(parquet.metadata.row_group(group).num_rows for group in row_groups)
        batches = parquet.iter_batches(ROWS_PER_BATCH, row_groups=list(row_groups), columns=columns)
        tables = (pick(batch, columns) for batch in batches)
        if old := _int96_columns(parquet, columns):
            coarse = pq.ParquetFile(again, coerce_int96_timestamp_unit="ms")
            others = coarse.iter_batches(ROWS_PER_BATCH, row_groups=list(row_groups), columns=old)
            pairs = zip(tables, others, strict=True)
            tables = (_unwrap(table, pick(batch, old)) for table, batch in pairs)
        lines, rows = counted, 0
        for table in tables:
            rows += table.num_rows
            yield Block(table, lines=lines)
            lines = 0
        if rows != counted:
            raise pa.ArrowInvalid(f"its metadata counts {counted:,} rows, and it holds {rows:,}")


def _int96_columns(parquet: pq.ParquetFile, columns: Sequence[str]) -> list[str]:
    """Return the columns of 96-bit times, which Arrow reads as nanoseconds that may wrap around."""
    found = [parquet.schema.column(index) for index in range(len(parquet.schema))]
    return [c.path for c in found if c.physical_type == "INT96" and c.path in columns]


def _unwrap(table: pa.Table, coarse: pa.Table) -> pa.Table:
    """Replace the times that wrapped around, given the same columns in milliseconds."""
    for name in coarse.column_names:
        stored = coarse[name].cast(pa.int64())
        far = pc.greater(pc.abs_checked(pc.max_element_wise(stored, -MICROSECONDS)), NANOSECONDS)
        if not pc.any(far).as_py():
            continue
        clipped = pc.min_element_wise(pc.max_element_wise(stored, -MICROSECONDS), MICROSECONDS)
        clipped = pc.if_else(pc.is_valid(stored), clipped, pa.scalar(None, pa.int64()))
        near = pc.divide(table[name].cast(pa.int64()), 1000)
        micros = pc.if_else(far, pc.multiply(clipped, 1000), near)
        type_ = pa.timestamp("us", tz=table.schema.field(name).type.tz)
        column = micros.cast(pa.timestamp("us")).cast(type_)
        table = table.set_column(table.column_names.index(name), name, column)
    return table
