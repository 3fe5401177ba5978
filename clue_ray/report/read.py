"""Read the files of a study directory for its report.

Only the runs table is required. Every other file may be absent, and a file or a part of it that
cannot be used is left out with a warning on the page, so that the report is always written.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from clue_ray.errors import SpecError, reason_of
from clue_ray.foreign.study import usable_source
from clue_ray.report.numbers import is_absent
from clue_ray.runs import RUN_COLUMNS, Runs, read_current_runs, read_runs
from clue_ray.scaling.downstream import check_result
from clue_ray.scaling.forecasting.seal import Judged, judge_seals
from clue_ray.spec.fits import FitSpec
from clue_ray.spec.specs import StudySpec, read_study
from clue_ray.storage.documents import is_file_name, read_document
from clue_ray.storage.links import check_links
from clue_ray.storage.tables import read_parquet

SOURCE = "source.json"
"""Where the runs of another tool came from, and what their columns are called."""
RESULT = re.compile(r"transfer/[\w.-]+\.json")
"""Path of a task's result within the folder of its run; other paths are not followed."""
MOST_STUDY_BYTES = 2_000_000
"""Size of a study file that is read and shown; YAML takes hundreds of times its size in memory."""
AMOUNTS = (
    "users", "users_in_two_services", "training_users", "held_out_users", "events", "items",
    "tokens", "vocab_size", "max_item_tokens",
)  # fmt: skip
"""Numbers of a corpus summary that are shown in a report."""


@dataclass(frozen=True)
class StudyFiles:
    """The input of a report.

    Attributes:
        name: the name of the study.
        question: the question of the study.
        study_text: the text of the study file.
        fit: the laws to fit.
        table: every run, with all columns of a runs table (empty where the file lacks one).
        curves: the learning curves.
        expected_seconds: planned wall time by run_id; empty without a plan.
        expected_flops: planned training compute in FLOP by run_id; empty without a plan.
        floor: lowest loss that an encoder can have in nats by sequence length; empty unless the log
            was planted.
        baselines: name, loss, recall_at_10, mrr and loss_candidates of each baseline.
        corpus: summary of the prepared corpus; empty without one.
        warnings: sentences about files that could not be used.
        judged: results of downstream tasks, each of the run of lowest loss that has one.
        study: the study file; None without a usable one.
        seals: the sealed forecasts, verified and compared with the runs.
        encoders: number of runs whose trained encoder is in the directory.
        source: how the runs of another tool were read; empty for runs of a study.
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
    study: StudySpec | None = None
    seals: tuple[Judged, ...] = ()
    encoders: int = 0
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> Mapping[str, Mapping[str, str]]:
        """What columns are called where they are not ours, for `spec.columns.named`."""
        return self.source.get("names") or {}

    @property
    def done(self) -> pd.DataFrame:
        """The runs of the whole encoder that finished with a loss."""
        return _with_loss(Runs(self.table).done)

    @property
    def finished(self) -> pd.DataFrame:
        """The runs that finished with a loss, with those of one part of the encoder."""
        return _with_loss(Runs(self.table).finished)

    @property
    def ablations(self) -> pd.DataFrame:
        """The runs of one part of the encoder that finished with a loss."""
        return _with_loss(Runs(self.table).ablations)


def read_directory(directory: Path, running: bool = False) -> StudyFiles:
    """Read a study directory.

    The table of a `running` study consists of its plan and of the records of the runs that ended.

    Raises:
        RunsError: the directory has no runs table.
        StudyError: a link in it leads out of it.
    """
    check_links(directory)
    runs = read_current_runs(directory, skip_damaged=True) if running else read_runs(directory)
    table = _completed(runs.table)
    warnings: list[str] = []
    study = _study(directory / "study.yaml", warnings)
    plan, corpus, baselines, source = (
        _read_mapping(directory / name, warnings)
        for name in ("plan.json", "corpus.json", "baselines.json", SOURCE)
    )
    expected = _planned_runs(plan, warnings)
    return StudyFiles(
        name=study.name if study else str(source.get("name") or _name_from(table, directory)),
        question=study.question if study else "",
        study_text=_text(directory / "study.yaml"),
        fit=study.fit if study else FitSpec(),
        table=table,
        curves=_curves(directory / "curves.parquet", warnings),
        expected_seconds=_planned(expected, "expected_seconds", warnings),
        expected_flops=_planned(expected, "train_flops", warnings),
        floor=_floor_by_length(corpus, table, warnings),
        baselines=_comparable_baselines(baselines, table, warnings),
        corpus=_usable_corpus(corpus, warnings),
        judged=_judged_runs(directory, table, warnings),
        warnings=tuple(warnings),
        study=study,
        seals=judge_seals(directory, runs),
        encoders=sum(1 for _ in directory.glob("runs/*/encoder")),
        source=usable_source(source),
    )


def sizes_by_name(table: pd.DataFrame) -> "pd.Series[Any]":
    """Name custom encoders by their width and the varying part of their shape: `w24 heads 4`."""
    names, shape = table["encoder_size"].astype(object), ["item_layers", "service_layers", "heads"]
    own = table[(names == "custom") & table["width"].notna()]
    varied = [column for column in shape if own[column].nunique() > 1]
    words = {column: column.replace("_", " ") for column in varied}
    spelled = [
        " ".join([f"w{run['width']:g}", *(f"{words[name]} {run[name]:g}" for name in varied)])
        for run in own.to_dict("records")
    ]
    return names.where(~names.index.isin(own.index), pd.Series(spelled, own.index, dtype=object))


def _completed(table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that a table from elsewhere lacks: its runs are done and named by row."""
    table = table.reindex(columns=list(dict.fromkeys([*RUN_COLUMNS, *table.columns])))
    names = [
        f"row-{row}" if is_absent(name) else str(name) for row, name in enumerate(table["run_id"])
    ]
    named = table.assign(run_id=names, status=table["status"].astype(object).fillna("done"))
    return named.assign(encoder_size=sizes_by_name(named))


