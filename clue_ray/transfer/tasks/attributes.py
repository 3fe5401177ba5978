"""Properties of users, read from a table that lies anywhere: classes or values, as a task asks."""

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

from clue_ray.corpus.logs.ids import as_ids
from clue_ray.errors import SpecError, StudyError
from clue_ray.storage.files import read_bytes
from clue_ray.transfer.tasks.spec import AttributeSpec


def user_values(asked: AttributeSpec) -> "pd.Series[Any]":
    """Read a table's column by user, as the log writes users; missing where a user has no value.

    Raises:
        SpecError: the table cannot be read, has no such column, or one that holds lists.
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
                f"Column {column!r} of table {asked.table} holds {kind}; give one number or word a "
                f"user."
            )
    table = table.filter(table[asked.user].is_valid())
    users = [asked.prefix + user for user in as_ids(table[asked.user]).to_pylist()]
    values = pd.Series(
        table[asked.column].to_pandas().to_numpy(), index=pd.Index(users, dtype=object)
    )
    return values.replace([np.inf, -np.inf, ""], np.nan)


def label_attribute(
    asked: AttributeSpec, part: "pd.Series[Any]"
) -> tuple[list[str], tuple[str, ...], NDArray[Any], NDArray[np.int64]]:
    """Return the users that have a value, the names of classes (none for a regression), each one's,
    and zeros.

    Raises:
        SpecError: the table cannot be read, or has no such column or values.
    """
    found = user_values(asked)
    values = found.dropna()
    if values.index.has_duplicates:
        twice = values.index[values.index.duplicated()][0]
        raise SpecError(
            f"Table {asked.table} has user {twice!r} more than once; give one row a user."
        )
    values = values[values.index.isin(part.index)]
    if values.empty:
        raise SpecError(
            f"Table {asked.table} has a value of {asked.column!r} for no user of the log; its "
            f"users are such as "
            f"{found.index[0] if len(found) else ''!r}, the log's such as {part.index[0]!r}: look "
            f"at user and prefix."
        )
    nothing = np.zeros(len(values), dtype=np.int64)
    number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if asked.positive is None and number and values.nunique() > 2:
        return list(values.index), (), values.to_numpy(dtype=np.float64), nothing
    if number and (values % 1 == 0).all():
        values = values.astype(np.int64)  # a column with gaps is read as 1.0
    words = values.astype(str)
    if asked.positive is not None:
        if unknown := sorted(set(asked.positive) - set(words)):
            raise SpecError(
                f"Table {asked.table} has no value {unknown[0]!r} in {asked.column!r}; its values "
                f"are such as "
                f"{', '.join(sorted(set(words))[:8])}."
            )
        words = words.isin(asked.positive).map({True: "yes", False: "no"})
    names = tuple(sorted(words.unique()))
    return list(values.index), names, pd.Index(names).get_indexer(words), nothing


def read_table_file(place: str) -> bytes:
    """Read a table of users as it stands: a path, a URI, or a file within an installed package;
    SpecError without.
    """
    if place.startswith("package:"):
        package, _, name = place.removeprefix("package:").partition("/")
        try:
            place = str(resources.files(package) / name)
        except ModuleNotFoundError as error:
            raise SpecError(
                f"Table {place} lies in package {error.name}, which is not installed; install it."
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
    """Read a table of users, CSV or Parquet by its name; of a CSV, ids and words stand as they are
    written ("None").
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
