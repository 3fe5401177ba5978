"""Catalogues: tables that hold the words of the items whose ids a log has."""

from typing import Any, Literal

from pydantic import Field

from clue_ray.spec.yaml import Spec

ALL_LOGS = "events"
"""The first part of a key of `items` that stands for every log."""


class ItemsSpec(Spec):
    """A catalogue: one row per item, with the id that the log has and columns for the text."""

    table: str = Field(min_length=1)
    "file, folder, glob or URI of the catalogue, in any format of a log"
    key: str
    "the catalogue's column of item ids"
    text: str
    "template of the item text over the catalogue's columns"
    unmatched: Literal["keep", "reject"] = "keep"
    "what becomes of a row whose id the catalogue lacks: its text is the id, or it is rejected"


def split_item_key(key: str, services: list[str]) -> tuple[str | None, str]:
    """Split a key of `items` into a service, None for all, and a column of its log.

    Args:
        services: known services; a service's name may contain a dot.

    Raises:
        ValueError: the key is not written as SERVICE.COLUMN or events.COLUMN.
    """
    known = [name for name in services if key.startswith(f"{name}.")]
    service = max(known, key=len, default=key.partition(".")[0])
    column = key[len(service) + 1 :]
    if not service or not column:
        raise ValueError(
            f"has the key {key!r}; write it as {ALL_LOGS}.COLUMN for all logs, or SERVICE.COLUMN"
        )
    return (None if service == ALL_LOGS and service not in known else service), column


def with_text_of_items(document: Any) -> Any:
    """Add the template of the item text to a section that has catalogues and no template.

    The text is then that of the catalogue, if all catalogues are for one column.
    """
    if not isinstance(document, dict) or not document.get("items") or "text" in document:
        return document
    events = document.get("events")
    known = list(map(str, events)) if isinstance(events, dict) else []
    columns = {split_item_key(str(key), known)[1] for key in document["items"]}
    return {**document, "text": f"{{{columns.pop()}}}"} if len(columns) == 1 else document
