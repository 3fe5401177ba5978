"""Properties of users, read from a table: the classes or values that an attribute task predicts."""

from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from clue_ray.corpus.logs.encoding import decode, kind_of
from clue_ray.corpus.logs.ids import as_ids
from clue_ray.corpus.logs.numbers import as_number, find_exception
from clue_ray.errors import SpecError, StudyError, reason_of
from clue_ray.storage.delimited import DECIMAL_COMMA
from clue_ray.storage.files import read_bytes
from clue_ray.storage.tables import CsvText, check_names, open_table
from clue_ray.transfer.tasks.spec import AttributeSpec

ATTRIBUTE_KINDS = ("text", "whole numbers", "numbers", "bool", "unknown")
"""Kinds of values that an attribute may have."""
MOST_WORDS = 20
"""A column of more different texts than this is one of numbers if all of them are."""


def user_values(asked: AttributeSpec) -> "pd.Series[Any]":
    """Read a column of the table, indexed by the log's user ids; NaN where a user has no value.

    Raises:
        SpecError: the table cannot be read, lacks a column, or the column holds lists.
    """
    table = _read_table(asked.table, (asked.user, asked.column))
    for column in (asked.user, asked.column):
        if column not in table.column_names:
            raise SpecError(
                f"Table {asked.table} has no column {column!r}; its columns are "
                f"{', '.join(table.column_names)}."
            )
        kind = table.schema.field(column).type
        if kind_of(kind) not in ATTRIBUTE_KINDS + ("UUIDs",) * (column == asked.user):
            raise SpecError(
                f"Column {column!r} of table {asked.table} holds {kind}; give one number or string "
                "per user."
            )
    ids = as_ids(table[asked.user])
    table = table.select([asked.column]).filter(ids.is_valid())
    users = [asked.prefix + user for user in ids.drop_null().to_pylist()]
    values = pd.Series(_read_values(table[asked.column], asked), pd.Index(users, dtype=object))
    return values.replace([np.inf, -np.inf, ""], np.nan)


def _read_values(column: pa.ChunkedArray, asked: AttributeSpec) -> NDArray[Any]:
    """Return the values of a column: numbers where it holds numbers, otherwise as they are.

    Raises:
        SpecError: a column of almost nothing but numbers holds something else.
    """
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    values: NDArray[Any] = column.to_pandas().to_numpy()
    if kind_of(column.type) != "text" or asked.positive is not None:
        return values
    texts = [text for text in pc.unique(column).to_pylist() if text]
    if len(texts) <= MOST_WORDS:
        return values
    if odd := find_exception(texts):
        row = column.to_pylist().index(odd)
        raise SpecError(
            f"Column {asked.column!r} of table {asked.table} holds numbers, and {odd!r} in row "
            f"{row}; give numbers only, and leave the value out where it is missing."
        )
    numbers = [as_number(text) for text in texts]
    if None in numbers:
        return values
    found = dict(zip(texts, numbers, strict=True))
    return np.array([found.get(text, np.nan) for text in column.to_pylist()], dtype=float)


