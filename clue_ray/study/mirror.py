"""A study on storage: a URI or shared folder holds it, and a folder on this disk mirrors it.

The nodes push the runs that they trained, and this machine fetches them. Tables and the report are
pushed from here. The same command on another machine with an empty disk therefore resumes the
study. Checkpoints and exported encoders stay on storage.
"""

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clue_ray.errors import StudyError
from clue_ray.runs import RunDescription, RunRecord, Runs, read_current_runs
from clue_ray.spec.specs import RunSpec, StudySpec
from clue_ray.storage.documents import parse_json
from clue_ray.storage.files import (
    delete_file,
    fetch_files,
    list_files,
    push_files,
    read_file,
    read_json,
    write_json,
)
from clue_ray.storage.lease import Lease
from clue_ray.storage.links import check_links
from clue_ray.storage.lock import locked
from clue_ray.storage.place import place_below, resolve_place
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.events import EVENTS_FILE, join_events
from clue_ray.transfer.tasks.columns import join_results

TABLES = (
    r"(owner|plan|corpus|baselines|fits|grown|transfer|tracked)\.json|study\.yaml"
    r"|runs\.(csv|parquet)|curves\.parquet|events\.jsonl"
)
RUN_FILES = (
    r"(spec|curve|record)\.json|(log|driver|error)\.txt|events\.out\.tfevents\.[\w.-]+"
    r"|transfer/[\w.-]+\.json"
)
SEALS = r"forecasts/\w[\w.+-]*\.json"
"""Sealed forecasts: loss-at-1e+18-0123abcd.json."""
MIRRORED = re.compile(
    rf"{TABLES}|{SEALS}|runs/[0-9a-f]+/({RUN_FILES})|report/(\w[\w-]*/)*\w[\w.-]*"
)
"""What is fetched. Storage may be writable by others, so this admits no pickle and no path that
leads out of the folder."""
PUSHED = re.compile(rf"{RUN_FILES}|encoder/[\w.-]+")
"""What is pushed of a run that ended before the study had storage; it needs no checkpoints."""
SEEN = ".mirror.json"
"""Sizes and times of the fetched files as they were on storage."""
TABLE_SECONDS = 60.0
"""Shortest pause between two pushes of the runs table while the study runs."""


