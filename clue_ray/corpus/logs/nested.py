"""Fields of objects, named by their path: `item.title` is the field `title` of the column `item`.

Trackers and Spark write events as objects within objects. A column whose own name is the path comes
first, and lists have no paths, because an event has one value per field.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Steps = tuple[str, ...]
"""The names that lead to a field, from the column inwards."""


def _find_paths(schema: pa.Schema) -> dict[str, tuple[Steps, pa.DataType]]:
    """Return the steps to each column and to each field of a struct, with its type, by its path."""
    found: dict[str, tuple[Steps, pa.DataType]] = {}
    fields = [field for top in schema for field in _walk((top.name,), top.type)]
    for steps, type_ in sorted(fields, key=lambda field: len(field[0])):
        found.setdefault(".".join(steps), (steps, type_))
    return found


def _walk(steps: Steps, type_: pa.DataType) -> Iterator[tuple[Steps, pa.DataType]]:
    yield steps, type_
    if pa.types.is_struct(type_):
        for index in range(type_.num_fields):
            inner = type_.field(index)
            yield from _walk((*steps, inner.name), inner.type)


def flatten_schema(schema: pa.Schema) -> pa.Schema:
    """Return a schema with the fields of its structs as further columns, named by their paths."""
    columns = set(schema.names)
    paths = _find_paths(schema).items()
    inner = [pa.field(path, type_) for path, (_, type_) in paths if path not in columns]
    return pa.schema([*schema, *inner])


def pick(rows: pa.RecordBatch | pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return columns and fields of structs by their paths; a field of a null struct is null."""
    paths = _find_paths(rows.schema)
    picked: dict[str, Any] = {}
    for path in columns:
        first, *inner = paths[path][0]
        value = rows.column(first)
        for step in inner:
            value = pc.struct_field(value, step)
        picked[path] = value
    return pa.table(picked)


def nest(fields: dict[str, pa.DataType], flat: Collection[str]) -> pa.Schema:
    """Return the schema in which paths are fields of structs; names in `flat` are no paths."""
    tops: dict[str, Any] = {}
    for path, type_ in fields.items():
        *outer, last = (path,) if path in flat else path.split(".")
        inside = tops
        for step in outer:
            inside = inside.setdefault(step, {})
        inside[last] = type_
    return pa.schema(_as_struct(tops))


def _as_struct(fields: dict[str, Any]) -> pa.DataType:
    """Convert dictionaries of types, which may lie within each other, to a type of structs."""
    return pa.struct(
        [
            (n, _as_struct(inner) if isinstance(inner, dict) else inner)
            for n, inner in fields.items()
        ]
    )


def look_up(row: dict[str, Any], path: str, absent: Any = None) -> Any:
    """Return the value of a key of a JSON object, or of a key within its objects."""
    if path in row:
        return row[path]
    first, _, rest = path.partition(".")
    inner = row.get(first)
    return look_up(inner, rest, absent) if rest and isinstance(inner, dict) else absent


def flatten_object(row: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the values within its objects as further keys, by their paths.

    Keys such as $date of MongoDB and keys with a dot have no paths.
    """
    flat = dict(row)
    for key, value in row.items():
        if isinstance(value, dict) and "." not in key:
            for name, inner in flatten_object(value).items():
                if not name.startswith("$"):
                    flat.setdefault(f"{key}.{name}", inner)
    return flat
