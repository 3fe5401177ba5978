"""The runs table: one tidy row a run, the waist between training and everything fitted or drawn
afterwards.

A table made here or elsewhere (CSV, Parquet) is read into `Runs`; failed, diverged and missing runs
are rows too.
"""

import math
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict

from clue_ray.errors import RunsError
from clue_ray.spec.columns import COLUMNS
from clue_ray.storage.files import atomic_write

Status = Literal["done", "failed", "diverged", "missing"]


class RunRecord(BaseModel):
    """One row of the runs table; numbers a run never reached are None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    status: Status
    error: str = ""
    study: str
    corpus_digest: str
    encoder_size: str
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
    steps: int | None = None
    users_seen: int | None = None
    train_tokens: int | None = None
    train_flops: float | None = None
    executed_flops: float | None = None
    loss: float | None = None
    loss_candidates: int
    recall_at_10: float | None = None
    mrr: float | None = None
    train_loss: float | None = None
    wall_seconds: float | None = None
    tokens_per_second: float | None = None
    num_workers: int
    device: str
    started_at: str = ""
    clue_ray_version: str


RUN_COLUMNS = [name for name in COLUMNS if name in RunRecord.model_fields]
"""The columns of the runs table, in order."""
SCORES = "transfer_"
"""How further columns begin that hold runs' scores on downstream tasks."""


def chance_loss(candidates: int) -> float:
    """Return the loss of guessing among `candidates`: ln(candidates), in nats."""
    return math.log(candidates)


class Runs:
    """A runs table with its two everyday views.

    Attributes:
        table: every run, one row each, failed ones included.
    """

    def __init__(self, table: pd.DataFrame):
        self.table = table.reset_index(drop=True)

    @classmethod
    def from_records(cls, records: list[RunRecord]) -> "Runs":
        """Build the table from records, in the contract's column order."""
        return cls(pd.DataFrame([record.model_dump() for record in records], columns=RUN_COLUMNS))

    @property
    def done(self) -> pd.DataFrame:
        """Runs that finished with a loss; the only ones a law may be fitted to."""
        table = self.table
        return table[table["status"] == "done"] if "status" in table else table

    def __len__(self) -> int:
        return len(self.table)

    def write(self, directory: Path) -> None:
        """Write runs.csv and runs.parquet into a study directory, each by rename."""
        with atomic_write(directory / "runs.csv") as temporary:
            self.table.to_csv(temporary, index=False)
        with atomic_write(directory / "runs.parquet") as temporary:
            self.table.to_parquet(temporary, index=False)


def read_runs(path: str | Path) -> Runs:
    """Read a runs table from a CSV or Parquet file, or from a study directory."""
    source = Path(path)
    if source.is_dir():
        source = source / "runs.parquet"
    if not source.is_file():
        raise RunsError(
            f"No runs table at {source}; give a CSV or Parquet file or a study directory."
        )
    try:
        table = pd.read_parquet(source) if source.suffix == ".parquet" else pd.read_csv(source)
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise RunsError(
            f"{source} cannot be read as a runs table ({error}); give a CSV or Parquet file."
        ) from None
    if table.empty:
        raise RunsError(f"{source} holds no runs; run the study first.")
    return Runs(table)