class StoredDirectory(StudyDirectory):
    """A study's folder on storage, and the folder on this disk that mirrors it."""

    def __init__(self, path: str | Path, storage: str):
        super().__init__(path)
        self.home = place_below(resolve_place(storage), self.path.name)
        self.lease: Lease | None = None
        self.owned = False
        self.table_pushed = time.monotonic()

    @property
    def place(self) -> str:
        """Folder or URI of the study that all nodes can write."""
        return self.home

    @property
    def failure(self) -> str:
        """Why storage is lost; empty while it is not."""
        return self.lease.failure if self.lease else ""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder and its storage for this command; fetch at the start, push at the end.

        Raises:
            StudyError: Another command holds either, they hold different studies, a link leads out
                of one of them, or storage was lost meanwhile.
        """
        check_links(self.path)
        with locked(self.path), Lease(self.home) as self.lease:
            self._check_same_study()
            self._fetch_changed()
            self._forget_retried()
            try:
                yield
            finally:
                # A folder that was refused may hold anything, so it is not pushed.
                if self.owned and not self.failure:
                    self.publish()
            if self.failure:
                raise StudyError(self.failure)

    def fetch(self) -> None:
        """Fetch what storage has of the study, also while it runs.

        Raises:
            StudyError: Storage and the folder hold different studies, or a link leads out of one.
        """
        check_links(self.path)
        with locked(self.path):
            self._check_same_study()
            self._fetch_changed()

    def _check_same_study(self) -> None:
        """Raise where storage and the folder hold different studies."""
        here = self.path / "owner.json"
        if here.exists() and "owner.json" in list_files(self.home):
            before = here.read_bytes()
            fetch_files(self.home, ["owner.json"], self.path)
            if not _agree(before, here.read_bytes()):
                here.write_bytes(before)
                raise StudyError(
                    f"{self.path} and {self.home} hold different studies; choose another --output."
                )

    def _fetch_changed(self, run_id: str | None = None) -> None:
        """Fetch what has changed on storage since the last time, of one run or of all."""
        below = f"runs/{run_id}/" if run_id else ""
        files = list_files(place_below(self.home, below.rstrip("/")) if below else self.home)
        versions = {
            below + name: list(version)
            for name, version in files.items()
            if MIRRORED.fullmatch(below + name)
        }
        seen = self._seen()
        changed = [
            name
            for name, version in versions.items()
            if seen.get(name) != version or not (self.path / name).exists()
        ]
        if EVENTS_FILE in changed:
            # It is joined and not replaced, as a killed command may not have pushed its last
            # events: they would be gone if this one were killed before it had joined the copies.
            join_events(self.path / EVENTS_FILE, read_file(self.home, EVENTS_FILE) or b"")
        fetch_files(self.home, sorted({*changed} - {EVENTS_FILE}), self.path)
        if changed:
            write_json(self.path / SEEN, seen | versions)

    def _seen(self) -> dict[str, Any]:
        """Read the sizes and times of the files fetched before."""
        file = self.path / SEEN
        return read_json(file, "delete it") if file.exists() else {}

    def _forget_retried(self) -> None:
        """Delete failed records that storage no longer has: another machine retries those runs."""
        there, seen = list_files(self.home), self._seen()
        for run_id in self.ended_run_ids():
            record, ended = f"runs/{run_id}/record.json", self.read_record(run_id)
            if record in seen and record not in there and ended and ended.status != "done":
                super().reopen(run_id)

    def _push_missing_runs(self) -> None:
        """Push the runs that ended here before the study had storage."""
        there = list_files(self.home)
        for run_id in sorted(self.ended_run_ids()):
            if f"runs/{run_id}/record.json" not in there:
                folder = self.run_path(run_id)
                names = [
                    str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()
                ]
                self._push_run(run_id, [name for name in names if PUSHED.fullmatch(name)])

    def _push_run(self, run_id: str, names: Iterable[str]) -> None:
        """Push files of a run; the record last, because its presence means that the run ended."""
        place, folder = self.run_place(run_id), self.run_path(run_id)
        push_files(folder, [name for name in names if name != "record.json"], place)
        push_files(folder, ["record.json"], place)

    def publish(self) -> None:
        """Push the files in the study's own folder, its sealed forecasts and its report."""
        globs = ("*", "forecasts/*", "report/**/*")
        files = [file for glob in globs for file in self.path.glob(glob) if file.is_file()]
        names = [str(file.relative_to(self.path)) for file in files]
        pushed = [name for name in names if MIRRORED.fullmatch(name)]
        push_files(self.path, pushed, self.home)
        # What was pushed from here is newer than what was fetched, and must not be fetched again.
        there = list_files(self.home)
        versions = {name: list(there[name]) for name in pushed if name in there}
        write_json(self.path / SEEN, self._seen() | versions)

    def claim(self, study: StudySpec, corpus_digest: str) -> None:
        """Make the folder this study's, here and on storage, and push runs that ended before."""
        super().claim(study, corpus_digest)
        push_files(self.path, ["owner.json", "study.yaml"], self.home)
        self.owned = True
        self._push_missing_runs()

    def reopen(self, run_id: str) -> None:
        """Delete a run's record, here and on storage, before it is trained again."""
        if self.read_record(run_id):
            delete_file(self.run_place(run_id), "record.json")
        super().reopen(run_id)

    def write_run(self, run: RunSpec, record: RunRecord, curve: list[dict[str, float]]) -> None:
        """Write a run's files here and on storage, in place of a trial that died."""
        super().write_run(run, record, curve)
        try:
            self._push_run(record.run_id, ["spec.json", "curve.json"])
        except StudyError:
            super().reopen(record.run_id)  # a run has ended only once storage has its record
            raise

    def write_failure(self, run_id: str, name: str, failure: dict[str, Any] | None) -> None:
        """Write why a run could not be scored, or delete it, here and on storage."""
        super().write_failure(run_id, name, failure)
        if failure is not None:
            push_files(self.run_path(run_id), [name], self.run_place(run_id))
        else:
            delete_file(self.run_place(run_id), name)

    def fetch_run(self, run_id: str) -> None:
        """Fetch a run, and push the table as it stands at most once per minute."""
        self._fetch_changed(run_id)
        if time.monotonic() - self.table_pushed > TABLE_SECONDS:
            write_current(self.path)
            push_files(self.path, ["runs.csv", "runs.parquet", EVENTS_FILE], self.home)
            self.table_pushed = time.monotonic()

    def write_tables(self, planned: list[RunDescription]) -> Runs:
        """Fetch the runs, write the tables, push them and return the runs table."""
        if not self.failure:
            self._fetch_changed()
        runs = super().write_tables(planned)
        if not self.failure:
            self.publish()
        return runs


def _agree(one: bytes, other: bytes) -> bool:
    """Return whether two JSON documents are equal; damaged ones are not."""
    try:
        return bool(parse_json(one) == parse_json(other))
    except ValueError:
        return False


def write_current(path: Path) -> None:
    """Write a study's runs table as it stands, with the scores of downstream tasks."""
    runs = read_current_runs(path)
    runs.write(path)
    join_results(path, runs)


def open_directory(path: Path, storage: str | None) -> StudyDirectory:
    """Return a study's directory, on this disk alone or on storage."""
    return StoredDirectory(path, storage) if storage else StudyDirectory(path)


def fetch_study(storage: str, name: str, output: str | Path) -> StudyDirectory:
    """Fetch a study's tables, curves and report from storage, also while it runs.

    Raises:
        StudyError: Storage holds no such study, or the folder holds another one.
    """
    directory = StoredDirectory(Path(output).absolute() / name, storage)
    if "owner.json" not in list_files(directory.home):
        raise StudyError(f"{directory.home} holds no study; check --storage and the study's name.")
    directory.fetch()
    return directory
