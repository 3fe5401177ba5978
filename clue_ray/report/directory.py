"""Read what a study directory holds for its report.

Takes a directory, gives `StudyFiles`. One idea: only the runs table is needed; everything else may be absent,
and a file that cannot be read becomes a warning on the page, never a report that was not written.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from clue_ray.errors import SpecError
from clue_ray.report.numbers import is_absent
from clue_ray.runs import COLUMNS, read_runs
from clue_ray.spec import FitSpec, StudySpec, read_study


@dataclass(frozen=True)
class StudyFiles:
    """Everything a report is made from.

    Attributes:
        table: every run, with all columns of the contract (empty where the table lacks one).
        expected_seconds: planned wall time by run_id; empty without a plan.
        baseline: name, loss, recall_at_10, mrr, loss_candidates of the untrained baseline; empty without one.
        corpus: summary of the prepared corpus; empty without one.
        warnings: sentences about files that could not be used.
    """

    name: str
    question: str
    study_text: str
    fit: FitSpec
    table: pd.DataFrame
    curves: pd.DataFrame | None
    expected_seconds: dict[str, float]
    baseline: dict[str, Any]
    corpus: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def done(self) -> pd.DataFrame:
        """Runs that finished with a loss."""
        return self.table.loc[(self.table["status"] == "done") & self.table["loss"].notna()]


def read_directory(directory: Path) -> StudyFiles:
    """Read a study directory; raise RunsError when it holds no runs table."""
    table = _completed(read_runs(directory).table)
    warnings: list[str] = []
    study = _study(directory / "study.yaml", warnings)
    return StudyFiles(
        name=study.name if study else _name_from(table, directory),
        question=study.question if study else "",
        study_text=_text(directory / "study.yaml"),
        fit=study.fit if study else FitSpec(),
        table=table,
        curves=_curves(directory / "curves.parquet", warnings),
        expected_seconds=_expected_seconds(_mapping(directory / "plan.json", warnings)),
        baseline=_comparable(_mapping(directory / "baseline.json", warnings), table, warnings),
        corpus=_mapping(directory / "corpus.json", warnings),
        warnings=tuple(warnings),
    )


def _completed(table: pd.DataFrame) -> pd.DataFrame:
    """Give a table made elsewhere all columns of the contract: its runs are done, and named by their row."""
    table = table.reindex(columns=list(dict.fromkeys([*COLUMNS, *table.columns])))
    rows = [f"row-{row}" for row in range(len(table))]
    names = [row if is_absent(name) else str(name) for name, row in zip(table["run_id"], rows, strict=True)]
    return table.assign(run_id=names, status=table["status"].astype(object).fillna("done"))


def _study(path: Path, warnings: list[str]) -> StudySpec | None:
    if not path.is_file():
        return None
    try:
        return read_study(path)
    except SpecError as error:
        warnings.append(f"The study file could not be used, so its question and choice of laws are missing: {error}")
        return None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _name_from(table: pd.DataFrame, directory: Path) -> str:
    names = [str(name) for name in table["study"].dropna().unique()]
    return names[0] if names else directory.resolve().name


def _mapping(path: Path, warnings: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        warnings.append(f"{path.name} cannot be read ({error}); its part of the report is left out.")
        return {}
    if isinstance(document, dict):
        return document
    warnings.append(f"{path.name} holds no mapping of keys to values; its part of the report is left out.")
    return {}


def _curves(path: Path, warnings: list[str]) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        curves = pd.read_parquet(path)
    except (ValueError, OSError) as error:
        warnings.append(f"{path.name} cannot be read ({error}); the learning curves are left out.")
        return None
    missing = {"run_id", "train_flops", "loss"} - set(curves.columns)
    if missing:
        warnings.append(f"{path.name} lacks {', '.join(sorted(missing))}; the learning curves are left out.")
    return None if missing or curves.empty else curves


def _expected_seconds(plan: dict[str, Any]) -> dict[str, float]:
    runs = [run for run in plan.get("runs", []) if isinstance(run, dict)]
    return {str(run.get("run_id")): float(run["expected_seconds"]) for run in runs if run.get("expected_seconds")}


def _comparable(baseline: dict[str, Any], table: pd.DataFrame, warnings: list[str]) -> dict[str, Any]:
    """Keep a baseline only if it was scored on as many candidates as the runs: losses compare only then."""
    candidates = {int(value) for value in table["loss_candidates"].dropna().unique()}
    scored_on = baseline.get("loss_candidates")
    if scored_on is None or candidates <= {int(scored_on)}:
        return baseline
    warnings.append(
        f"The baseline was scored at {scored_on} candidates and the runs at "
        f"{', '.join(map(str, sorted(candidates)))}, so it is left out; score it at the same number."
    )
    return {}
