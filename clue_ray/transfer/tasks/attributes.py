"""Properties of users, read from a table: the classes or values that an attribute task predicts."""

from importlib import resources
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from clue_ray.corpus.logs.schema import as_text
from clue_ray.errors import SpecError, StudyError
from clue_ray.storage.files import read_bytes
from clue_ray.transfer.tasks.spec import AttributeSpec


def user_values(asked: AttributeSpec) -> "pd.Series[Any]":
    """Read a column of the table, indexed by the log's user ids; NaN where a user has no value.

    Raises:
        SpecError: the table cannot be read, lacks a column, or the column holds lists.
    """
    table = _read_table(asked.table, asked.user)
    for column in (asked.user, asked.column):
        if column not in table.column_names:
            raise SpecError(
                f"Table {asked.table} has no column {column!r}; its columns are "
                f"{', '.join(table.column_names)}."
            )
        if pa.types.is_nested(table.schema.field(column).type):
            kind = table.schema.field(column).type
            raise SpecError(
                f"Column {column!r} of table {asked.table} holds {kind}; give one number or string "
                "per user."
            )
    table = table.filter(table[asked.user].is_valid())
    users = [asked.prefix + user for user in as_text(table[asked.user]).to_pylist()]
    values = pd.Series(
        table[asked.column].to_pandas().to_numpy(), index=pd.Index(users, dtype=object)
    )
    return values.replace([np.inf, -np.inf, ""], np.nan)


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


def _read_table(place: str, user: str) -> pa.Table:
    """Read a table of users, CSV or Parquet by the name of its file.

    pyarrow reads a CSV, because pandas would read ids and strings such as "None" and "007" as
    missing values and numbers.
    """
    content = BytesIO(read_table_file(place))
    try:
        if urlsplit(place).path.endswith(".parquet"):
            return pq.read_table(content)
        return csv.read_csv(
            content, convert_options=csv.ConvertOptions(column_types={user: pa.string()})
        )
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SpecError(
            f"Table {place} cannot be read ({str(error).splitlines()[0]}); give CSV or Parquet."
        ) from None
