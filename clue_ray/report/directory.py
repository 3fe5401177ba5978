"""Read what a study directory holds for its report.

Takes a directory, gives `StudyFiles`. One idea: only the runs table is needed; everything else may be absent,
and a file that cannot be read becomes a warning on the page, never a report that was not written.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from clue_ray.errors import SpecError
from clue_ray.report.numbers import is_absent
from clue_ray.report.side_files import (
    comparable_baselines,
    floor_by_length,
    judged_runs,
    planned,
    planned_runs,
    read_mapping,
    usable_corpus,
)
from clue_ray.runs import COLUMNS, Runs, read_runs
from clue_ray.spec.specs import FitSpec, StudySpec, read_study

REACHED = ("steps", "users_seen", "train_tokens", "train_flops")
"""What a plan expects of a run and only its end makes true."""


@dataclass(frozen=True)
class StudyFiles:
    """Everything a report is made from.

    Attributes:
        table: every run, with all columns of the contract (empty where the table lacks one).
        expected_seconds: planned wall time by run_id; empty without a plan.
        expected_flops: planned training compute by run_id, FLOP; empty without a plan.
        floor: lowest loss any encoder can have by sequence length, nats; empty unless the log was planted.
        baselines: name, loss, recall_at_10, mrr, loss_candidates of each method beside the encoder.
        corpus: summary of the prepared corpus; empty without one.
        warnings: sentences about files that could not be used.
        judged: results of downstream tasks, each of the run of lowest loss that has one.
    """

    name: str
    question: str
    study_text: str
    fit: FitSpec
    table: pd.DataFrame
    curves: pd.DataFrame | None
    expected_seconds: dict[str, float]
    expected_flops: dict[str, float]
    floor: dict[int, float]
    baselines: tuple[dict[str, Any], ...]
    corpus: dict[str, Any]
    warnings: tuple[str, ...]
    judged: tuple[dict[str, Any], ...] = ()

    @property
    def done(self) -> pd.DataFrame:
        """Runs that finished with a loss."""
        return self.table.loc[(self.table["status"] == "done") & self.table["loss"].notna()]


def read_directory(directory: Path, running: bool = False) -> StudyFiles:
    """Read a study directory; raise RunsError when it holds no runs table.

    Of a `running` study the table is made of its plan and of what each run that ended has left.
    """
    runs = read_ended(directory) if running else read_runs(directory)
    table = _completed(runs.table)
    warnings: list[str] = []
    study = _study(directory / "study.yaml", warnings)
    plan, corpus, baselines = (
        read_mapping(directory / name, warnings) for name in ("plan.json", "corpus.json", "baselines.json")
    )
    expected = planned_runs(plan, warnings)
    return StudyFiles(
        name=study.name if study else _name_from(table, directory),
        question=study.question if study else "",
        study_text=_text(directory / "study.yaml"),
        fit=study.fit if study else FitSpec(),
        table=table,
        curves=_curves(directory / "curves.parquet", warnings),
        expected_seconds=planned(expected, "expected_seconds", warnings),
        expected_flops=planned(expected, "train_flops", warnings),
        floor=floor_by_length(corpus, table, warnings),
        baselines=comparable_baselines(baselines, table, warnings),
        corpus=usable_corpus(corpus, warnings),
        judged=judged_runs(directory, table, warnings),
        warnings=tuple(warnings),
    )


def read_ended(directory: Path) -> Runs:
    """Read the runs of a plan, `missing` where one has not ended; the runs table where there is no plan."""
    expected_runs = planned_runs(read_mapping(directory / "plan.json", []), [])
    if not expected_runs:
        return read_runs(directory)
    rows = []
    for known in expected_runs:
        record = read_mapping(directory / "runs" / str(known["run_id"]) / "record.json", [])
        expected = {column: known[column] for column in COLUMNS if column in known and column not in REACHED}
        rows.append({**expected, "status": "missing", "error": "not ended yet", **record})
    return Runs(pd.DataFrame(rows, columns=COLUMNS))


def _completed(table: pd.DataFrame) -> pd.DataFrame:
    """Give a table made elsewhere all columns of the contract: its runs are done, and named by their row."""
    table = table.reindex(columns=list(dict.fromkeys([*COLUMNS, *table.columns])))
    rows = [f"row-{row}" for row in range(len(table))]
    names = [row if is_absent(name) else str(name) for name, row in zip(table["run_id"], rows, strict=True)]
    named = table.assign(run_id=names, status=table["status"].astype(object).fillna("done"))
    return named.assign(encoder_size=sizes_by_name(named))


def sizes_by_name(table: pd.DataFrame) -> "pd.Series[Any]":
    """Name encoders that are no rung by their width, and by what else of their shape varies: `w24`, `w24 heads 4`."""
    names, shape = table["encoder_size"].astype(object), ["item_layers", "service_layers", "heads"]
    own = table[(names == "custom") & table["width"].notna()]
    varied = [column for column in shape if own[column].nunique() > 1]
    spelled = [
        " ".join([f"w{run['width']:g}", *(f"{column.replace('_', ' ')} {run[column]:g}" for column in varied)])
        for run in own.to_dict("records")
    ]
    return names.where(~names.index.isin(own.index), pd.Series(spelled, own.index, dtype=object))


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
