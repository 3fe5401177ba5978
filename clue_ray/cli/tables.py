"""Tables for the terminal: plans, runs, laws, downstream tasks, and the report's own tables.

Imports neither ray nor torch, so that commands about finished studies start at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clue_ray.report.numbers import plain
from clue_ray.runs import RunRecord
from clue_ray.scaling.downstream import MEASURES, compare_methods, spell
from clue_ray.spec.columns import SIZE, head_of, in_unit, settings, short_label

if TYPE_CHECKING:
    from clue_ray.scaling.fitting.result import Fit
    from clue_ray.study.planned import Plan, PlannedRun


PLANNED = (SIZE, "train_tokens", "train_flops", "minutes")
"""Columns that a plan always shows."""


def law_table(fits: dict[str, Any]) -> Table:
    """Return a table of the fitted laws, with their errors in nats; the preferred one is marked."""
    table = Table(title=_title(), title_justify="left")
    for column in (
        "law",
        "fitted",
        "backtest error",
        "held-out error",
        "exponent [95 %]",
        "loss at 10x [95 %]",
    ):
        table.add_column(column)
    for row in fits["laws"]:
        best = " *" if row["law"] == fits["preferred"] else ""
        table.add_row(
            row["law"] + best,
            row["formula"],
            _nats(row["backtest_error_nats"], ".3f"),
            _nats(row["held_out_error_nats"], "+.3f"),
            _with_interval(row, "exponent"),
            _with_interval(row, "loss_at_10x"),
        )
    table.caption = "* preferred law"
    return table


def fit_table(fitted: "Fit") -> Table:
    """Return a table of a law's parameters with their 95 % intervals."""
    table = Table(
        title=f"{fitted.law.name}: {fitted.law.formula}  ({fitted.num_runs} runs)",
        title_justify="left",
    )
    for column in ("parameter", "value", "95 % from", "to"):
        table.add_column(column, justify="left" if column == "parameter" else "right")
    for name, value in fitted.parameters.items():
        table.add_row(name, *(f"{number:.6g}" for number in (value, *fitted.interval(name))))
    return table


def print_laws(console: Console, fits: dict[str, Any], page: Path) -> None:
    """Print the fitted laws, the answer and the path of the report."""
    if "error" in fits:
        reason = str(fits["error"]).removeprefix("No law could be fitted: ")
        console.print(f"No law was fitted: {reason}", highlight=False)
    else:
        console.print(law_table(fits))
        console.print(fits["answer"], highlight=False)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)


def _title() -> str:
    names = [short_label(name) for name in ("loss", "train_flops")]
    return f"{names[0][:1].upper()}{names[0][1:]} against {names[1]}"


def _nats(value: float | None, form: str) -> str:
    """Format an error in nats, or in the unit of another tool's loss; empty where there is none."""
    return "" if value is None else f"{value:{form}}{in_unit('loss')}"


def _with_interval(row: dict[str, Any], name: str) -> str:
    """Format a value with its interval; empty where the law has no such value."""
    value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return ""
    if low is None and high is None:  # the runs do not determine it
        return "not identified"
    ends = ["unbounded" if end is None else f"{end:.3g}" for end in (low, high)]
    return f"{value:.3g} [{ends[0]}, {ends[1]}]"


def print_plan(console: Console, planned: "Plan") -> None:
    """Print a plan as a table, with its cost, notes and warnings."""
    frame = pd.DataFrame([_plan_row(r) for r in planned.runs])
    same = [column for column in frame if frame[column].nunique() == 1 and column not in PLANNED]
    title = f"{planned.study}: {len(planned.runs)} runs, {len(planned.pending)} to train"
    console.print(frame_table(frame.drop(columns=same).rename(columns=head_of), title))
    if same:
        values = ", ".join(f"{head_of(str(c))} {plain(frame[c].iloc[0])}" for c in same)
        console.print(f"The same for all runs: {values}", highlight=False)
    console.print(_cost_of(planned), highlight=False)
    for note in planned.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    for warning in planned.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)


