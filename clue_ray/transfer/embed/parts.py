"""The files of an embedding, in a folder or at a URI.

    request.json              key of the embedding, written first
    vectors/part-*.parquet    user_id, service, vector
    left_out/part-*.parquet   user_id, reason
    histories/part-*.parquet  user_id, history: a hash of the encoded events
    manifest.json             written last, when all parts are complete

A part is complete or absent. The hashes show which users have other events in a later log.
"""

import io
import json
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clue_ray.errors import StudyError
from clue_ray.storage.documents import parse_json
from clue_ray.storage.files import list_files, read_file, write_file
from clue_ray.storage.place import explain_access, resolve_place

KINDS = ("histories", "left_out", "vectors")
"""The tables of a part, in the order written: the vectors mark the part as complete."""
SUMMARY = b"clue_ray"
"""Key of a part's counts in the metadata of its vectors."""


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
        except (OSError, ValueError) as error:
            raise StudyError(
                f"{name} at {self.place} cannot be read ({explain_access(error)})."
            ) from None
        return document

    def read(self, kind: str, number: int) -> pa.Table | None:
        """Read one table of a part; return None if it does not exist."""
        content = read_file(self.place, f"{kind}/{_part_name(number)}")
        try:
            return None if content is None else pq.read_table(pa.BufferReader(content))
        except pa.ArrowException as error:
            name = f"{kind}/{_part_name(number)}"
            raise StudyError(
                f"{name} at {self.place} is damaged ({explain_access(error)}); delete it and run "
                "the same command again."
            ) from None

    def numbers(self) -> list[int]:
        """List the numbers of the complete parts."""
        found = [
            re.fullmatch(r"vectors/part-(\d{5})\.parquet", name) for name in list_files(self.place)
        ]
        return sorted(int(match[1]) for match in found if match)

    def write_part(self, number: int, tables: dict[str, pa.Table], summary: dict[str, Any]) -> None:
        """Write the tables of a part, the vectors with the summary last."""
        tables["vectors"] = tables["vectors"].replace_schema_metadata(
            {SUMMARY: json.dumps(summary).encode()}
        )
        for kind in KINDS:
            stream = io.BytesIO()
            pq.write_table(tables[kind], stream, compression="zstd")
            self.write(f"{kind}/{_part_name(number)}", stream.getvalue())

    def summaries(self) -> list[dict[str, Any]]:
        """Read the counts of each complete part."""
        tables = [self.read("vectors", number) for number in self.numbers()]
        return [json.loads(table.schema.metadata[SUMMARY]) for table in tables if table is not None]

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
        elif request["key"] != key:
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
