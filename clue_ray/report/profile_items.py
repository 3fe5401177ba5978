"""Tables of a corpus's profile on its items: catalogues and typed columns."""

from collections.abc import Mapping
from typing import Any

from clue_ray.report.numbers import share_percent
from clue_ray.report.tables import Table, number, text


def types_table(profile: Mapping[str, Any]) -> Table:
    """List what each typed column became."""
    rows = tuple(
        (
            text(name),
            text(found["type"]),
            number(found["tokens"]),
            text("of the given tokenizer") if found["values"] is None else number(found["values"]),
        )
        for name, found in profile["typed_columns"].items()
    )
    note = "Values of a sample of the items of training users; values without a token share some."
    return Table(("column", "type", "tokens", "distinct values"), rows, note=note)


def catalogue_table(profile: Mapping[str, Any]) -> Table:
    """Count the rows whose items each catalogue has, and those that it lacks."""
    catalogues = profile["catalogues"]
    rows = tuple(
        (
            text(name),
            text(found["table"]),
            number(found["keys"]),
            number(found["matched"]),
            number(found["unmatched"]),
            text(share_percent(found["unmatched"] / max(1, found["matched"] + found["unmatched"]))),
            text(", ".join(found["ids"])),
        )
        for name, found in catalogues.items()
    )
    heads = ("items", "table", "keys", "rows with an item", "rows without", "share", "for example")
    unusable = sum(found["unusable_rows"] for found in catalogues.values())
    note = f"Rows of the catalogues without a key or a text: {unusable:,}." if unusable else ""
    return Table(heads, rows, note=note)
