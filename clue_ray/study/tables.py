"""Tables on the terminal: plans, runs, laws, and those of the report. Imports neither ray nor torch."""

from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from clue_ray.study.plan import Plan

PLANNED = ("params", "tokens", "FLOPs", "minutes")
"""Columns that a plan always shows."""


def law_table(fits: dict[str, Any]) -> Table:
    """Lay out the fitted laws, the one that speaks for the study first; errors in nats, signed where held out."""
    table = Table(title="Held-out loss against training compute", title_justify="left")
    for column in ("law", "fitted", "missed in backtest", "missed held out", "exponent [95 %]", "loss at 10x [95 %]"):
        table.add_column(column)
    for row in fits["laws"]:
        best = " *" if row["law"] == fits["preferred"] else ""
        table.add_row(
            row["law"] + best,
            row["formula"],
            nats(row["backtest_error_nats"], ".3f"),
            nats(row["held_out_error_nats"], "+.3f"),
            with_interval(row, "exponent"),
            with_interval(row, "loss_at_10x"),
        )
    table.caption = "* speaks for the study"
    return table


def nats(value: float | None, form: str) -> str:
    """Write an error in nats, or nothing where there is none."""
    return "" if value is None else f"{value:{form}} nats"


def with_interval(row: dict[str, Any], name: str) -> str:
    """Write a value with its interval; nothing where the law has no such number, no value where the runs show none."""
    value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return ""
    if low is None and high is None:
        return "not identified"
    ends = ["unbounded" if end is None else f"{end:.3g}" for end in (low, high)]
    return f"{value:.3g} [{ends[0]}, {ends[1]}]"


def print_plan(console: Console, planned: "Plan") -> None:
    """Print a plan as a table, with what it costs and its warnings."""
    rows = [
        {
            "encoder": r.known["encoder_size"],
            "params": r.known["non_embedding_params"],
            "events": r.known["sequence_length"],
            "batch": r.known["global_batch_size"],
            "users": r.known["corpus_users"],
            "workers": r.known["num_workers"],
            "seed": r.known["seed"],
            "steps": r.steps,
            "tokens": float(r.train_tokens),
            "FLOPs": r.train_flops,
            "minutes": r.expected_seconds / 60,
            "state": "finished" if r.finished else "to run",
        }
        for r in planned.runs
    ]
    frame = pd.DataFrame(rows)
    same = [column for column in frame if frame[column].nunique() == 1 and column not in PLANNED]
    title = f"{planned.study}: {len(planned.runs)} runs, {len(planned.pending)} to train"
    console.print(frame_table(frame.drop(columns=same), title))
    if same:
        console.print("The same for all: " + ", ".join(f"{c} {short(frame[c].iloc[0])}" for c in same), highlight=False)
    console.print(
        f"About {planned.expected_minutes:.1f} minutes, {planned.concurrency} runs at a time, "
        f"{planned.disk_bytes / 1e6:,.0f} MB of checkpoints.",
        highlight=False,
    )
    for warning in planned.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)


def frame_table(frame: pd.DataFrame, title: str) -> Table:
    """Set a frame as a table, numbers right-aligned and short."""
    table = Table(title=title, title_justify="left")
    for column in frame.columns:
        table.add_column(column, justify="right" if frame[column].dtype.kind in "if" else "left", no_wrap=True)
    for row in frame.itertuples(index=False):
        table.add_row(*(short(value) for value in row))
    return table


def short(value: Any) -> str:
    """Write a cell for reading: counts with separators, the rest to four digits."""
    if isinstance(value, float):
        return "" if value != value else (f"{value:.3g}" if value >= 1e5 or value < 0.01 else f"{value:.4g}")
    return f"{value:,}" if isinstance(value, int) else str(value)


def report_table(title: str, table: Any) -> Table:
    """Set a table of the report for the terminal; its note is left to the caller."""
    shown = Table(title=title, title_justify="left")
    for head, numeric in zip(table.heads, table.numeric_columns, strict=True):
        shown.add_column(Text(head), justify="right" if numeric else "left")
    for row in table.rows:
        shown.add_row(*(Text(cell.text) for cell in row))
    return shown
