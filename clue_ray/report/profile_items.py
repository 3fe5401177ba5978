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
    notes = [note, *_crowded(profile["typed_columns"])]
    return Table(("column", "type", "tokens", "distinct values"), rows, note=" ".join(notes))


def _crowded(columns: Mapping[str, Any]) -> list[str]:
    """Say of which categories most values have no token of their own."""
    return [
        f"Column {name!r} is a category of {found['values']:,} values, of which {found['own']:,} "
        f"have a token of their own and the others share {found['tokens'] - found['own']}; give a "
        "coarser column, or leave its type out to read it as text."
        for name, found in columns.items()
        if found.get("own") is not None and found["values"] > 2 * found["own"]
    ]


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
