"""Where embeddings lie: a folder or URI of parts, each whole or absent, and a manifest that means
all are there.

manifest.json            written last
request.json             whose parts these are, written first
vectors/part-*.parquet   user_id, service, vector
left_out/part-*.parquet  user_id, reason
histories/part-*.parquet user_id, history: a hash of what was encoded, which tells whose events are
new
"""

import io
import json
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clue_ray.errors import StudyError
from clue_ray.storage.files import list_files, read_file, write_file
from clue_ray.storage.place import explain_access, resolve_place

KINDS = ("histories", "left_out", "vectors")
"""In the order written: where a part's vectors are, all of it is."""
SUMMARY = b"clue_ray"
"""Key of a part's own counts, in the metadata of its vectors."""


@dataclass(frozen=True)
class Parts:
    """One embedding's parts; travels to workers as its place alone."""

    place: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", resolve_place(self.place))

    def write(self, name: str, content: bytes) -> None:
        """Write a file that readers see whole or not at all."""
        try:
            write_file(self.place, name, content)
        except (OSError, pa.ArrowException) as error:
            raise StudyError(
                f"{name} cannot be written to {self.place} ({explain_access(error)}); give "
                f"--output a folder or URI "
                "that can be written."
            ) from None

    def write_json(self, name: str, document: dict[str, Any]) -> None:
        """Write a JSON document."""
        self.write(name, (json.dumps(document, indent=2) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a JSON document, or None where there is none."""
        try:
            content = read_file(self.place, name)
            document: dict[str, Any] | None = None if content is None else json.loads(content)
        except (OSError, ValueError) as error:
            raise StudyError(
                f"{name} at {self.place} cannot be read ({explain_access(error)})."
            ) from None
        return document

    def read(self, kind: str, number: int) -> pa.Table | None:
        """Read one part's table, or None where there is none."""
        content = read_file(self.place, f"{kind}/{_part_name(number)}")
        try:
            return None if content is None else pq.read_table(pa.BufferReader(content))
        except pa.ArrowException as error:
            name = f"{kind}/{_part_name(number)}"
            raise StudyError(
                f"{name} at {self.place} is damaged ({explain_access(error)}); delete it and run "
                f"the same command "
                "again."
            ) from None

    def numbers(self) -> list[int]:
        """List the parts that are whole."""
        found = [
            re.fullmatch(r"vectors/part-(\d{5})\.parquet", name) for name in list_files(self.place)
        ]
        return sorted(int(match[1]) for match in found if match)

    def write_part(self, number: int, tables: dict[str, pa.Table], summary: dict[str, Any]) -> None:
        """Write a part's tables, its vectors with the summary last."""
        tables["vectors"] = tables["vectors"].replace_schema_metadata(
            {SUMMARY: json.dumps(summary).encode()}
        )
        for kind in KINDS:
            stream = io.BytesIO()
            pq.write_table(tables[kind], stream, compression="zstd")
            self.write(f"{kind}/{_part_name(number)}", stream.getvalue())

    def summaries(self) -> list[dict[str, Any]]:
        """Read what each whole part says of itself."""
        tables = [self.read("vectors", number) for number in self.numbers()]
        return [json.loads(table.schema.metadata[SUMMARY]) for table in tables if table is not None]

    def claim(self, key: str) -> dict[str, Any] | None:
        """Take the place for one embedding; return its manifest when it is finished and every part
        is there.

        Raises:
            StudyError: the place holds another embedding, or other files.
        """
        request = self.read_json("request.json")
        if request is None:
            if list_files(self.place):
                raise StudyError(
                    f"{self.place} holds other files than an embedding; choose another --output."
                )
            self.write_json("request.json", {"key": key})
        elif request["key"] != key:
            raise StudyError(
                f"{self.place} holds an embedding by another encoder, of another log or with other "
                f"settings; choose "
                "another --output."
            )
        manifest = self.read_json("manifest.json")
        whole = len(self.numbers())
        return manifest if manifest and manifest.get("parts_written", whole) == whole else None


def _part_name(number: int) -> str:
    """Name a part's file."""
    return f"part-{number:05d}.parquet"
