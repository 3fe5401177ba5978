"""Typed fields of a text template: `{category:category}`, `{price:number}`, `{name:codes}`.

A typed field is written into the item text as `⟦price:number=12.5⟧`. The tokenizer of a corpus
turns each into tokens of its own, see `corpus/types.py`. So an item stays one text, whatever its
columns are.
"""

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clue_ray.corpus.logs.ids import as_ids
from clue_ray.errors import EventLogError, nearest

TYPES = ("category", "number", "codes")
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


def write_typed(column: pa.ChunkedArray, field: str, type_: str) -> Any:
    """Write the values of a typed field into texts; null stays null."""
    values = pc.replace_substring_regex(as_ids(column), f"[{OPEN}{CLOSE}]", "")
    return pc.binary_join_element_wise(
        pa.scalar(f"{OPEN}{field}:{type_}="), values, pa.scalar(CLOSE), ""
    )
