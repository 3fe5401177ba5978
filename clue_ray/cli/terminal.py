"""The runs table of a study as it stands, also while the study runs: sorted, filtered, watched.
Imports no ray.

A study on the terminal: a live view where there is one, a line a change where there is not.
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
from clue_ray.study.planned import Plan
from clue_ray.study.progress import Snapshot

MEASURED = ("train_flops", "loss", "recall_at_10", "mrr", "wall_seconds")
"""Columns that follow the settings of a run."""
ALWAYS = ("run_id", "status", "encoder_size", "train_flops", "loss")
WATCH_SECONDS = 2.0


def select_runs(path: Path, where: str | None = None, sort: str | None = None) -> pd.DataFrame:
    """Read the rows that a condition such as "loss < 5.3 and encoder_size == 'xs'" keeps, sorted by
    a column.

    Raises:
        RunsError: there is no table, or it has no such column, or the condition is none.
    """
    table = read_current_runs(path).table
    order = sort or ("train_flops" if "train_flops" in table else table.columns[0])
    if order not in table:
        raise RunsError(
            f"--sort is {order!r}, which is no column of the runs table; "
            f"{nearest(order, list(map(str, table)))}"
        )
    return _filter_runs(table, where).sort_values(order, kind="stable")


def _filter_runs(table: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """Keep the rows of which a condition over the columns holds."""
    if where is None:
        return table
    try:
        holds = table.eval(where, engine="python")
    except Exception as error:  # pandas raises many kinds for a condition that it cannot read
        reason = " ".join(str(error).split())
        raise RunsError(
            f"--where is {where!r}, which is no condition on the runs table ({reason})."
        ) from None
    if not (isinstance(holds, pd.Series) and holds.dtype == bool):
        raise RunsError(
            f"--where is {where!r}, which is true or false of no run; write a condition such as "
            f"'loss < 5.3'."
        )
    return table[holds]


def render_runs(path: Path, table: pd.DataFrame) -> Group:
    """Lay out the columns that differ between runs, how many runs ended how, and why some
    failed.
    """
    known = [c for c in ("run_id", "status", *settings(), *MEASURED) if c in table]
    shown = [column for column in known if column in ALWAYS or table[column].nunique() > 1] or [
        str(column) for column in table
    ]
    title, reasons = f"{path}: {len(table)} runs", []
    if "status" in table:
        title += f" ({', '.join(f'{count} {status}' for status, count in table['status'].value_counts().items())})"
        ended = table[table["status"].isin(["failed", "diverged"])].astype(
            {"run_id": str, "status": str, "error": str}
        )
        rows = zip(ended["status"], ended["run_id"], ended["error"], strict=True)
        reasons = [
            Text(f"{status} {run_id}: {error}{_log_of(path, run_id)}")
            for status, run_id, error in rows
        ]
    return Group(frame_table(table[shown].rename(columns=head_of), title), *reasons)


def _log_of(path: Path, run_id: str) -> str:
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


QUIET_SECONDS = 10.0
"""Without a terminal, the longest silence while runs are under way."""


class StudyView:
    """Shows snapshots of a study as they come."""

    def __init__(self, console: Console, quiet: bool = False):
        self.console = console
        self.quiet = quiet
        self.plan: Plan | None = None
        self.last_line = 0.0
        self.live = Live(console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if not self.quiet:
            self.console.print(
                "Starting Ray, preparing the corpus, timing a few steps of each encoder ..."
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
            f"{len(plan.pending)} to train, "
            f"{plan.concurrency} at a time, about {plan.expected_minutes:.1f} minutes.",
            highlight=False,
        )
        for note in plan.notes:
            self.console.print(note, highlight=False, markup=False, soft_wrap=True)
        for warning in plan.warnings:
            self.console.print(
                f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True
            )


def one_line(snapshot: Snapshot) -> str:
    """Say what runs now, how much is done, and what is left."""
    running = "; ".join(f"{r.label} {r.share:.0%}" for r in snapshot.running) or "starting workers"
    return (
        f"[{snapshot.finished}/{len(snapshot.plan.runs)}] now: {running} | {_time_left(snapshot)}"
    )


def _time_left(snapshot: Snapshot) -> str:
    """Write the expected time left."""
    minutes, seconds = divmod(round(snapshot.seconds_left), 60)
    return f"{minutes}:{seconds:02d} left"


def render(snapshot: Snapshot) -> Group:
    """Draw the runs under way, each with a bar, and the study's own line."""
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
    counts = f"{snapshot.finished} of {len(snapshot.plan.runs)} runs ended{failed}, {len(snapshot.running)} running"
    head = f"{snapshot.plan.study}: {counts}, {_time_left(snapshot)}"
    return Group(Text(head, style="bold"), table)
