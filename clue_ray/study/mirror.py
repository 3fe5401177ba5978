"""A study whose home is storage, not this disk: the same files at a URI or shared folder, mirrored
in a working folder.

Runs are pushed by the nodes that trained them and brought home here; tables and report are pushed
from here. So the same command goes on on another machine with an empty disk. Checkpoints and
exported encoders stay on storage.
"""

import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clue_ray.errors import StudyError
from clue_ray.runs import RunDescription, RunRecord, Runs, read_current_runs
from clue_ray.spec.specs import RunSpec, StudySpec
from clue_ray.storage.files import delete_file, fetch_files, list_files, push_files, write_json
from clue_ray.storage.lease import Lease
from clue_ray.storage.lock import locked
from clue_ray.storage.place import place_below, resolve_place
from clue_ray.study.directory import StudyDirectory
from clue_ray.transfer.tasks.columns import join_results

TABLES = r"(owner|plan|corpus|baselines|fits|grown|transfer)\.json|study\.yaml|runs\.(csv|parquet)|curves\.parquet"
RUN_FILES = r"(spec|curve|record)\.json|(log|driver|error)\.txt|events\.out\.tfevents\.[\w.-]+|transfer/[\w.-]+\.json"
MIRRORED = re.compile(rf"{TABLES}|runs/[0-9a-f]+/({RUN_FILES})|report/(\w[\w-]*/)*\w[\w.-]*")
"""What is brought home: no pickle of anyone's, and no path that leads out of the folder."""
HANDED_OVER = re.compile(rf"{RUN_FILES}|encoder/[\w.-]+")
"""What a run that ended here leaves to storage: it is trained no more, so its checkpoints stay."""
SEEN = ".mirror.json"
"""What was brought home, as it stood there."""
TABLE_SECONDS = 60.0
"""Least pause between the tables pushed while the study runs."""


