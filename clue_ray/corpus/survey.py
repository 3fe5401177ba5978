"""The first pass over a log: count its rows, reject those that cannot be used, sample its texts.

Each batch of rows becomes a small tally. Tallies add up to one `Survey`, in any order, because
tasks end in any order. Rejected rows are written to `rejected/` with their file, row, reason and
raw values. The name of that file comes from the position of the batch, so that a retry replaces it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clue_ray.corpus.hashes import split_of
from clue_ray.corpus.logs.catalogue import check_matched
from clue_ray.corpus.logs.ids import as_text, is_uuid
from clue_ray.corpus.logs.items import EXAMPLES
from clue_ray.corpus.logs.reading import Batch, Part, Reading, read_part
from clue_ray.corpus.logs.schema import UNREAD_TIME, Log, good_rows, normalise
from clue_ray.corpus.logs.table import LINE
from clue_ray.corpus.logs.times import count_units, explain_unread
from clue_ray.corpus.tokenizer import TextFilter, TrainingTexts
from clue_ray.errors import EventLogError
from clue_ray.spec.specs import CorpusSpec
from clue_ray.storage.files import atomic_write

TALLY = pa.schema([("kind", pa.string()), ("name", pa.string()), ("rows", pa.int64())])
"""Kinds are service, rejected, omitted, literal, time, recoded, text, unreadable, COUNTS of each
file, and matched, unmatched and id of each catalogue; see `Survey.add`."""
COUNTS = ("lines", "other", "rows")
FILES_LISTED = 1000
"""Files whose rows are listed one by one in profile.json."""
MAX_SERVICES = 200
"""More services usually mean that another column was read as the service."""


def survey_part(
    part: Part, reading: Reading, rejected: Path, texts: TextFilter
) -> Iterator[pa.Table]:
    """Yield the tally of each batch of a part, and write its unusable rows to `rejected`.

    Args:
        texts: of this process and log.
    """
    log = reading.logs[part.log]
    for batch in read_part(part, log):
        events = normalise(
            batch.table, log, reading.spec, file=part.number, first_row=batch.first_row
        )
        bad = events.filter(pc.is_valid(events["reason"]))
        if bad.num_rows:
            _write_rejected(bad, batch, part, log, rejected)
        yield _tally(events, batch, log, reading.spec, str(part.file), texts)


def _tally(
    events: pa.Table, batch: Batch, log: Log, spec: CorpusSpec, file: str, texts: TextFilter
) -> pa.Table:
    """Count the rows of a batch by kind, and list its texts for the tokenizer's training."""
    good = good_rows(events)
    omitted = batch.table.num_rows - events.num_rows
    counts: dict[tuple[str, str | None], int] = {("recoded", None): batch.recoded}
    by_file = (batch.lines, batch.other_lines, batch.table.num_rows)
    counts |= {(kind, file): rows for kind, rows in zip(COUNTS, by_file, strict=True)}
    extra = {"omitted": omitted, "literal": batch.literal}
    counts |= {(kind, None): rows for kind, rows in extra.items() if rows}
    counts |= {("service", name): rows for name, rows in _value_counts(good["service"])}
    counts |= {
        ("rejected", name): rows
        for name, rows in _value_counts(events["reason"])
        if name is not None
    }
    for name, matched, unmatched, examples in batch.joined:
        counts |= {("matched", name): matched, ("unmatched", name): unmatched}
        counts |= {("id", f"{name}={example}"): 0 for example in examples}
    if log.has_time:
        counts |= {
            ("time", unit): rows
            for unit, rows in count_units(
                batch.table[log.column("timestamp")], log.timestamp_format
            ).items()
        }
    kinds, names = zip(*counts, strict=True)
    tallies = pa.table([kinds, names, list(counts.values())], schema=TALLY)
    if spec.tokenizer:
        return tallies
    found = _training_texts(good, spec)
    sent = found.filter(texts(found.field("values")))
    columns = [pa.repeat("text", len(sent)), sent.field("values"), sent.field("counts")]
    return pa.concat_tables([tallies, pa.table(columns, schema=TALLY)])


def _value_counts(column: pa.ChunkedArray) -> Iterator[tuple[Any, int]]:
    counts = column.value_counts()
    return zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)


def _training_texts(events: pa.Table, spec: CorpusSpec) -> pa.StructArray:
    """Return the distinct texts of training users before the cut in time, and their events.

    Held-out users and later events must not influence the tokenizer.
    """
    users = events["user_id"].combine_chunks().dictionary_encode()
    training = split_of(pd.Series(users.dictionary.to_pandas()), spec.split) == "train"
    mask = training[users.indices.to_numpy()] if len(users) else np.zeros(0, bool)
    if spec.split.time:
        mask = mask & (events["timestamp"].to_numpy() < spec.split.time.timestamp())
    return events["text"].filter(pa.array(mask)).combine_chunks().value_counts()


