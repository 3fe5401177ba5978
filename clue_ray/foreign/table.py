"""From the runs of another tool to a runs table that every part of the package can read.

The tool's columns stay as they are; next to them stand ours, filled from them. What was chosen, and
what was left out, is said in notes.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clue_ray.errors import RunsError, reason_of
from clue_ray.foreign.names import (
    MANY,
    PER_PARAMETER_AND_TOKEN,
    SETTINGS,
    Quantity,
    all_of,
    find_x,
    find_y,
    first_of,
)
from clue_ray.foreign.read import STUDY, read_any
from clue_ray.runs import Runs
from clue_ray.spec.columns import COLUMNS
from clue_ray.spec.condition import evaluate_condition, is_condition

X, Y = "train_flops", "loss"
UNUSABLE = "that is not a positive finite number"


@dataclass(frozen=True)
class ImportedRuns:
    """Runs of another tool.

    Attributes:
        runs: the table; x is in its column `train_flops` and y in `loss`, whatever they are.
        x, y: the columns that were taken, with what to call them.
        kind: what was read, in words.
        group: the column that tells families of runs apart; empty without one.
        notes: sentences on what was read, chosen and left out.
        warnings: those of the notes that limit what the law says.
    """

    runs: Runs
    x: Quantity
    y: Quantity
    kind: str
    group: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def naming(self) -> dict[str, dict[str, str]]:
        """Return what x, y and the group are called, as JSON-able values by our column."""
        named = {
            X: {"label": self.x.label, "unit": self.x.unit},
            Y: {"label": self.y.label, "unit": self.y.unit},
        }
        return named | ({"encoder_size": {"label": self.group, "unit": ""}} if self.group else {})


def import_runs(
    path: str | Path, *, x: str | None = None, y: str | None = None, where: str | None = None
) -> ImportedRuns:
    """Read the runs of another tool.

    Args:
        path: a table (CSV, JSON Lines, Parquet), a W&B folder, an MLflow store or database, a
            folder of TensorBoard logs, a Ray Tune experiment, or a folder of tables.
        x: column that the loss falls with; compute where it is left out.
        y: column of the loss; lower is better.
        where: condition on the columns that the runs must meet.

    Raises:
        RunsError: nothing can be read, or a column is not there; the message says what to give.
    """
    found = read_any(Path(path))
    table = select_rows(found.table, where)
    spent, loss = find_x(table, x), find_y(table, y)
    if found.kind == STUDY and (own := COLUMNS.get(loss.column)):
        loss = loss._replace(label=own.label, unit=own.unit)
    ours, notes = _ours(table, spent, loss)
    kept = table.drop(columns=[name for name in ours if name in table])
    runs = Runs(pd.DataFrame({**ours, **{str(name): kept[name] for name in kept}}))
    group, warnings = _group(table) or "", _families(table)
    told = (
        f"{_runs(len(table), 'was', 'were')} read from {found.kind}.",
        *found.notes, *spent.notes, *loss.notes, *notes, *warnings,
    )  # fmt: skip
    return ImportedRuns(runs, spent, loss, found.kind, group, told, tuple(warnings))


def select_rows(table: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """Keep the rows that meet a condition on the columns.

    Raises:
        RunsError: the condition cannot be read, or no row meets it.
    """
    if where is None:
        return table
    try:
        holds = evaluate_condition(table, where)
        kept = table[np.asarray(holds, dtype=bool)] if isinstance(holds, pd.Series) else None
    except Exception as error:  # whatever the parser raises, the condition is wrong
        raise RunsError(
            f"--where {where!r} cannot be read ({reason_of(error)}); write a condition on columns, "
            "such as \"group == 'dense'\"."
        ) from None
    if kept is None or kept.empty:
        raise RunsError(f"No run meets --where {where!r}; relax the condition.")
    return kept.reset_index(drop=True)


def _ours(
    table: pd.DataFrame, x: Quantity, y: Quantity
) -> tuple[dict[str, "pd.Series[Any]"], list[str]]:
    """Return our columns, and a note on the runs that cannot be used."""
    columns = [str(name) for name in table]
    ours: dict[str, pd.Series[Any]] = {"run_id": _run_ids(table, columns)}
    for name in SETTINGS:
        if (found := first_of(name, columns)) and pd.api.types.is_numeric_dtype(table[found]):
            ours[name] = table[found]
    if group := _group(table):
        ours["encoder_size"] = table[group].astype(str)
    elif any(table[name].astype(str).nunique() > 1 for name in all_of("group", columns)):
        ours.pop("seed", None)  # too many families to name: runs of equal settings are not seeds
    ours |= {X: x.values, Y: y.values}
    ours["status"], notes = _statuses(table, x, y)
    if x.unit == "FLOP" and "train_tokens" not in ours and "non_embedding_params" in ours:
        tokens = x.values / (PER_PARAMETER_AND_TOKEN * ours["non_embedding_params"])
        # Six digits, so that runs of equal tokens are found equal.
        ours["train_tokens"] = tokens.map(lambda value: float(f"{value:.6g}"))
        notes.append("The table has no tokens, so they are compute / (6 parameters).")
    return ours, notes


def _run_ids(table: pd.DataFrame, columns: list[str]) -> "pd.Series[Any]":
    """Name runs by the first column whose values are unique, names before ids, or by their row."""
    found = [*all_of("run", columns), *all_of("model", columns)]
    for name in sorted(found, key=lambda name: name.lower().endswith("id")):
        if table[name].notna().all() and table[name].is_unique:
            return table[name].astype(str)
    return pd.Series([f"row-{row}" for row in range(len(table))], index=table.index)


def _group(table: pd.DataFrame) -> str | None:
    """Return the column that divides the runs into a few families."""
    found = _group_columns(table)
    return next((name for name in found if found[name] <= MANY), None)


def _group_columns(table: pd.DataFrame) -> dict[str, int]:
    """Return the number of families by column, for columns that divide the runs into families."""
    known = [name for name in all_of("group", list(map(str, table))) if table[name].notna().all()]
    counts = {name: table[name].astype(str).nunique() for name in known}
    return {name: count for name, count in counts.items() if 1 < count < len(table)}


def _families(table: pd.DataFrame) -> list[str]:
    """Say that one law over several families describes the best of them."""
    found = _group_columns(table)
    group = _group(table) or next(iter(found), None)
    if not group:
        return []
    name = group if group.isidentifier() else f"`{group}`"
    first = table[group].tolist()[0]
    # As JSON, with double quotes, which need no escape between the single ones of a shell.
    value = json.dumps(first, ensure_ascii=False) if isinstance(first, str) else repr(first)
    told = (
        f"The runs are of {found[group]} families ({group!r}), and one law over all describes "
        "the best of them"
    )
    condition = f"{name} == {value}"
    if not is_condition(condition):  # a name or value that no condition can hold
        return [f"{told}."]
    return [f"{told}; give --where {shlex.quote(condition)} for one family."]


def _statuses(table: pd.DataFrame, x: Quantity, y: Quantity) -> tuple["pd.Series[Any]", list[str]]:
    """Return the status of each run: one without a positive finite x and y is not done."""
    given = table["status"] if "status" in table else pd.Series("done", index=table.index)
    statuses = given.astype(object).fillna("done")
    done, names = statuses == "done", f"{x.label} or {y.label}"
    absent = done & (x.values.isna() | y.values.isna())
    beyond = done & ~absent & ~(_usable(x.values) & _usable(y.values))
    reasons = (
        (~done, "did not finish", "did not finish"),
        (absent, f"has no {x.label} or no {y.label}", f"have no {x.label} or no {y.label}"),
        (beyond, f"has a {names} {UNUSABLE}", f"have a {names} {UNUSABLE}"),
    )
    notes = [
        f"{_runs(count, one, more)} and {'is' if count == 1 else 'are'} left out of the fit."
        for runs, one, more in reasons
        if (count := int(runs.sum()))
    ]
    return statuses.mask(absent, "missing").mask(beyond, "diverged"), notes


def _runs(count: int, one: str, more: str) -> str:
    """Return a number of runs with its verb."""
    return f"{count} run {one}" if count == 1 else f"{count} runs {more}"


def _usable(values: "pd.Series[float]") -> "pd.Series[bool]":
    return (values > 0) & (values < np.inf)
