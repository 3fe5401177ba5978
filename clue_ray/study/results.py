"""The runs table of a study as it stands, also while the study runs: sorted, filtered, watched. Imports no ray."""

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from clue_ray.errors import RunsError, nearest
from clue_ray.runs import RunRecord, Runs, read_runs
from clue_ray.study.directory import StudyDirectory, read_plan
from clue_ray.study.tables import frame_table

COLUMNS = (
    "run_id", "status", "encoder_size", "non_embedding_params", "sequence_length", "global_batch_size", "corpus_users",
    "learning_rate", "seed", "num_workers", "train_flops", "loss", "recall_at_10", "mrr", "wall_seconds",
)  # fmt: skip
HEADS = {
    "run_id": "run", "encoder_size": "encoder", "non_embedding_params": "params", "sequence_length": "events",
    "global_batch_size": "batch", "corpus_users": "users", "learning_rate": "rate", "num_workers": "workers",
    "train_flops": "FLOPs", "recall_at_10": "recall@10", "mrr": "MRR", "wall_seconds": "seconds",
}  # fmt: skip
"""What the terminal calls them, as a plan does; full names would not fit it."""
ALWAYS = ("run_id", "status", "encoder_size", "train_flops", "loss")
WATCH_SECONDS = 2.0


def current_runs(path: Path) -> Runs:
    """Read a study's runs as they have ended so far, the others as missing; or a finished table of any origin."""
    plan = path / "plan.json"
    if not plan.exists():
        return read_runs(path)
    planned = read_plan(plan)
    required = [name for name, field in RunRecord.model_fields.items() if field.is_required() and name != "status"]
    return StudyDirectory(path).read_records([{name: run[name] for name in required} for run in planned])


def select_runs(path: Path, where: str | None = None, sort: str | None = None) -> pd.DataFrame:
    """Read the rows that a condition such as "loss < 5.3 and encoder_size == 'xs'" keeps, sorted by a column.

    Raises:
        RunsError: there is no table, or it has no such column, or the condition is none.
    """
    table = current_runs(path).table
    order = sort or ("train_flops" if "train_flops" in table else table.columns[0])
    if order not in table:
        raise RunsError(
            f"--sort is {order!r}, which is no column of the runs table; {nearest(order, list(map(str, table)))}"
        )
    return filter_runs(table, where).sort_values(order, kind="stable")


def filter_runs(table: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """Keep the rows of which a condition over the columns holds."""
    if where is None:
        return table
    try:
        holds = table.eval(where, engine="python")
    except Exception as error:  # pandas raises many kinds for a condition that it cannot read
        reason = " ".join(str(error).split())
        raise RunsError(f"--where is {where!r}, which is no condition on the runs table ({reason}).") from None
    if not (isinstance(holds, pd.Series) and holds.dtype == bool):
        raise RunsError(
            f"--where is {where!r}, which is true or false of no run; write a condition such as 'loss < 5.3'."
        )
    return table[holds]


def render_runs(path: Path, table: pd.DataFrame) -> Group:
    """Lay out the columns that differ between runs, how many runs ended how, and why some failed."""
    known = [column for column in COLUMNS if column in table]
    shown = [column for column in known if column in ALWAYS or table[column].nunique() > 1] or [
        str(column) for column in table
    ]
    title, reasons = f"{path}: {len(table)} runs", []
    if "status" in table:
        title += f" ({', '.join(f'{count} {status}' for status, count in table['status'].value_counts().items())})"
        ended = table[table["status"].isin(["failed", "diverged"])].astype({"run_id": str, "status": str, "error": str})
        rows = zip(ended["status"], ended["run_id"], ended["error"], strict=True)
        reasons = [Text(f"{status} {run_id}: {error}{log_of(path, run_id)}") for status, run_id, error in rows]
    return Group(frame_table(table[shown].rename(columns=HEADS), title), *reasons)


def log_of(path: Path, run_id: str) -> str:
    """Name a run's log, where it left one: the traceback first."""
    files = [path / "runs" / run_id / name for name in ("error.txt", "log.txt")]
    return next((f" ({file})" for file in files if file.exists()), "")


def watch_runs(console: Console, read: Callable[[], Group]) -> None:
    """Show a table again every two seconds, until interrupted."""
    with Live(read(), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        try:
            while True:
                time.sleep(WATCH_SECONDS)
                live.update(read(), refresh=True)
        except KeyboardInterrupt:
            pass