def _study(path: Path, warnings: list[str]) -> StudySpec | None:
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MOST_STUDY_BYTES:
            raise SpecError(f"it has more than {MOST_STUDY_BYTES:,} bytes.")
        return read_study(path)
    except SpecError as error:
        warnings.append(
            "The study file could not be used, so its question and choice of laws are missing: "
            f"{error}"
        )
        return None


def _text(path: Path) -> str:
    shown = path.is_file() and path.stat().st_size <= MOST_STUDY_BYTES
    return path.read_text(encoding="utf-8", errors="replace") if shown else ""


def _name_from(table: pd.DataFrame, directory: Path) -> str:
    names = [str(name) for name in table["study"].dropna().unique()]
    return names[0] if names else directory.resolve().name


def _curves(path: Path, warnings: list[str]) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        curves = read_parquet(path)
    except (ValueError, OSError) as error:
        warnings.append(
            f"{path.name} cannot be read ({reason_of(error)}); the learning curves are left out."
        )
        return None
    missing = {"run_id", "train_flops", "loss"} - set(curves.columns)
    if missing:
        warnings.append(
            f"{path.name} lacks {', '.join(sorted(missing))}; the learning curves are left out."
        )
    return None if missing or curves.empty else curves


def _read_mapping(path: Path, warnings: list[str]) -> dict[str, Any]:
    """Read a JSON mapping; empty without a file, or, with a warning, without a mapping in it."""
    if not path.is_file():
        return {}
    try:
        document = read_document(path)
    except (ValueError, OSError) as error:
        warnings.append(
            f"{path.name} cannot be read ({reason_of(error)}); its part of the report is left out."
        )
        return {}
    if isinstance(document, dict):
        return document
    warnings.append(
        f"{path.name} is not a mapping of keys to values; its part of the report is left out."
    )
    return {}


def _with_loss(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["loss"].notna()]


def _judged_runs(
    directory: Path, table: pd.DataFrame, warnings: list[str]
) -> tuple[dict[str, Any], ...]:
    """Read the latest result of each downstream task, of the run of lowest loss that has one."""
    ended = _with_loss(Runs(table).done).sort_values("loss")["run_id"]
    found: list[dict[str, Any]] = []
    for names in _read_mapping(directory / "transfer.json", warnings).values():
        asked = {run: str(names.get(run)) for run in ended} if isinstance(names, dict) else {}
        places = (
            directory / "runs" / str(run) / name
            for run, name in asked.items()
            if RESULT.fullmatch(name) and is_file_name(run)
        )
        found += islice(_usable_results(places, warnings), 1)
    return tuple(found)