def _plan_row(planned: "PlannedRun") -> dict[str, Any]:
    """Return one row of the table of a plan, by column."""
    return {
        **{column: getattr(planned.description, column) for column in settings()},
        "steps": planned.steps,
        "train_tokens": float(planned.train_tokens),
        "train_flops": planned.train_flops,
        "minutes": planned.expected_seconds / 60,
        "state": planned.status if planned.finished else "to run",
    }


def _cost_of(planned: "Plan") -> str:
    """Describe in two lines what a plan costs and in which order its runs train."""
    several = [r for r in planned.pending if r.workers > 1]
    single = len(planned.pending) - len(several)
    placed = []
    if several:
        most = max(r.workers for r in several)
        placed.append(
            f"{_counted(len(several), 'run')} of up to {most} workers through Ray Train, "
            f"{planned.multi_worker_runs} concurrently"
        )
    if single:
        placed.append(
            f"{_counted(single, 'run')} of one worker, {planned.concurrency} concurrently, the "
            f"longest first"
        )
    gpus, cores = planned.gpu_hours, planned.core_hours
    spent = f"{gpus:.3g} GPU-hours" if gpus else f"{cores:.3g} core-hours"
    return (
        f"About {planned.expected_minutes:.1f} minutes, {spent}, {planned.disk_bytes / 1e6:,.0f} "
        f"MB of checkpoints.\n"
        f"{'; then '.join(placed) or 'Nothing to train'}."
    )


def _counted(number: int, noun: str) -> str:
    """Format a number with its noun, in the plural where needed."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def record_table(record: RunRecord) -> Table:
    """Return a table of the values in a run's record, without those it never reached."""
    table = Table(
        title=f"Run {record.run_id}: {record.status}", title_justify="left", show_header=False
    )
    for name, value in record.model_dump(exclude={"run_id", "status", "study"}).items():
        if value not in (None, ""):
            table.add_row(name.replace("_", " "), Text(plain(value)))
    return table


def frame_table(frame: pd.DataFrame, title: str) -> Table:
    """Return a frame as a table with short, right-aligned numbers.

    On a narrow terminal, cells are folded and never cut.
    """
    table = Table(title=title, title_justify="left")
    for column in frame.columns:
        numeric = frame[column].dtype.kind in "if"
        table.add_column(str(column), justify="right" if numeric else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(plain(value) for value in row))
    return table


def report_table(title: str, table: Any) -> Table:
    """Return one of the report's tables for the terminal, without its note."""
    shown = Table(title=title, title_justify="left")
    for head, numeric in zip(table.heads, table.numeric_columns, strict=True):
        shown.add_column(Text(head), justify="right" if numeric else "left")
    for row in table.rows:
        shown.add_row(*(Text(cell.text) for cell in row))
    return shown


def task_table(result: dict[str, Any]) -> Table:
    """Return a table of methods, their measures with intervals, and the encoder's lead."""
    shown = [name for name in MEASURES if name in result["methods"][0]]
    users = result["users"]
    table = Table(
        title=f"{result['task']}: encoder {result['run_id']}, {users['test']:,} test users"
    )
    table.add_column("method")
    for name in shown:
        table.add_column(f"{MEASURES[name]} [95 %]", justify="right")
    table.add_column(f"encoder's lead in {MEASURES[shown[0]]} [95 %]", justify="right")
    for row in result["methods"]:
        lead = row.get(f"{shown[0]}_lead")
        table.add_row(
            row["method"], *(spell(row[name]) for name in shown), spell(lead, "+") if lead else ""
        )
    return table


def task_words(result: dict[str, Any]) -> str:
    """Describe which methods the encoder beats, how many users were scored and left out."""
    users = ", ".join(f"{count:,} {part}" for part, count in result["users"].items())
    lines = [compare_methods(result), f"Users: {users}."]
    lines += [
        f"Left out, {reason}: {count:,} users." for reason, count in result["left_out"].items()
    ]
    if result["left_out"]:
        lines.append(
            f"They are listed in {result['left_out_list']}, in the folder of the run or its study."
        )
    return "\n".join(lines)
