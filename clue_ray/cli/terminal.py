"""Studies on the terminal: the runs table as it stands, and the progress of a running study.

On a terminal, progress is a live view. Elsewhere, as in a log file, it is lines of text.
"""

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pandas as pd
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from clue_ray.cli.tables import frame_table
from clue_ray.errors import RunsError, nearest
from clue_ray.runs import read_current_runs
from clue_ray.spec.columns import head_of, settings
from clue_ray.spec.condition import evaluate_condition
from clue_ray.storage.links import check_links
from clue_ray.study.planned import Plan
from clue_ray.study.progress import Snapshot

MEASURED = ("train_flops", "loss", "recall_at_10", "mrr", "wall_seconds")
"""Columns that follow the settings of a run."""
ALWAYS = ("run_id", "status", "encoder_size", "train_flops", "loss")
"""Columns that are shown even if all runs agree."""
WATCH_SECONDS = 2.0
QUIET_SECONDS = 10.0
"""Pause between two lines of progress where there is no terminal."""


def select_runs(path: Path, where: str | None = None, sort: str | None = None) -> pd.DataFrame:
    """Read the runs that meet a condition, sorted by a column.

    Args:
        where: A condition on the columns, such as "loss < 5.3 and encoder_size == 'xs'".
        sort: A column; train_flops where it is left out and the table has it.

    Raises:
        RunsError: There is no table, it has no such column, or the condition cannot be read.
        StudyError: A link in the study directory leads out of it.
    """
    check_links(path)
    table = read_current_runs(path).table
    order = sort or ("train_flops" if "train_flops" in table else table.columns[0])
    if order not in table:
        raise RunsError(
            f"--sort is {order!r}, which is not a column of the runs table; "
            f"{nearest(order, list(map(str, table)))}"
        )
    return _filter_runs(table, where).sort_values(order, kind="stable")


def _filter_runs(table: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """Keep the rows that meet a condition."""
    if where is None:
        return table
    try:
        holds = evaluate_condition(table, where)
    except Exception as error:  # pandas raises many types for a condition that it cannot read
        reason = " ".join(str(error).split())
        raise RunsError(
            f"--where is {where!r}, which is not a condition on the runs table ({reason})."
        ) from None
    if not (isinstance(holds, pd.Series) and holds.dtype == bool):
        raise RunsError(
            f"--where is {where!r}, which is neither true nor false for a run; write a condition "
            f"such as 'loss < 5.3'."
        )
    return table[holds]


def render_runs(path: Path, table: pd.DataFrame) -> Group:
    """Return a table of the columns that differ between runs, and why some runs failed."""
    known = [c for c in ("run_id", "status", *settings(), *MEASURED) if c in table]
    shown = [column for column in known if column in ALWAYS or table[column].nunique() > 1]
    shown = shown or [str(column) for column in table]  # a table made elsewhere
    title, failures = f"{path}: {len(table)} runs", []
    if "status" in table:
        counts = table["status"].value_counts().items()
        title += f" ({', '.join(f'{count} {status}' for status, count in counts)})"
        failures = _failures(path, table)
    return Group(frame_table(table[shown].rename(columns=head_of), title), *failures)


def _failures(path: Path, table: pd.DataFrame) -> list[Text]:
    """List the runs that failed or diverged, each with its reason and its log."""
    ended = table[table["status"].isin(["failed", "diverged"])]
    ended = ended.reindex(columns=["run_id", "status", "error"]).astype(object).fillna("")
    rows = zip(ended["status"], ended["run_id"], ended["error"], strict=True)
    return [
        Text(f"{status} {run_id}: {error}{_log_of(path, run_id)}") for status, run_id, error in rows
    ]


def _log_of(path: Path, run_id: str) -> str:
    """Return the path of a run's traceback, or of its log, in brackets; empty where it has none."""
    files = [path / "runs" / run_id / name for name in ("error.txt", "log.txt")]
    return next((f" ({file})" for file in files if file.exists()), "")


def watch_runs(console: Console, read: Callable[[], Group]) -> None:
    """Show a table and refresh it every two seconds until Ctrl-C."""
    with Live(read(), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        try:
            while True:
                time.sleep(WATCH_SECONDS)
                live.update(read(), refresh=True)
        except KeyboardInterrupt:
            pass


class StudyView:
    """Shows the progress of a study: call `update` with each snapshot."""

    def __init__(self, console: Console, quiet: bool = False):
        self.console = console
        self.quiet = quiet
        self.plan: Plan | None = None
        self.last_line = 0.0
        self.live = Live(console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if not self.quiet:
            self.console.print(
                "Starting Ray, preparing the corpus and timing a few steps of each encoder ..."
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()

    def update(self, snapshot: Snapshot) -> None:
        """Show one snapshot."""
        if self.quiet:
            return
        if self.plan is not snapshot.plan:
            self._print_plan(snapshot)
            if self.console.is_terminal:
                self.live.start()
        for line in snapshot.ended:
            self.console.print(
                f"[{snapshot.finished}/{len(snapshot.plan.runs)}] {line}",
                highlight=False,
                markup=False,
            )
        if self.console.is_terminal:
            self.live.update(render(snapshot))
        elif time.monotonic() - self.last_line > QUIET_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(one_line(snapshot), highlight=False, soft_wrap=True, markup=False)

    def _print_plan(self, snapshot: Snapshot) -> None:
        plan = self.plan = snapshot.plan
        self.console.print(
            f"{plan.study}: {len(plan.runs)} runs, {snapshot.finished} finished before, "
            f"{len(plan.pending)} to train, {plan.concurrency} concurrently, about "
            f"{plan.expected_minutes:.1f} minutes.",
            highlight=False,
        )
        for note in plan.notes:
            self.console.print(note, highlight=False, markup=False, soft_wrap=True)
        for warning in plan.warnings:
            self.console.print(
                f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True
            )


def one_line(snapshot: Snapshot) -> str:
    """Return one line with the runs in training, their shares and the time left."""
    running = "; ".join(f"{r.label}: {r.share:.0%}" for r in snapshot.running) or "starting workers"
    return (
        f"[{snapshot.finished}/{len(snapshot.plan.runs)}] now: {running} | {_time_left(snapshot)}"
    )


def _time_left(snapshot: Snapshot) -> str:
    """Format the expected time left."""
    minutes, seconds = divmod(round(snapshot.seconds_left), 60)
    return f"{minutes}:{seconds:02d} left"


def render(snapshot: Snapshot) -> Group:
    """Return the live view: a line for the study, and a progress bar per run in training."""
    table = Table.grid(padding=(0, 2))
    for run in snapshot.running:
        loss = f"loss {run.loss:.3f}" if run.loss else ""
        table.add_row(
            run.label,
            ProgressBar(total=1.0, completed=run.share, width=24),
            f"{run.share:4.0%}",
            loss,
        )
    failed = f", {snapshot.failed} of them failed" if snapshot.failed else ""
    head = (
        f"{snapshot.plan.study}: {snapshot.finished} of {len(snapshot.plan.runs)} runs ended"
        f"{failed}, {len(snapshot.running)} running, {_time_left(snapshot)}"
    )
    return Group(Text(head, style="bold"), table)