class StoredDirectory(StudyDirectory):
    """A study's folder on storage, and the working folder that mirrors it here."""

    def __init__(self, path: str | Path, storage: str):
        super().__init__(path)
        self.home = place_below(resolve_place(storage), self.path.name)
        self.claimed: Lease | None = None
        self.owned = False
        self.told = time.monotonic()

    @property
    def place(self) -> str:
        """Folder or URI of the study that all nodes can write."""
        return self.home

    @property
    def trouble(self) -> str:
        """Say why storage is lost."""
        return self.claimed.failure if self.claimed else ""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold folder and storage for this command; begin with what storage has, end with what is
        here on storage.
        """
        with locked(self.path), Lease(self.home) as self.claimed:
            self.refuse_another()
            self.fetch()
            self.forget_retried()
            try:
                yield
            finally:
                if self.owned and not self.trouble:  # what was refused is handed to nobody
                    self.publish()
            if self.trouble:
                raise StudyError(self.trouble)

    def look(self) -> None:
        """Bring home what storage has of the study, also while it runs."""
        with locked(self.path):
            self.refuse_another()
            self.fetch()

    def refuse_another(self) -> None:
        """Refuse to mix the studies of storage and working folder, where both hold one.

        Raises:
            StudyError: they differ.
        """
        here = self.path / "owner.json"
        if here.exists() and "owner.json" in list_files(self.home):
            before = here.read_bytes()
            fetch_files(self.home, ["owner.json"], self.path)
            if json.loads(before) != json.loads(here.read_bytes()):
                here.write_bytes(before)
                raise StudyError(
                    f"{self.path} and {self.home} hold different studies; choose another --output."
                )

    def fetch(self, run_id: str | None = None) -> None:
        """Bring home what changed on storage since the last time, of one run or of all."""
        below = f"runs/{run_id}/" if run_id else ""
        files = list_files(place_below(self.home, below.rstrip("/")) if below else self.home)
        stands = {
            below + name: list(stand)
            for name, stand in files.items()
            if MIRRORED.fullmatch(below + name)
        }
        seen = self.seen()
        changed = [
            name
            for name, stand in stands.items()
            if seen.get(name) != stand or not (self.path / name).exists()
        ]
        fetch_files(self.home, sorted(changed), self.path)
        if changed:
            write_json(self.path / SEEN, seen | stands)

    def seen(self) -> dict[str, Any]:
        """Read what was brought home before."""
        file = self.path / SEEN
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}

    def forget_retried(self) -> None:
        """Forget here the failed runs whose records storage had, and has no more: they are tried
        again since.
        """
        there, seen = list_files(self.home), self.seen()
        for run_id in self.recorded():
            record, ended = f"runs/{run_id}/record.json", self.read_record(run_id)
            if record in seen and record not in there and ended and ended.status != "done":
                super().reopen(run_id)

    def push_missing_runs(self) -> None:
        """Push runs that ended here before the study had storage."""
        there = list_files(self.home)
        for run_id in sorted(self.recorded()):
            if f"runs/{run_id}/record.json" not in there:
                folder = self.run_path(run_id)
                names = [
                    str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()
                ]
                self.push_run(run_id, [name for name in names if HANDED_OVER.fullmatch(name)])

    def push_run(self, run_id: str, names: Iterable[str]) -> None:
        """Push files of a run, the record last."""
        place, folder = self.run_place(run_id), self.run_path(run_id)
        push_files(folder, [name for name in names if name != "record.json"], place)
        push_files(folder, ["record.json"], place)

    def publish(self) -> None:
        """Push what lies in the study's own folder, and its report."""
        files = [
            file
            for file in [*self.path.glob("*"), *self.path.glob("report/**/*")]
            if file.is_file()
        ]
        names = [str(file.relative_to(self.path)) for file in files]
        push_files(self.path, [name for name in names if MIRRORED.fullmatch(name)], self.home)

    def claim(self, study: StudySpec, corpus_digest: str) -> None:
        """Take the folder for a study, here and on storage, and hand over runs that ended here
        before.
        """
        super().claim(study, corpus_digest)
        push_files(self.path, ["owner.json", "study.yaml"], self.home)
        self.owned = True
        self.push_missing_runs()

    def reopen(self, run_id: str) -> None:
        """Take back a run's record, here and on storage, before it is trained again."""
        if self.read_record(run_id):
            delete_file(self.run_place(run_id), "record.json")
        super().reopen(run_id)

    def write_run(self, run: RunSpec, record: RunRecord, curve: list[dict[str, float]]) -> None:
        """Write what a run left, here and on storage: for a trial that could not."""
        super().write_run(run, record, curve)
        try:
            self.push_run(record.run_id, ["spec.json", "curve.json"])
        except StudyError:
            super().reopen(record.run_id)  # what storage does not hold has not ended
            raise

    def gather(self, run_id: str) -> None:
        """Bring an ended run home, and from time to time show the table as it stands."""
        self.fetch(run_id)
        if time.monotonic() - self.told > TABLE_SECONDS:
            write_current(self.path)
            push_files(self.path, ["runs.csv", "runs.parquet"], self.home)
            self.told = time.monotonic()

    def collect(self, planned: list[RunDescription]) -> Runs:
        """Bring runs home, write and return the tables, and push them."""
        if not self.trouble:
            self.fetch()
        runs = super().collect(planned)
        if not self.trouble:
            self.publish()
        return runs


def write_current(path: Path) -> None:
    """Write a study's runs table as it stands, scores of tasks included."""
    runs = read_current_runs(path)
    runs.write(path)
    join_results(path, runs)


def open_directory(path: Path, storage: str | None) -> StudyDirectory:
    """Return a study's directory, on this disk alone or with its home on storage."""
    return StoredDirectory(path, storage) if storage else StudyDirectory(path)


def fetch_study(storage: str, name: str, output: str | Path) -> StudyDirectory:
    """Bring a study's tables, curves and report home from storage, also while it runs; what is
    done, not its weights.

    Raises:
        StudyError: storage holds no such study, or the folder holds another.
    """
    directory = StoredDirectory(Path(output).absolute() / name, storage)
    if "owner.json" not in list_files(directory.home):
        raise StudyError(
            f"{directory.home} holds no study; look at --storage and the study's name."
        )
    directory.look()
    return directory
