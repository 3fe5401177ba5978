"""Typed fields of a text template: `{category:category}`, `{price:number}`, `{name:codes}`.

A typed field is written into the item text as `⟦price:number=12.5⟧`. The tokenizer of a corpus
turns each into tokens of its own, see `corpus/types.py`. So an item stays one text, whatever its
columns are.
"""

import re
import string
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clue_ray.corpus.logs.ids import as_ids
from clue_ray.corpus.logs.times import as_seconds
from clue_ray.errors import EventLogError, nearest

TYPES = ("category", "number", "codes", "time")
OPEN, CLOSE = "⟦", "⟧"
FIELD = re.compile(f"{OPEN}([^:{CLOSE}]+):({'|'.join(TYPES)})=([^{CLOSE}]*){CLOSE}")
"""A typed field in a text: its name, type and value."""


def check_type(template: str, field: str, type_: str | None) -> None:
    """Raise EventLogError if the type of a template's field is unknown."""
    if type_ and type_ not in TYPES:
        raise EventLogError(
            f"Text template {template!r} gives {field!r} the type {type_!r}; "
            f"{nearest(type_, list(TYPES))}"
        )


def holds_codes(type_: pa.DataType) -> bool:
    """Return whether a column holds lists of texts or of whole numbers."""
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(test(type_) for test in tests):
        return False
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(type_.value_type) for test in (pa.types.is_integer, *texts))


def _join_codes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Write lists as text, 11 ? 3; a missing code keeps its position."""
    lists = column.cast(pa.list_(pa.string())).combine_chunks()
    whole = pa.ListArray.from_arrays(lists.offsets, pc.fill_null(lists.values, "?"))
    return pa.chunked_array([pc.if_else(lists.is_null(), None, pc.binary_join(whole, " "))])


def code_columns(template: str) -> set[str]:
    """Return the fields of a template that are read as lists of codes alone."""
    fields = [(field, type_) for _, field, type_, _ in string.Formatter().parse(template) if field]
    return {field for field, _ in fields} - {field for field, type_ in fields if type_ != "codes"}


def write_typed(
    column: pa.ChunkedArray, field: str, type_: str, timestamp_format: str | None = None
) -> Any:
    """Write the values of a typed field into texts; null stays null.

    A time is written as a number, its seconds since 1970. One that cannot be read stays as it is,
    and gets the token of values that are not numbers.
    """
    if holds_codes(column.type):
        column = _join_codes(column)
    ids = as_ids(column)
    if type_ == "time":
        seconds = as_seconds(column, timestamp_format).cast(pa.int64(), safe=False)
        ids, type_ = pc.if_else(seconds.is_valid(), seconds.cast(pa.string()), ids), "number"
    values = pc.replace_substring_regex(ids, f"[{OPEN}{CLOSE}]", "")
    return pc.binary_join_element_wise(
        pa.scalar(f"{OPEN}{field}:{type_}="), values, pa.scalar(CLOSE), ""
    )
