"""The files of an embedding, in a folder or at a URI.

    request.json              key of the embedding, written first
    vectors/part-*.parquet    user_id, service, vector
    left_out/part-*.parquet   user_id, reason
    histories/part-*.parquet  user_id, history: a hash of the encoded events
    items/range-*             vectors of items that several parts share, while parts are missing
    manifest.json             written last, when all parts are complete

A part is complete once it has vectors. The hashes show which users have other events in a later
log.
"""

import io
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clue_ray.errors import StudyError
from clue_ray.storage.documents import parse_json
from clue_ray.storage.files import (
    list_files,
    read_file,
    remove_folder,
    with_retries,
    write_file,
)
from clue_ray.storage.place import explain_access, open_place, place_below, resolve_place

SUMMARY = b"clue_ray"
"""Key of a part's counts in the metadata of its vectors."""
VECTORS_FILE = re.compile(r"vectors/part-(\d{5})\.parquet")

ITEM_FILE = re.compile(r"items/range-(\d{5})")


def item_file(number: int) -> str:
    """Return the name of the file with the vectors of one range of items."""
    return f"items/range-{number:05d}"


@dataclass(frozen=True)
class Parts:
    """The files of one embedding; only its place is sent to workers."""

    place: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", resolve_place(self.place))

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically.

        Raises:
            StudyError: the output cannot be written.
        """
        try:
            write_file(self.place, name, content)
        except (OSError, pa.ArrowException) as error:
            raise StudyError(
                f"{name} cannot be written to {self.place} ({explain_access(error)}); give "
                "--output a folder or URI that can be written."
            ) from None

    def write_json(self, name: str, document: dict[str, Any]) -> None:
        """Write a JSON document."""
        self.write(name, (json.dumps(document, indent=2) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a JSON document; return None if it does not exist."""
        try:
            content = read_file(self.place, name)
            document: dict[str, Any] | None = None if content is None else parse_json(content)
            if not isinstance(document, dict | None):
                raise ValueError("it is not a mapping")
        except (OSError, ValueError) as error:
            raise StudyError(
                f"{name} at {self.place} cannot be read ({explain_access(error)})."
            ) from None
        return document

    def read(self, kind: str, number: int, columns: list[str] | None = None) -> pa.Table | None:
        """Read one table of a part, or some of its columns; return None if it does not exist."""
        name = f"{kind}/{_part_name(number)}"
        content = read_file(self.place, name, math.inf)  # as large as its users are many
        with self._naming_damage(name):
            return (
                None
                if content is None
                else pq.read_table(pa.BufferReader(content), columns=columns)
            )

    @contextmanager
    def _naming_damage(self, name: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, LookupError, TypeError, ValueError) as error:
            raise StudyError(
                f"{name} at {self.place} is damaged ({explain_access(error)}); delete it and run "
                "the same command again."
            ) from None

    def numbers(self) -> list[int]:
        """List the numbers of the complete parts."""
        return self._list_numbers(VECTORS_FILE)

    def item_ranges(self) -> list[int]:
        """List the numbers of the ranges of items whose vectors are written."""
        return self._list_numbers(ITEM_FILE)

    def _list_numbers(self, pattern: re.Pattern[str]) -> list[int]:
        found = map(pattern.fullmatch, list_files(self.place))
        return sorted(int(match[1]) for match in found if match)

    def remove_items(self) -> None:
        """Delete the vectors of items, once all parts are complete."""
        remove_folder(place_below(self.place, "items"))

    def write_table(self, kind: str, number: int, table: pa.Table) -> None:
        """Write one table of a part, which is not complete without its vectors."""
        stream = io.BytesIO()
        pq.write_table(table, stream, compression="zstd")
        self.write(f"{kind}/{_part_name(number)}", stream.getvalue())

    def complete_part(self, number: int, vectors: pa.Table, summary: dict[str, Any]) -> None:
        """Write the vectors of a part with its counts, the last of its tables."""
        counts = {SUMMARY: json.dumps(summary).encode()}
        self.write_table("vectors", number, vectors.replace_schema_metadata(counts))

    def summaries(self) -> list[dict[str, Any]]:
        """Read the counts of each complete part, without its vectors."""
        return [self._summary(number) for number in self.numbers()]

    def _summary(self, number: int) -> dict[str, Any]:
        name = f"vectors/{_part_name(number)}"
        store, base = open_place(self.place)

        def read() -> pa.Schema:
            with store.open_input_file(f"{base}/{name}") as file:
                return pq.read_schema(file)

        with self._naming_damage(name):
            schema = with_retries(read, f"{name} cannot be read from {self.place}")
            return dict(parse_json(schema.metadata[SUMMARY]))

    def begin(self, key: str) -> dict[str, Any] | None:
        """Begin or resume the embedding with a key; return its manifest if it is complete.

        Raises:
            StudyError: the place holds another embedding, or other files.
        """
        request = self.read_json("request.json")
        if request is None:
            if list_files(self.place):
                raise StudyError(
                    f"{self.place} holds files other than an embedding; choose another --output."
                )
            self.write_json("request.json", {"key": key})
        elif request.get("key") != key:
            raise StudyError(
                f"{self.place} holds an embedding by another encoder, of another log or with other "
                "settings; choose another --output."
            )
        manifest = self.read_json("manifest.json")
        complete = len(self.numbers())
        # A part may have been deleted since the manifest was written.
        return (
            manifest if manifest and manifest.get("parts_written", complete) == complete else None
        )


def _part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"
