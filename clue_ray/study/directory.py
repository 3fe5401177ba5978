"""A study's folder: which study owns it, what each run left there, and the tables made of that.

study.yaml  plan.json  corpus.json  baselines.json  runs.csv  runs.parquet  curves.parquet
fits.json runs/<run_id>/{spec.json, curve.json, record.json, checkpoints/, log.txt,
events.out.tfevents.*}    report/
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import yaml

from clue_ray.errors import StudyError
from clue_ray.runs import RunDescription, RunRecord, Runs, join_records, read_plan, read_record
from clue_ray.spec.specs import RunSpec, StudySpec
from clue_ray.storage.files import atomic_write, read_json, write_json
from clue_ray.storage.lock import locked
from clue_ray.storage.place import place_below

CURVE_COLUMNS = (
    "run_id", "step", "users_seen", "train_flops", "loss", "recall_at_10", "mrr", "train_loss", "learning_rate",
    "gradient_norm", "temperature", "tokens_per_second", "memory_bytes", "spared_pairs",
)  # fmt: skip
"""One row an evaluation point; docs/guide/training.md says what each holds."""


class StudyDirectory:
    """Reads and writes one study's folder, which all nodes see; one whose home is storage is in
    study/mirror.py.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()

    @property
    def place(self) -> str:
        """Folder or URI of the study that all nodes can write."""
        return str(self.path)

    @property
    def trouble(self) -> str:
        """Say why the study must stop, as where its storage is lost; empty while it may go on."""
        return ""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the study for this command; raise StudyError while another does."""
        with locked(self.path):
            yield

    def look(self) -> None:
        """Bring home what others have left of the study: here it is home already."""

    def publish(self) -> None:
        """Show others what lies in the study's own folder: here they see it already."""

    def gather(self, run_id: str) -> None:
        """Bring home what a node has left of a run: here it is home already."""

    def claim(self, study: StudySpec, corpus_digest: str) -> None:
        """Take the folder for a study; raise StudyError when it belongs to something else."""
        owner = {
            "study": study.name,
            "corpus_digest": corpus_digest,
            "candidates": study.evaluation.candidates,
        }
        file = self.path / "owner.json"
        if file.exists():
            found = read_json(file)
            if found != owner:
                difference = ", ".join(
                    f"{key} {found.get(key)} there, {owner[key]} here"
                    for key in owner
                    if found.get(key) != owner[key]
                )
                raise StudyError(
                    f"{self.path} belongs to another study ({difference}); choose another --output."
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise StudyError(
                f"{self.path} is not empty and holds no study; choose another --output."
            )
        write_json(file, owner)
        with atomic_write(self.path / "study.yaml") as temporary:
            document = study.model_dump(mode="json", exclude_unset=True)
            temporary.write_text(
                yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8"
            )

    def run_path(self, run_id: str) -> Path:
        """Folder of one run."""
        return self.path / "runs" / run_id

    def run_place(self, run_id: str) -> str:
        """Folder or URI of one run that all nodes can write."""
        return place_below(self.place, f"runs/{run_id}")

    def write_run(self, run: RunSpec, record: RunRecord, curve: list[dict[str, float]]) -> None:
        """Write what a run left."""
        write_run(self.run_path(record.run_id), run, record, curve)

    def read_record(self, run_id: str) -> RunRecord | None:
        """Read a run's record; None until the run has ended."""
        return read_record(self.run_path(run_id) / "record.json")

    def planned_seconds(self) -> dict[str, float]:
        """Read the seconds that an earlier plan expected of each run, by run id."""
        return {run["run_id"]: run["expected_seconds"] for run in read_plan(self.path)}

    def reopen(self, run_id: str) -> None:
        """Take back a run's record, before it is trained again."""
        (self.run_path(run_id) / "record.json").unlink(missing_ok=True)

    def recorded(self) -> set[str]:
        """List the ids of all runs that ended here, whichever study file asked for them."""
        return {file.parent.name for file in self.path.glob("runs/*/record.json")}

    def collect(self, planned: list[RunDescription]) -> Runs:
        """Write and return the runs table, and write the learning curves beside it."""
        curves = []
        for run_id in (run.run_id for run in planned):
            curve_file = self.run_path(run_id) / "curve.json"
            if self.read_record(run_id) and curve_file.exists():
                curves += [
                    {"run_id": run_id, **point}
                    for point in json.loads(curve_file.read_text(encoding="utf-8"))
                ]
        runs = join_records(self.path, [run.model_dump() for run in planned])
        runs.write(self.path)
        with atomic_write(self.path / "curves.parquet") as temporary:
            pd.DataFrame(curves, columns=list(CURVE_COLUMNS)).to_parquet(temporary, index=False)
        return runs


def write_run(folder: Path, run: RunSpec, record: RunRecord, curve: list[dict[str, float]]) -> None:
    """Write what a run left into its folder.

    The record is written last, because its presence means that the run has ended.
    """
    write_json(folder / "spec.json", run.model_dump(mode="json"))
    finite = [
        {name: value if math.isfinite(value) else None for name, value in point.items()}
        for point in curve
    ]
    write_json(folder / "curve.json", finite)
    write_json(folder / "record.json", record.model_dump(mode="json"))
