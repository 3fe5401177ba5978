"""What is wrong with the rows of a runs table, said with the rows at fault.

Takes finished runs; gives plain arrays, or raises RunsError. The one idea: a reader mends rows, so a sentence names
them: by run_id where the table has one, by number from 0 where not.
"""

from typing import Any

import numpy as np
import pandas as pd

from clue_ray.errors import RunsError
from clue_ray.scaling.law import Floats

SHOWN = 4  # rows that a sentence names
SMALLEST, LARGEST = 1e-100, 1e100  # beyond, squares and complex steps leave the range of floats
NO_NUMBERS = {"b": "truth values", "c": "complex numbers", "m": "durations", "M": "dates"}  # by kind of dtype


def check_once(done: pd.DataFrame) -> None:
    """Raise RunsError where a run_id stands in several rows, as it would count several times."""
    if "run_id" not in done:
        return
    odd = ~done["run_id"].map(pd.api.types.is_hashable).to_numpy(dtype=bool)
    if odd.any():
        raise RunsError(
            f"Column 'run_id' holds {_shown(done['run_id'].iloc[int(odd.argmax())])}; a run_id is text or a number: "
            "mend the column."
        )
    twice = done["run_id"].duplicated(keep=False) & done["run_id"].notna()
    if twice.any():
        rows = done[twice]
        raise RunsError(
            f"{rows['run_id'].nunique()} run_id stand in several rows ({_name_rows(rows, by_number=True)}), first "
            f"{rows['run_id'].iloc[0]!r}; a run counts once, so keep one row of each."
        )


def read_numbers(done: pd.DataFrame, column: str) -> Floats:
    """Read a column as positive finite numbers (n,) that floats can square; RunsError names the other rows."""
    kind = NO_NUMBERS.get(getattr(done[column].dtype, "kind", ""))
    if kind:
        raise RunsError(f"Column {column!r} holds {kind}; laws need positive finite numbers: convert the column.")
    values = _as_floats(done[column])
    bad = ~((values >= SMALLEST) & (values <= LARGEST))
    if bad.any():
        raise RunsError(
            f"Column {column!r} holds {_shown(done[column].iloc[int(bad.argmax())])} in {_name_rows(done[bad])} "
            f"({int(bad.sum())} of {len(bad)} finished runs); laws need positive finite numbers, {SMALLEST:g} to "
            f"{LARGEST:g}: mend these rows, drop them or change the unit."
        )
    return values


def candidates_of(done: pd.DataFrame) -> int | None:
    """Return the one pool size of the rows, None when they do not say; RunsError where they disagree or hold none."""
    if "loss_candidates" not in done:
        return None
    filled = done[done["loss_candidates"].notna()]
    pools = _as_floats(filled["loss_candidates"])
    bad = ~(np.isfinite(pools) & (pools >= 2))
    if bad.any():
        found = _shown(filled["loss_candidates"].iloc[int(bad.argmax())])
        raise RunsError(
            f"Column 'loss_candidates' holds {found} in {_name_rows(filled[bad])}; a loss is measured among 2 "
            "candidates or more: mend these rows, or drop the column."
        )
    sizes, counts = np.unique(pools, return_counts=True)
    if len(sizes) > 1:
        rare = sizes[np.argmin(counts)]
        raise RunsError(
            f"The runs' losses were measured on pools of {', '.join(f'{size:g}' for size in sizes)} candidates and "
            f"cannot be compared ({rare:g} in {_name_rows(filled[pools == rare])}); fit runs of one loss_candidates "
            "at a time."
        )
    return int(sizes[0]) if len(sizes) else None


def _as_floats(column: pd.Series) -> Floats:
    """Read cells as floats (n,), nan where a cell is no number."""
    return np.asarray(pd.to_numeric(column, errors="coerce").to_numpy(dtype=float, na_value=np.nan))


def _shown(value: Any) -> str:
    """Say what a cell holds: a number as it stands, the text 'n/a', a list."""
    if isinstance(value, str):
        return f"the text {value!r}"
    return f"a {type(value).__name__}" if hasattr(value, "__len__") else f"{value}"


def _name_rows(rows: pd.DataFrame, by_number: bool = False) -> str:
    """Name rows by run_id, or by number: run a1f3; rows 0, 3 and 12 more."""
    numbered = by_number or "run_id" not in rows
    names = [str(name) for name in (rows.index if numbered else rows["run_id"])]
    kind = ("row" if numbered else "run") + ("s" if len(names) > 1 else "")
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{kind} {', '.join(names[:SHOWN])}{more}"
