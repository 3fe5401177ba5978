"""A study's folder: which study owns it, what each run left there, and the tables made of that.

study.yaml  plan.json  corpus.json  baseline.json  runs.csv  runs.parquet  curves.parquet  fits.json
runs/<run_id>/{spec.json, curve.json, record.json, checkpoints/}    report/
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from clue_ray.errors import StudyError
from clue_ray.runs import RunRecord, Runs, replacing, write_json
from clue_ray.spec import RunSpec, StudySpec

CURVE_COLUMNS = ("run_id", "step", "train_flops", "loss", "recall_at_10", "mrr", "train_loss")


class StudyDirectory:
    """Reads and writes one study's folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()

    def claim(self, study: StudySpec, corpus_digest: str) -> None:
        """Take the folder for a study; raise StudyError when it belongs to something else."""
        owner = {
            "study": study.name,
            "corpus_digest": corpus_digest,
            "candidates": study.evaluation.candidates,
        }
        file = self.path / "owner.json"
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            if found != owner:
                difference = ", ".join(
                    f"{key} {found.get(key)} there, {owner[key]} here" for key in owner if found.get(key) != owner[key]
                )
                raise StudyError(f"{self.path} belongs to another study ({difference}); choose another --output.")
        elif self.path.exists() and any(self.path.iterdir()):
            raise StudyError(f"{self.path} is not empty and holds no study; choose another --output.")
        write_json(file, owner)
        with replacing(self.path / "study.yaml") as temporary:
            document = study.model_dump(mode="json", exclude_unset=True)
            temporary.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def run_path(self, run_id: str) -> Path:
        """Folder of one run."""
        return self.path / "runs" / run_id

    def write_run(self, run: RunSpec, record: RunRecord, curve: list[dict[str, float]]) -> None:
        """Write what a run left; the record last, because its presence means that the run ended."""
        folder = self.run_path(record.run_id)
        write_json(folder / "spec.json", run.model_dump(mode="json"))
        write_json(folder / "curve.json", curve)
        write_json(folder / "record.json", record.model_dump(mode="json"))

    def read_record(self, run_id: str) -> RunRecord | None:
        """Read a run's record, or None when it has not ended."""
        file = self.run_path(run_id) / "record.json"
        return RunRecord(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None

    def is_finished(self, run_id: str) -> bool:
        """Tell whether a run needs no more training; a failed one is tried again."""
        record = self.read_record(run_id)
        return record is not None and record.status in {"done", "diverged"}

    def collect(self, planned: list[dict[str, Any]]) -> Runs:
        """Write and return the runs table: a row a planned run, `missing` where no record was left.

        Args:
            planned: the columns known before training, one mapping a run.
        """
        records, curves = [], []
        for known in planned:
            run_id = known["run_id"]
            record = self.read_record(run_id)
            records.append(record or RunRecord(**known, status="missing", error="not run yet"))
            curve_file = self.run_path(run_id) / "curve.json"
            if record and curve_file.exists():
                curves += [{"run_id": run_id, **point} for point in json.loads(curve_file.read_text(encoding="utf-8"))]
        runs = Runs.from_records(records)
        runs.write(self.path)
        with replacing(self.path / "curves.parquet") as temporary:
            pd.DataFrame(curves, columns=list(CURVE_COLUMNS)).to_parquet(temporary, index=False)
        return runs
