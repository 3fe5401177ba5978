"""A study on the terminal: a live view where there is one, a line a change where there is not."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from clue_ray.study.plan import Plan
from clue_ray.study.progress import Snapshot

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
            self.console.print("Starting Ray, preparing the corpus, timing a few steps of each encoder ...")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
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
            self.console.print(f"[{snapshot.finished}/{len(snapshot.plan.runs)}] {line}", highlight=False, markup=False)
        if self.console.is_terminal:
            self.live.update(render(snapshot))
        elif time.monotonic() - self.last_line > QUIET_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(one_line(snapshot), highlight=False, soft_wrap=True, markup=False)

    def _print_plan(self, snapshot: Snapshot) -> None:
        plan = self.plan = snapshot.plan
        self.console.print(
            f"{plan.study}: {len(plan.runs)} runs, {snapshot.finished} finished before, {len(plan.pending)} to train, "
            f"{plan.concurrency} at a time, about {plan.expected_minutes:.1f} minutes.",
            highlight=False,
        )
        for note in plan.notes:
            self.console.print(note, highlight=False, markup=False, soft_wrap=True)
        for warning in plan.warnings:
            self.console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)


def one_line(snapshot: Snapshot) -> str:
    """Say what runs now, how much is done, and what is left."""
    running = "; ".join(f"{r.label} {r.share:.0%}" for r in snapshot.running) or "starting workers"
    return f"[{snapshot.finished}/{len(snapshot.plan.runs)}] now: {running} | {time_left(snapshot)}"


def time_left(snapshot: Snapshot) -> str:
    """Write the expected time left."""
    minutes, seconds = divmod(round(snapshot.seconds_left), 60)
    return f"{minutes}:{seconds:02d} left"


def render(snapshot: Snapshot) -> Group:
    """Draw the runs under way, each with a bar, and the study's own line."""
    table = Table.grid(padding=(0, 2))
    for run in snapshot.running:
        loss = f"loss {run.loss:.3f}" if run.loss else ""
        table.add_row(run.label, ProgressBar(total=1.0, completed=run.share, width=24), f"{run.share:4.0%}", loss)
    failed = f", {snapshot.failed} of them failed" if snapshot.failed else ""
    counts = f"{snapshot.finished} of {len(snapshot.plan.runs)} runs ended{failed}, {len(snapshot.running)} running"
    head = f"{snapshot.plan.study}: {counts}, {time_left(snapshot)}"
    return Group(Text(head, style="bold"), table)
