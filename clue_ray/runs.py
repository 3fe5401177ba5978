"""The runs table: one tidy row per run.

Training writes this table; fits and reports read nothing else of it. `Runs` also holds tables made
elsewhere (CSV, Parquet). Failed, diverged and missing runs are rows, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from clue_ray.errors import RunsError, StudyError, reason_of
from clue_ray.spec.columns import COLUMNS
from clue_ray.spec.statuses import STATUS_NAMES, STATUSES, Status
from clue_ray.storage.delimited import DECIMAL_COMMA
from clue_ray.storage.documents import is_file_name, read_bounded, read_document
from clue_ray.storage.links import check_links

if TYPE_CHECKING:  # pandas and pyarrow are slow to import, and `clue_ray.fit_law` should not be
    import pandas as pd

WHOLE = "bag+transformer"
"""`encoder_parts` of an encoder with all its parts; tables without the column hold one model."""


class RunDescription(BaseModel):
    """The columns of the runs table that are known before training.

    `spec/columns.py` has the label and the order of each column. A run that is not part of a study
    has an empty `study`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    study: str = ""
    corpus_digest: str
    encoder_size: str
    encoder_parts: str = WHOLE
    other_settings: str = ""
    width: int
    item_layers: int
    service_layers: int
    heads: int
    non_embedding_params: int
    total_params: int
    corpus_users: int
    corpus_tokens: int
    sequence_length: int
    global_batch_size: int
    learning_rate: float
    seed: int
    loss_candidates: int
    num_workers: int
    device: str
    clue_ray_version: str

    def to_record(self, status: Status, **results: Any) -> RunRecord:
        """Return the record of this run; `results` replace described columns, such as device."""
        return RunRecord(**{**self.model_dump(), "status": status, **results})


class RunRecord(RunDescription):
    """One row of the runs table; numbers that a run has not reached are None."""

    status: Status
    error: str = ""
    steps: int | None = None
    users_seen: int | None = None
    train_tokens: int | None = None
    train_flops: float | None = None
    executed_flops: float | None = None
    loss: float | None = None
    loss_at_training_temperature: float | None = None
    recall_at_10: float | None = None
    mrr: float | None = None
    train_loss: float | None = None
    wall_seconds: float | None = None
    tokens_per_second: float | None = None
    started_at: str = ""


RUN_COLUMNS = [name for name in COLUMNS if name in RunRecord.model_fields]
"""The columns of the runs table, in order."""
OPTIONAL = {
    name: field.default for name, field in RunRecord.model_fields.items() if not field.is_required()
}
"""The values of columns before a run has a record."""
TEMPERATURE_BOUNDS = (0.001, 10.0)
"""Bounds of the calibrated temperature; at the upper one all candidates are as likely."""
SCORES = "transfer_"
"""Prefix of the additional columns for scores on downstream tasks."""


def chance_loss(candidates: int) -> float:
    """Return the loss of a uniform guess among `candidates`: ln(candidates), in nats."""
    return math.log(candidates)


def is_at_bound(temperature: float) -> bool:
    """Return whether a calibrated temperature ended within 5% of one of its bounds."""
    return any(math.isclose(temperature, bound, rel_tol=0.05) for bound in TEMPERATURE_BOUNDS)


class Runs:
    """A runs table.

    Attributes:
        table: One row per run, including failed runs.

    Example:
        >>> import pandas as pd
        >>> from clue_ray import Runs
        >>> runs = Runs(pd.DataFrame({"loss": [5.1, None], "status": ["done", "failed"]}))
        >>> len(runs), len(runs.done)
        (2, 1)
    """

    def __init__(self, table: pd.DataFrame):
        self.table = table.reset_index(drop=True)

    @classmethod
    def from_records(cls, records: list[RunRecord]) -> Runs:
        """Build the table from records, with columns in the order of `RUN_COLUMNS`."""
        import pandas as pd

        return cls(pd.DataFrame([record.model_dump() for record in records], columns=RUN_COLUMNS))

    @property
    def finished(self) -> pd.DataFrame:
        """Runs that finished; all runs of a table without status."""
        table = self.table
        return table[table["status"] == "done"] if "status" in table else table

    @property
    def done(self) -> pd.DataFrame:
        """Finished runs of the whole encoder; laws are fitted to these only."""
        return self.finished.drop(self.ablations.index)

    @property
    def ablations(self) -> pd.DataFrame:
        """Finished runs of one part of the encoder, in a table that also has the whole.

        They show what each part brings. A law over both would describe neither.
        """
        done = self.finished
        if "encoder_parts" not in done or not (done["encoder_parts"] == WHOLE).any():
            return done.iloc[:0]
        return done[done["encoder_parts"].notna() & (done["encoder_parts"] != WHOLE)]

    def __len__(self) -> int:
        return len(self.table)

    def write(self, directory: Path) -> None:
        """Write runs.csv and runs.parquet into a study directory, each atomically."""
        from clue_ray.storage.files import atomic_write

        with atomic_write(directory / "runs.csv") as temporary:
            self.table.to_csv(temporary, index=False)
        with atomic_write(directory / "runs.parquet") as temporary:
            self.table.to_parquet(temporary, index=False)


