"""The tables of a report: laws, best run against baselines and chance, every run.

A table holds text with sort keys. HTML and Markdown are rendered from the same tables.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from clue_ray.report import numbers
from clue_ray.report.figures.style import distinct, law_label
from clue_ray.report.read import StudyFiles
from clue_ray.report.rivals import PARTS, list_rivals, verdict
from clue_ray.runs import chance_loss
from clue_ray.scaling.answering.analysis import Analysis
from clue_ray.spec.columns import (
    SIZE,
    Format,
    format_of,
    head_of,
    name_columns,
    noun,
    settings,
    short_label,
    with_unit,
)


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: the visible text.
        order: the sort key: a number, or the text itself.
        numeric: whether the cell holds a number.
        detail: a smaller second line.
    """

    text: str
    order: str
    numeric: bool = False
    detail: str = ""

    @property
    def in_markdown(self) -> str:
        """Text and detail on one line, with the column separator escaped."""
        line = f"{self.text}: {self.detail}" if self.detail else self.text
        return " ".join(line.split()).replace("|", "\\|")


@dataclass(frozen=True)
class Table:
    """Heads and rows of text.

    Attributes:
        heads: the column heads.
        rows: the cells.
        marked: index of the highlighted row.
        lost: indices of the rows of runs without a loss.
        note: a sentence below the table.
        look: the style in a page: `laws` or `sortable`.
        folded: the title of a table that a page collapses.
        columns: the column of the runs table behind each head, where the rows are runs.
        runs: the run id of each row, where the rows are runs.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    marked: int | None = None
    lost: frozenset[int] = frozenset()
    note: str = ""
    look: str = ""
    folded: str = ""
    columns: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()

    @property
    def numeric_columns(self) -> tuple[bool, ...]:
        """Which columns hold only numbers, and so are aligned right."""
        columns = zip(*self.rows, strict=True)
        return tuple(all(cell.numeric for cell in column) for column in columns) or (False,) * len(
            self.heads
        )


FORMATS: dict[Format, Callable[[Any], str]] = {
    "text": str,
    "count": numbers.count,
    "general": "{:g}".format,
    "significant": numbers.significant,
    "loss": lambda value: f"{value:.3f}",
    "flop": numbers.flop,
    "seconds": numbers.seconds,
    "rate": lambda value: numbers.count(float(f"{value:.2e}")),
}
"""How the values of a column are written, by the name of its format."""

ALWAYS = ("status", "encoder_size", "sequence_length", "train_flops", "loss", "recall_at_10", "mrr")
"""Columns shown even where all runs agree."""

MEASURED = (
    "train_flops",
    "loss_at_training_temperature",
    "recall_at_10",
    "mrr",
    "train_loss",
    "steps",
    "train_tokens",
    "wall_seconds",
    "tokens_per_second",
    "device",
    "run_id",
    "error",
)
"""Columns of the table of runs that follow the settings, where they hold anything."""


def text(value: str) -> Cell:
    """Return a cell of text."""
    return Cell(value, value.lower())


def number(value: Any, column: str = "") -> Cell:
    """Return a cell of a number in the format of its column; an absent number sorts last."""
    if numbers.is_absent(value):
        return Cell(numbers.ABSENT, "inf", numeric=True)
    return Cell(FORMATS[format_of(column)](value), repr(float(value)), numeric=True)


def written(shown: str) -> Cell:
    """Return a cell of a number that is already formatted."""
    return Cell(shown, shown, numeric=True)


def law_table(analysis: Analysis) -> Table:
    """List the fitted laws with their errors; the preferred law is marked."""
    rows = analysis.law_table()
    heads = (
        "law",
        with_unit("backtest error", "loss"),
        "inside 95% interval",
        with_unit("held-out error", "loss"),
        "exponent [95%]",
        f"{noun('loss')} at 10\N{MULTIPLICATION SIGN} {noun('train_flops')} [95%]",
        "BIC weight",
    )
    weights = dict(zip(analysis.panels.bic["law"], analysis.panels.bic["weight"], strict=True))
    marked = next((i for i, row in enumerate(rows) if row["law"] == analysis.preferred), None)
    shown = (_law_row(row, row["law"] == analysis.preferred) for row in rows)
    weighed = (written(numbers.percent(weights.get(row["law"]))) for row in rows)
    cells = tuple((*row, weight) for row, weight in zip(shown, weighed, strict=True))
    return Table(heads, cells, marked, look="laws")


def _law_row(row: dict[str, Any], preferred: bool) -> tuple[Cell, ...]:
    return (
        Cell(
            law_label(row["law"]) + (" (preferred)" if preferred else ""),
            row["law"],
            detail=row["formula"],
        ),
        _error(
            numbers.significant(row["backtest_error_nats"], 2),
            numbers.percent(row["backtest_error"]),
        ),
        written(numbers.percent(row["coverage"])),
        _error(
            numbers.signed(row["held_out_error_nats"]),
            numbers.signed_percent(row["held_out_error"]),
        ),
        written(_exponent(row)),
        written(
            numbers.interval(row["loss_at_10x"], row["loss_at_10x_low"], row["loss_at_10x_high"])
        ),
    )


def _error(nats: str, share: str) -> Cell:
    """Return a cell of an error in nats, with its share of the loss as detail.

    The share comes second because it looks small for a loss near chance.
    """
    return Cell(nats, nats, numeric=True, detail="" if share == numbers.ABSENT else share)


def _exponent(row: dict[str, Any]) -> str:
    """Format an exponent; without bounds on either side it is not identified."""
    if row["exponent"] is not None and row["exponent_low"] is None and row["exponent_high"] is None:
        return "not identified"
    return numbers.interval(row["exponent"], row["exponent_low"], row["exponent_high"])


def comparison(files: StudyFiles, candidates: int) -> Table | None:
    """Compare the best run with its rivals and with chance; None if no run is done.

    Chance among K candidates has a loss of ln K, a recall@10 of 10/K and a mean reciprocal rank of
    H(K)/K, where H is the harmonic number.
    """
    if files.done.empty:
        return None
    best = files.done.sort_values("loss", kind="stable").iloc[0]
    harmonic = sum(1 / rank for rank in range(1, candidates + 1))
    chance = {
        "loss": chance_loss(candidates),
        "recall_at_10": min(1.0, 10 / candidates),
        "mrr": harmonic / candidates,
    }
    entries: list[tuple[str, Any]] = [(f"best run: {describe(best)}", best)]
    entries += [(str(rival["name"]), rival) for rival in list_rivals(files)]
    entries.append((f"chance among {candidates:,}", chance))
    columns = ("loss", "recall_at_10", "mrr")
    rows = tuple((text(name), *(number(row.get(c), c) for c in columns)) for name, row in entries)
    heads = ("", "loss, nats", "recall@10", "MRR")
    return Table(heads, rows, 0, note=verdict(files, candidates))


def run_table(table: pd.DataFrame) -> Table:
    """List every run, the best loss first; columns with one value become a note below."""
    ordered = table.assign(_lost=table["loss"].isna()).sort_values(
        ["_lost", "loss", "status"], kind="stable"
    )
    shown = ("status", "loss", *settings(), *MEASURED)
    present = [column for column in shown if _has_values(table[column])]
    shared = [c for c in present if c not in ALWAYS and _all_equal(table[c])]
    columns = [column for column in present if column not in shared]
    rank = {size: f"{place:06d}" for place, size in enumerate(distinct(table, "encoder_size"))}
    rows = tuple(tuple(_cell(run[c], c, rank) for c in columns) for _, run in ordered.iterrows())
    same = ", ".join(f"{short_label(c)} {_cell(table[c].iloc[0], c, rank).text}" for c in shared)
    lost = frozenset(i for i, missing in enumerate(ordered["_lost"]) if missing)
    note = f"The same for all runs: {same}." if same else ""
    heads = tuple("loss" if column == "loss" else short_label(column) for column in columns)
    names = tuple(ordered["run_id"].astype(str))
    return Table(
        heads, rows, lost=lost, note=note, look="sortable", columns=tuple(columns), runs=names
    )


def describe(run: Any) -> str:
    """Describe a run by its known settings: size m, length 16, users 8,000, batch 64.

    A run without known settings is described by its id.
    """
    known = [column for column in name_columns() if not numbers.is_absent(run.get(column))]
    words = [f"{head_of(column)} {_setting(run[column], column)}" for column in known]
    if "encoder_size" not in known:  # a run of another tool has no name of its size
        scale = [c for c in (SIZE, "train_tokens") if not numbers.is_absent(run.get(c))]
        words = [*(f"{head_of(c)} {numbers.compact(run[c])}" for c in scale), *words]
    if (part := run.get("encoder_parts")) in PARTS:
        words.append(f"{part} alone")
    return ", ".join(words) or str(run["run_id"])


def _setting(value: Any, column: str) -> str:
    return numbers.shortened(FORMATS[format_of(column)](value))


def _cell(value: Any, column: str, rank: dict[Any, str]) -> Cell:
    """Return a cell of the table of runs; `rank` orders encoder sizes by their parameters."""
    if isinstance(value, str):
        return Cell(value, rank[value]) if column == "encoder_size" else text(value)
    return number(value, column)


def _all_equal(values: pd.Series) -> bool:
    return len(values) > 1 and values.nunique(dropna=False) == 1


def _has_values(values: pd.Series) -> bool:
    return bool((values.notna() & (values.astype(str) != "")).any())