def label_attribute(
    asked: AttributeSpec, part: "pd.Series[Any]"
) -> tuple[list[str], tuple[str, ...], NDArray[Any], NDArray[np.int64]]:
    """Label the users of a log with an attribute.

    Args:
        part: part of the split of each user of the log, indexed by user.

    Returns:
        Users with a value; names of the classes, empty for a regression; each user's class number
        or value; and zeros, because no label is missing from the candidates.

    Raises:
        SpecError: the table cannot be read, lacks a column or value, or repeats a user.
    """
    found = user_values(asked)
    values = found.dropna()
    if values.index.has_duplicates:
        twice = values.index[values.index.duplicated()][0]
        raise SpecError(
            f"Table {asked.table} has user {twice!r} more than once; give one row per user."
        )
    values = values[values.index.isin(part.index)]
    if values.empty:
        raise SpecError(
            f"Table {asked.table} has a value of {asked.column!r} for no user of the log; it has "
            f"users such as {found.index[0] if len(found) else ''!r}, the log such as "
            f"{part.index[0]!r}: check user and prefix."
        )
    nothing = np.zeros(len(values), dtype=np.int64)
    number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if asked.positive is None and number and values.nunique() > 2:
        return list(values.index), (), values.to_numpy(dtype=np.float64), nothing
    if number and (values % 1 == 0).all():
        values = values.astype(np.int64)  # a column with gaps is read as 1.0, not 1
    words = values.astype(str)
    if asked.positive is not None:
        if unknown := sorted(set(asked.positive) - set(words)):
            raise SpecError(
                f"Table {asked.table} has no value {unknown[0]!r} in {asked.column!r}; its values "
                f"are for example {', '.join(sorted(set(words))[:8])}."
            )
        words = words.isin(asked.positive).map({True: "yes", False: "no"})
    names = tuple(sorted(words.unique()))
    return list(values.index), names, pd.Index(names).get_indexer(words), nothing


def read_table_file(place: str) -> bytes:
    """Read the bytes of a table of users: a path, a URI, or a file of an installed package.

    Raises:
        SpecError: the file does not exist or cannot be read.
    """
    if place.startswith("package:"):
        package, _, name = place.removeprefix("package:").partition("/")
        try:
            place = str(resources.files(package) / name)
        except ModuleNotFoundError as error:
            raise SpecError(
                f"Table {place} is in package {error.name}, which is not installed; install it."
            ) from None
        except (ValueError, TypeError):
            raise SpecError(
                f"Table {place} names no package; write it as package:NAME/FILE."
            ) from None
    try:
        return read_bytes(place)
    except FileNotFoundError:
        raise SpecError(f"Table {place} does not exist; give a CSV or Parquet file.") from None
    except (OSError, StudyError) as error:
        reason = str(error).split(";")[0].splitlines()[0]
        raise SpecError(
            f"Table {place} cannot be read ({reason}); give a CSV or Parquet file."
        ) from None


def _read_table(place: str, wanted: tuple[str, str]) -> pa.Table:
    """Read a table of users, CSV or Parquet by the name of its file.

    It may be packed, and a CSV file may have any separator. pyarrow reads it, because pandas would
    read ids and strings such as "None" and "007" as missing values and numbers.
    """
    content = read_table_file(place)
    try:
        found = open_table(content, urlsplit(place).path, wanted)
        if isinstance(found, bytes):
            table = pq.read_table(pa.BufferReader(found))
        elif isinstance(found, CsvText):
            table = csv.read_csv(
                pa.BufferReader(found.text.encode()),
                parse_options=csv.ParseOptions(delimiter=found.separator, newlines_in_values=True),
                convert_options=csv.ConvertOptions(column_types={wanted[0]: pa.string()}),
            )
            table = table.rename_columns([name.strip() for name in table.column_names])
            if found.separator != ",":
                table = _with_decimal_points(table, wanted[1])
        else:
            table = pa.Table.from_pylist(found)
        check_names(table.column_names)
        return decode(table)[0]
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        reason = reason_of(error)
        raise SpecError(f"Table {place} cannot be read ({reason}); give CSV or Parquet.") from None


def _with_decimal_points(table: pa.Table, name: str) -> pa.Table:
    """Replace the decimal commas of a column that holds nothing but numbers."""
    if name not in table.column_names or not pa.types.is_string(table[name].type):
        return table
    texts = table[name]
    numbers = pc.match_substring_regex(texts, f"^({DECIMAL_COMMA})?$")
    if not pc.all(numbers).as_py():
        return table
    points = pc.replace_substring(pc.if_else(pc.equal(texts, ""), None, texts), ",", ".")
    column = points.cast(pa.float64())
    return table.set_column(table.column_names.index(name), name, column)