def read_runs(path: str | Path) -> Runs:
    """Read a runs table from a CSV or Parquet file, or from a study directory.

    Raises:
        RunsError: There is no such file, it cannot be read, or it has no rows.
        StudyError: A link in the study directory leads out of it.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import pandas as pd
        >>> from clue_ray import read_runs
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "runs.csv"
        ...     pd.DataFrame({"train_flops": [1e12, 1e13], "loss": [5.1, 4.6]}).to_csv(file)
        ...     runs = read_runs(file)
        >>> len(runs)
        2
    """
    from pyarrow import ArrowException

    source = Path(path).expanduser()
    if source.is_dir():
        check_links(source)
        source = source / "runs.parquet"
    if not source.is_file():
        raise RunsError(
            f"No runs table at {source}; give a CSV or Parquet file or a study directory."
        )
    try:
        table = _read_table(source)
    except (ValueError, OSError, ArrowException) as error:
        raise RunsError(
            f"{source} cannot be read as a runs table "
            f"({reason_of(error)}); give a CSV, Parquet or JSON Lines file."
        ) from None
    if table.empty:
        raise RunsError(f"{source} has no rows; give a table of runs that have ended.")
    return Runs(_with_own_statuses(table, source))


def _read_table(source: Path) -> pd.DataFrame:
    """Read a table of any common format, packed or not."""
    import pandas as pd
    import pyarrow as pa

    from clue_ray.storage.tables import CsvText, open_table, read_parquet

    found = open_table(read_bounded(source), source.name, COLUMNS)
    if isinstance(found, bytes):
        return read_parquet(pa.BufferReader(found))
    if isinstance(found, CsvText):
        table = pd.read_csv(StringIO(found.text), sep=found.separator, skipinitialspace=True)
        return table if found.separator == "," else _with_decimal_points(table)
    return pd.DataFrame(found)


def _with_decimal_points(table: pd.DataFrame) -> pd.DataFrame:
    """Read numbers with decimal commas, which a file has whose separator is not a comma."""
    from pandas.api.types import is_numeric_dtype

    for name in table.columns:
        values = table[name].dropna()
        if not is_numeric_dtype(table[name]) and len(values):
            texts = values.astype(str)
            if texts.str.fullmatch(DECIMAL_COMMA).all():
                table[name] = table[name].str.replace(",", ".").astype(float)
    return table


def _with_own_statuses(table: pd.DataFrame, source: Path) -> pd.DataFrame:
    """Translate the statuses of other tools into ours.

    Raises:
        RunsError: a status has no meaning that is known.
    """
    column = "status" if "status" in table else _find_status_column(table)
    if column is None:
        return table
    statuses = _as_statuses(table[column])
    if (unknown := statuses.isna()).any():
        row = int(np.flatnonzero(unknown)[0])
        raise RunsError(
            f"Column {column!r} of {source} holds {table[column].iloc[row]!r} in row {row}; "
            "allowed are done (or finished, completed, succeeded), failed, diverged and missing "
            "(or running, pending): replace it, or rename the column if it is not the state of a "
            "run."
        )
    return table.assign(status=statuses)


def _find_status_column(table: pd.DataFrame) -> str | None:
    """Return the column that another tool calls State or Status; None if there is none.

    A column State may also hold a place, so all its values must be statuses.
    """
    for name in table.columns:
        called = re.sub(r"[\W_]+", "_", str(name).strip().lower())
        if called == "status":
            return str(name)
        if called in STATUS_NAMES and _as_statuses(table[name]).notna().all():
            return str(name)
    return None