def _write_rejected(bad: pa.Table, batch: Batch, part: Part, log: Log, folder: Path) -> None:
    """Write the unusable rows of a batch, with their raw values."""
    raw = batch.table.take(pc.subtract(bad["row"], batch.first_row))
    kept = {f"log.{name}": _as_written(raw[name]) for name in log.needed}
    if LINE in raw.column_names:  # the whole line where it could not be divided into columns
        kept["line"] = raw[LINE]
    place = {
        "file": pa.repeat(str(part.file), bad.num_rows),
        "row": bad["row"],
        "reason": bad["reason"],
        "timestamp": _as_written(raw[log.column("timestamp")])
        if log.has_time
        else pa.nulls(bad.num_rows, pa.string()),
    }
    name = f"{part.log:03d}-{part.number:06d}-{batch.first_row:012d}.parquet"
    with atomic_write(folder / name) as temporary:
        pq.write_table(pa.table(place | kept), temporary)


def _as_written(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return as_text(column) if is_uuid(column.type) else column.cast(pa.string())


class Survey:
    """The sum of all tallies.

    Attributes:
        services: usable rows of each service.
        rejected: unusable rows by reason.
        times: rows by how their timestamp was read; empty without timestamps.
        recoded: number of values that were not UTF-8.
        omitted: rows of services that the spec leaves out.
        literal: lines of CSV in which a misplaced quote was read as a character.
        files: file -> lines that an independent count found, those that are no rows, and rows read.
        unreadable: messages for the parts that could not be read.
        catalogues: name -> what it holds, and rows that were matched, unmatched, and example ids.
        texts: sample on which a tokenizer is trained.
    """

    def __init__(self, catalogues: Mapping[str, dict[str, Any]] | None = None) -> None:
        self.catalogues = {
            name: {**held, "matched": 0, "unmatched": 0, "ids": []}
            for name, held in (catalogues or {}).items()
        }
        self.services: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.times: Counter[str] = Counter()
        self.recoded = 0
        self.omitted = 0
        self.literal = 0
        self.files: dict[str, Counter[str]] = {}
        self.unreadable: list[str] = []
        self.texts = TrainingTexts()

    def add(self, tally: pa.Table) -> None:
        """Add the tally of a batch."""
        is_text = pc.equal(tally["kind"], "text")
        texts = tally.filter(is_text)
        self.texts.add(texts["name"], texts["rows"])
        for row in tally.filter(pc.invert(is_text)).to_pylist():
            if row["kind"] == "recoded":
                self.recoded += row["rows"]
            elif row["kind"] == "omitted":
                self.omitted += row["rows"]
            elif row["kind"] == "literal":
                self.literal += row["rows"]
            elif row["kind"] in COUNTS:
                self.files.setdefault(row["name"], Counter())[row["kind"]] += row["rows"]
            elif row["kind"] in ("matched", "unmatched"):
                self.catalogues[row["name"]][row["kind"]] += row["rows"]
            elif row["kind"] == "id":
                name, _, found = row["name"].partition("=")
                ids = self.catalogues[name]["ids"]
                ids[:] = sorted({*ids, found})[:EXAMPLES]
            elif row["kind"] == "unreadable":
                self.unreadable.append(row["name"])
            else:
                counter = {"service": self.services, "rejected": self.rejected, "time": self.times}[
                    row["kind"]
                ]
                counter[row["name"]] += row["rows"]

    @property
    def good(self) -> int:
        """The number of usable rows."""
        return self.services.total()

    def profile(self, reading: Reading) -> dict[str, Any]:
        """Return the part of a corpus's profile that comes from the first pass."""
        untimed = [", ".join(log.places) for log in reading.logs if not log.has_time]
        return {
            "files": len(reading.files),
            "empty_files": list(reading.empty_files),
            "other_files": list(reading.other_files),
            "separators": dict(reading.separators),
            "lines": sum(counts["lines"] for counts in self.files.values()),
            "other_lines": sum(counts["other"] for counts in self.files.values()),
            "rows": sum(counts["rows"] for counts in self.files.values()),
            "omitted_rows": self.omitted,
            "lines_with_misplaced_quotes": self.literal,
            "rows_of_files": {
                file: {kind: self.files[file][kind] for kind in COUNTS}
                for file in sorted(self.files)[:FILES_LISTED]
            },
            "events_in_service": dict(sorted(self.services.items())),
            "rejected_rows": self.rejected.total(),
            "rejected": dict(self.rejected.most_common()),
            "timestamps_read_as": dict(self.times.most_common()),
            "in_order_of_appearance": untimed,
            "values_not_utf8": self.recoded,
            "catalogues": self.catalogues,
        }

    def check(self, spec: CorpusSpec, rejected: Path) -> None:
        """Check that a log can become a corpus.

        Raises:
            EventLogError: the log cannot be read, is empty, has too many unusable rows, or a column
                that is probably not the intended one.
        """
        if self.unreadable:
            raise EventLogError(min(self.unreadable))  # one of them, the same one every time
        self._check_conservation()
        self._check_catalogues()
        total = self.good + self.rejected.total()
        if not total:
            raise EventLogError(
                "The event log is empty; give a log with at least one row of the chosen services."
            )
        if self.rejected.total() > spec.max_rejected * total:
            raise EventLogError(self._describe_rejected(total, spec, rejected))
        self._check_texts()
        self._check_services(spec)

    def _check_conservation(self) -> None:
        """Check that every line or row of each file became an event, or is counted otherwise."""
        for file, counts in sorted(self.files.items()):
            rows = counts["lines"] - counts["other"]
            if rows != counts["rows"]:
                raise EventLogError(
                    f"Event log {file} has {rows:,} rows by an independent count, but "
                    f"{counts['rows']:,} were read; this is an error of clue-ray; report it with "
                    "the file."
                )
        rows = sum(counts["rows"] for counts in self.files.values())
        told = self.good + self.rejected.total() + self.omitted
        if rows != told:
            raise EventLogError(
                f"{rows:,} rows were read, but {told:,} are usable, rejected or of omitted "
                "services; this is an error of clue-ray; report it with the log."
            )

    def _check_catalogues(self) -> None:
        for name, found in self.catalogues.items():
            if not found["unmatched"] + found["matched"]:
                raise EventLogError(
                    f"The catalogue for {name!r} has no row; services found are "
                    f"{', '.join(sorted(self.services)[:10])}; spell the service as in the log, or "
                    "check the column."
                )
            check_matched(name, found)

    def _check_texts(self) -> None:
        texts = self.texts.distinct()
        if len(texts) and not pc.any(pc.match_substring_regex(texts, r"\pL")).as_py():
            raise EventLogError(
                f"Texts hold no words, only values like {pc.min(texts).as_py()!r}; build the text "
                "from columns with words."
            )

    def _check_services(self, spec: CorpusSpec) -> None:
        if missing := sorted(set(spec.services or ()) - set(self.services)):
            raise EventLogError(
                f"Service {missing[0]!r} in services has no usable event; services found are "
                f"{', '.join(sorted(self.services)[:10]) or 'none'}; spell it as in the log."
            )
        if len(self.services) > MAX_SERVICES:
            some = ", ".join(sorted(self.services)[:3])
            raise EventLogError(
                f"The log has {len(self.services):,} services ({some} ...); at most "
                f"{MAX_SERVICES:,} are allowed; check the column that is read as service."
            )

    def _describe_rejected(self, total: int, spec: CorpusSpec, folder: Path) -> str:
        table = "; ".join(f"{reason}: {rows:,}" for reason, rows in self.rejected.most_common())
        samples = "; ".join(map(_describe_row, _first_rows(folder, 3)))
        return (
            f"{self.rejected.total():,} of {total:,} rows cannot be used ({table}), more than the "
            f"{spec.max_rejected:.0%} allowed; fix the log or raise max_rejected; the first are "
            f"{samples}{_explain_times(folder)}."
        )


def _first_rows(folder: Path, count: int) -> Iterable[dict[str, Any]]:
    """Read the first rejected rows."""
    rows: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.parquet")):
        rows += pq.read_table(file).slice(0, count - len(rows)).to_pylist()
        if len(rows) >= count:
            break
    return rows


def _explain_times(folder: Path) -> str:
    """Name the forms of timestamps that are read, with three that are not; "" if all were read."""
    values: list[str] = []
    for file in sorted(folder.glob("*.parquet")):
        table = pq.read_table(file)
        unread = pc.match_substring_regex(table["reason"], UNREAD_TIME)
        for row in table.filter(unread).to_pylist():
            values += (
                [str(row["timestamp"])] if row.get("timestamp") not in (None, "", *values) else []
            )
        if len(values) >= 3:
            break
    return f"; {explain_unread(values)}" if values else ""


def _describe_row(row: dict[str, Any]) -> str:
    """Describe a rejected row in one line: its row and file, and the start of its values."""
    values = {
        name.removeprefix("log."): value for name, value in row.items() if name.startswith("log.")
    }
    if row.get("line") is not None:
        values = {"line": row["line"]}
    cut = {
        name: f"{value[:40]} ..." if value and len(value) > 40 else value
        for name, value in values.items()
    }
    return f"row {row['row']} (counted from 0) of {row['file']} {cut}"