def _usable_results(places: Iterable[Path], warnings: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the results of a task that are not the errors of failed tries."""
    for place in places:
        result = _read_mapping(place, warnings)
        try:
            if "methods" in result:
                check_result(result)
                yield result
        except ValueError as error:
            reason = reason_of(error)
            warnings.append(f"{place.name} is not a result of a task ({reason}); it is left out.")


def _planned_runs(plan: dict[str, Any], warnings: list[str]) -> list[dict[str, Any]]:
    """List the runs of a plan that have a run_id."""
    runs = _mappings(plan, "runs", "plan.json", warnings)
    named = [run for run in runs if run.get("run_id") is not None]
    if len(named) < len(runs):
        warnings.append(
            f"plan.json has {len(runs) - len(named)} runs without a run_id; they are left out."
        )
    return named


def _planned(runs: list[dict[str, Any]], column: str, warnings: list[str]) -> dict[str, float]:
    """Return one column of a plan by run_id; only positive numbers."""
    found = {str(run["run_id"]): _number(run[column]) for run in runs if run.get(column)}
    kept = {run_id: value for run_id, value in found.items() if value is not None and value > 0}
    if len(kept) < len(found):
        warnings.append(
            f"plan.json has {len(found) - len(kept)} runs whose {column} is not a positive number."
        )
    return kept


def _usable_corpus(corpus: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """Return the usable part of a corpus summary.

    Amounts must be numbers, and `rejected` must map reasons to numbers of rows.
    """
    rejected = corpus.get("rejected")
    counted = isinstance(rejected, dict) and all(
        _number(rows) is not None for rows in rejected.values()
    )
    wrong = [
        key
        for key in (*AMOUNTS, "rejected_rows")
        if corpus.get(key) is not None and _number(corpus[key]) is None
    ]
    wrong += ["rejected"] if rejected is not None and not counted else []
    if wrong:
        warnings.append(
            f"corpus.json: {', '.join(wrong)} cannot be used as written and is left out."
        )
    return {key: value for key, value in corpus.items() if key not in wrong}


def _floor_by_length(
    corpus: dict[str, Any], table: pd.DataFrame, warnings: list[str]
) -> dict[int, float]:
    """Read the Bayes loss of a planted corpus in nats by sequence length.

    Empty, with a warning, if it was computed for another number of candidates than the runs have.
    """
    losses = corpus.get("bayes_loss") or {}
    read = losses.items() if isinstance(losses, dict) else ()
    floor = {
        int(length): loss
        for length, value in read
        if length.isdecimal() and (loss := _number(value)) is not None
    }
    if not isinstance(losses, dict) or len(floor) < len(losses):
        warnings.append(
            "corpus.json: bayes_loss is not a mapping of sequence lengths to losses, so it is left "
            "out."
        )
        return {}
    candidates, own = _candidates(table), _number(corpus.get("bayes_loss_candidates"))
    if not floor or candidates <= {own}:
        return floor
    warnings.append(
        f"The lowest possible loss was computed for {corpus.get('bayes_loss_candidates')} "
        f"candidates and the runs were scored at {_listed(candidates)}, so it is left out; compute "
        "it for the same number."
    )
    return {}


def _comparable_baselines(
    document: dict[str, Any], table: pd.DataFrame, warnings: list[str]
) -> tuple[dict[str, Any], ...]:
    """Return the baselines with the same number of candidates as the runs.

    Losses with different numbers of candidates are not comparable.
    """
    candidates, kept = _candidates(table), []
    for baseline in _mappings(document, "baselines", "baselines.json", warnings):
        name = str(baseline.get("name") or "without a name")
        values = {
            key: _number(baseline.get(key))
            for key in ("loss", "loss_candidates", "recall_at_10", "mrr")
        }
        missing = [key for key in ("loss", "loss_candidates") if values[key] is None]
        if missing:
            warnings.append(
                f"The baseline {name} has no number as {' and '.join(missing)}, so it is left out."
            )
        elif candidates <= {values["loss_candidates"]}:
            kept.append({**baseline, "name": name, **values})
        else:
            warnings.append(
                f"The baseline {name} was scored at {baseline['loss_candidates']} candidates and "
                f"the runs at {_listed(candidates)}, so it is left out; score it at the same "
                "number."
            )
    return tuple(kept)


def _mappings(
    document: dict[str, Any], key: str, file: str, warnings: list[str]
) -> list[dict[str, Any]]:
    entries = document.get(key, [])
    kept = (
        [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    )
    if not isinstance(entries, list) or len(kept) < len(entries):
        warnings.append(f"{file}: {key} is not a list of mappings; other entries are left out.")
    return kept


def _number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= sys.float_info.max else None  # JSON has integers of any size


def _candidates(table: pd.DataFrame) -> set[float]:
    return {int(value) for value in table["loss_candidates"].dropna().unique()}


def _listed(candidates: set[float]) -> str:
    return ", ".join(map(str, sorted(candidates)))