def _as_statuses(column: pd.Series) -> pd.Series:
    """Return our status for each word of another tool; NaN for an unknown word."""
    words = column.map(lambda value: re.sub(r"[\s_-]+", "_", str(value).strip().lower()))
    return words.map(STATUSES)


def read_current_runs(path: str | Path, *, skip_damaged: bool = False) -> Runs:
    """Read the runs of a study as they stand, also while it runs.

    This is the only reader of plan.json and the runs' record.json files as a table; the terminal,
    the live page, the mirror of a study and the final table all use it.

    Args:
        path: A study directory; or any runs table, which is read as it is.
        skip_damaged: Treat files that cannot be read as absent, for a page that is drawn in any
            case. Otherwise a damaged file raises an error that names it.

    Returns:
        One row per planned run, with status `missing` until its record is written. The runs table
        where there is no plan.

    Raises:
        RunsError: There is neither a plan nor a runs table, or a file is damaged.
        StudyError: A record does not have the columns of `RunRecord`.
    """
    planned = _read_plan_or_nothing(Path(path)) if skip_damaged else read_plan(Path(path))
    if not planned:
        return read_runs(path)
    return join_records(Path(path), planned, skip_damaged=skip_damaged)


def join_records(
    directory: Path, planned: Iterable[Mapping[str, Any]], *, skip_damaged: bool = False
) -> Runs:
    """Join planned runs with the records that have been written for them.

    Args:
        directory: The study directory.
        planned: The columns of `RunDescription`, one mapping per run; others are ignored.
        skip_damaged: As in `read_current_runs`.
    """
    import pandas as pd

    rows = []
    for run in planned:
        file = directory / "runs" / str(run["run_id"]) / "record.json"
        # A plan also predicts steps and compute; only a record states them as facts.
        expected = {name: run[name] for name in RunDescription.model_fields if name in run}
        missing = {"status": "missing", "error": "not finished yet"}
        row = {**OPTIONAL, **expected, **missing, **_record_row(file, skip_damaged)}
        rows.append(row | {"run_id": run["run_id"]})  # whatever a copied record calls itself
    return Runs(pd.DataFrame(rows, columns=RUN_COLUMNS))


def read_plan(directory: Path) -> list[dict[str, Any]]:
    """Read the runs listed in plan.json; none where there is no such file.

    Raises:
        RunsError: The file is damaged.
    """
    from clue_ray.storage.files import read_json

    file, remedy = directory / "plan.json", "delete it, and clue-ray run writes it again"
    if not file.exists():
        return []
    try:
        runs = read_json(file, remedy)["runs"]
    except KeyError:
        raise RunsError(f"{file} is damaged (it has no runs); {remedy}.") from None
    if not isinstance(runs, list) or not all(map(_is_planned, runs)):
        raise RunsError(f"{file} is damaged (its runs lack proper run ids); {remedy}.")
    return runs


def _is_planned(run: Any) -> bool:
    """Return whether an entry of a plan is a run whose id can name its folder."""
    return isinstance(run, dict) and is_file_name(run.get("run_id"))


def read_record(file: Path) -> RunRecord | None:
    """Read a run's record; None where it has not been written.

    Raises:
        RunsError: The file is not JSON.
        StudyError: It does not have the columns of `RunRecord`.
    """
    from clue_ray.storage.files import read_json

    if not file.exists():
        return None
    remedy = "delete it, and the same command resumes from the run's last checkpoint"
    try:
        return RunRecord(**read_json(file, remedy))
    except ValidationError as error:
        wrong = error.errors()[0]
        raise StudyError(
            f"{file} is not a record ({str(wrong['loc'][0])[:80]}: {wrong['msg']}); {remedy}."
        ) from None


def _record_row(file: Path, skip_damaged: bool) -> dict[str, Any]:
    """Read a record as a row; empty where there is none."""
    if skip_damaged:  # unvalidated: a page also shows records of other versions
        return _mapping_or_nothing(file)
    record = read_record(file)
    # What an older version did not write is taken from the plan.
    return record.model_dump(exclude_unset=True) if record else {}


def _read_plan_or_nothing(directory: Path) -> list[dict[str, Any]]:
    """Read those runs of plan.json that have a run id."""
    runs = _mapping_or_nothing(directory / "plan.json").get("runs")
    listed = runs if isinstance(runs, list) else []
    return [run for run in listed if _is_planned(run)]


def _mapping_or_nothing(file: Path) -> dict[str, Any]:
    """Read a JSON mapping; empty where there is none or it cannot be read."""
    try:
        found = read_document(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
