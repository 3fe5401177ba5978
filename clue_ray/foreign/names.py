"""What other people call compute, loss and the settings of a run: from their names to ours.

A column is found by its whole name, or by the last part of a path such as `eval/loss`, in any
case and with any separators. Where several could be meant, the first counts and a note says so.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from clue_ray.errors import RunsError, nearest

STEPS = ("_step", "step", "training_iteration", "global_step", "iteration", "iter")
"""Columns that count the steps of a curve."""
PREFIXES = {"m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21}
SECONDS_PER_DAY = 86_400
FLOP_UNIT = re.compile(
    r"(?:^|(?<=_))"
    r"(?:(?P<prefix>mega|giga|tera|peta|exa|zetta|[mgtpez])flops?(?P<days>_?(?:s_)?days?)?"
    r"|(?P<pf>pf(?:_?s)?_?days?))"
    r"(?=_|$)"
)
"""The unit as a word of a name: `training_flops` is not in GFLOP; PF-days are PFLOP/s for days."""
SPEED = {"throughput", "perf", "performance", "speed"}
"""Folders of a path in which `tflops` alone is a speed."""
PER_PARAMETER_AND_TOKEN = 6.0
"""FLOP of training per parameter and token: forward and backward (Kaplan et al. 2020)."""
SHOWN = 4
"""Other columns that a note names."""
MANY = 7
"""Groups whose markers fit in the legend of a figure."""

NAMES: dict[str, tuple[str, ...]] = {
    "compute": (
        "train_flops", "training_flops", "total_training_flops", "total_flops", "flops", "flop",
        "train_flop", "training_flop", "training_compute_flop", "train_compute",
        "training_compute", "compute_flops", "compute", "flops_budget", "flop_budget", "budget",
        "c",
    ),
    "spent": (
        "gpu_hours", "gpu_seconds", "tpu_hours", "train_tokens", "tokens_trained", "total_tokens",
        "num_tokens", "n_tokens", "tokens", "samples_seen", "examples_seen", "d", "n_params",
        "num_params", "params",
    ),
    "loss": (
        "loss", "test_loss", "held_out_loss", "val_loss", "valid_loss", "validation_loss",
        "eval_loss", "final_loss", "val_bpb", "bpb", "bits_per_byte", "cross_entropy_loss",
        "loss_test", "loss_val", "loss_valid", "loss_validation", "loss_eval",
        "crossentropyloss", "cross_entropy", "ce_loss", "ce", "nll", "l", "perplexity", "ppl",
        "test_error", "error_rate", "error", "wer", "mse", "train_loss", "loss_train",
    ),
    "non_embedding_params": (
        "non_embedding_params", "n_non_embedding", "num_scaling_params", "params_transformer",
        "num_params", "n_params", "params_total", "total_params", "model_params", "num_parameters",
        "n_parameters", "parameters", "params", "model_size", "n",
    ),
    "train_tokens": (
        "train_tokens", "tokens_trained", "tokens_seen", "training_tokens", "total_tokens",
        "num_tokens", "n_tokens", "tokens", "d",
    ),
    "learning_rate": ("learning_rate", "peak_lr", "max_lr", "learning_rate_peak", "lr"),
    "global_batch_size": ("global_batch_size", "batch_size", "batch", "train_batch_size"),
    "sequence_length": ("sequence_length", "seq_len", "context_length", "max_seq_len"),
    "seed": ("seed", "random_seed"),
    "steps": ("steps", "num_iterations", "num_steps", "train_steps", "max_steps", "n_steps"),
    "wall_seconds": ("wall_seconds", "train_time_sec", "runtime", "time_total_s", "wall_s"),
    "model": ("model", "model_name", "model_id", "experiment", "config_name"),
    "run": ("run_id", "run", "name", "run_name", "trial_id", "id"),
    "group": (
        "experiment", "project", "group", "study", "family", "architecture", "arch",
        "model_family", "method", "job_type",
    ),
}  # fmt: skip
"""Names by what they mean, in the order of preference."""
SETTINGS = (
    "non_embedding_params", "train_tokens", "learning_rate", "global_batch_size",
    "sequence_length", "seed", "steps", "wall_seconds",
)  # fmt: skip
"""Columns of our table that are filled where another tool has them."""


class Quantity(NamedTuple):
    """A column that a law is fitted to.

    Attributes:
        column: its name in the table; empty where `values` were computed.
        label: what figures and sentences call it.
        unit: FLOP, nats or nothing.
        values: one number per run.
        notes: sentences on the choice.
    """

    column: str
    label: str
    unit: str
    values: "pd.Series[float]"
    notes: tuple[str, ...] = ()


OF_TRAINING = re.compile(r"^(train|hparam)|_train$")
"""Marks a loss of training in any segment of a name: summary/train/loss."""


def first_of(meaning: str, columns: Sequence[str]) -> str | None:
    """Return the column with a meaning of `NAMES`; None where there is none."""
    found = all_of(meaning, columns)
    return found[0] if found else None


def all_of(meaning: str, columns: Sequence[str]) -> list[str]:
    """List the columns that can have a meaning, the most likely first."""
    scored = []
    for place, column in enumerate(columns):
        segments = [_words(part) for part in re.split(r"[/.|]", str(column))]
        whole, last = _words(column), segments[-1]
        if meaning == "compute":
            whole, last = (_in_plain_flops(name, segments) for name in (whole, last))
        for rank, name in enumerate(NAMES[meaning]):
            if name in (whole, last):
                # A loss of training is the last choice, wherever its name stands in the list, and
                # so is what TensorBoard repeats next to hyperparameters.
                late = meaning == "loss" and any(map(OF_TRAINING.search, (whole, *segments)))
                scored.append((late, rank, name != whole, place, str(column)))
                break
    return [column for *_, column in sorted(scored)]


def _in_plain_flops(name: str, segments: Sequence[str]) -> str:
    """Return a name of compute without its unit; a speed stays what it is."""
    is_speed = bool(FLOP_UNIT.fullmatch(segments[-1]) and SPEED & set(segments[:-1]))
    return name if is_speed else FLOP_UNIT.sub("flops", name)


def flop_per_unit(column: str) -> float:
    """Return the FLOP in one unit of a column of compute; 1 where its name states no unit."""
    last = _words(re.split(r"[/.|]", column)[-1])
    found = FLOP_UNIT.search(last) or FLOP_UNIT.search(_words(column))  # PFLOP/s-days
    if found is None or not all_of("compute", [column]):
        return 1.0
    days = SECONDS_PER_DAY if found["days"] or found["pf"] else 1
    return PREFIXES[(found["prefix"] or "p")[0]] * days


def find_x(table: pd.DataFrame, asked: str | None) -> Quantity:
    """Choose what the loss falls with: compute, or what stands for it.

    Raises:
        RunsError: there is no such column.
    """
    columns = _numeric(table)
    if asked is not None:
        return _in_flop(table, _resolve(table, asked, "--x"), ())
    size, tokens = (first_of(name, columns) for name in ("non_embedding_params", "train_tokens"))
    found = all_of("compute", columns)
    if found and not (size and tokens and _is_bare_unit(found[0])):
        spent = _in_flop(table, found[0], _choice("compute (x)", "--x", found))
        return _recognised(spent, table, size, tokens)
    if size and tokens:
        why = f"{found[0]!r} may be a speed" if found else "The table has no compute"
        note = f"{why}, so x is 6 {size} {tokens}: 6 FLOP per parameter and token."
        flop = PER_PARAMETER_AND_TOKEN * table[size] * table[tokens]
        return Quantity("", "compute", "FLOP", flop.astype(float), (note,))
    if found := all_of("spent", columns):
        note = f"The table has no compute; {found[0]!r} stands for it (x): give --x to choose."
        return Quantity(found[0], found[0], "", table[found[0]].astype(float), (note,))
    _check_cells(table, "compute", "--x")
    raise RunsError(f"No column is known as compute; give --x, one of {_list(columns)}.")


def _is_bare_unit(column: str) -> bool:
    """Return whether a name is a unit alone, such as `tflops`: as often a speed as an amount."""
    unit = FLOP_UNIT.fullmatch(_words(column))
    return bool(unit and not unit["days"] and not unit["pf"] and unit["prefix"][0] in "mgt")


def find_y(table: pd.DataFrame, asked: str | None) -> Quantity:
    """Choose the loss, of which less is better.

    Raises:
        RunsError: there is no such column.
    """
    columns = _numeric(table)
    if asked is None:
        found = all_of("loss", columns)
        if not found:
            _check_cells(table, "loss", "--y")
            raise RunsError(f"No column is known as a loss; give --y, one of {_list(columns)}.")
        column, notes = found[0], _choice("the loss (y)", "--y", found)
    else:
        column, notes = _resolve(table, asked, "--y"), ()
    label = "loss" if _words(column) in ("l", "loss") else column
    return Quantity(column, label, "", table[column].astype(float), notes)


def _resolve(table: pd.DataFrame, asked: str, option: str) -> str:
    """Return the column that a user means: its name, in any case, or the end of its path.

    Raises:
        RunsError: no column or several are meant, or it holds no numbers.
    """
    columns = [str(name) for name in table]
    if asked in columns:
        found = [asked]
    else:
        found = [c for c in columns if _words(c) == _words(asked)] or [
            c for c in columns if re.split(r"[/.|]", c)[-1].lower() == asked.lower()
        ]
    if len(found) > 1:
        raise RunsError(f"{option} {asked!r} could be {_list(found)}; give one of them.")
    if not found:
        raise RunsError(f"The runs have no column {asked!r}; {nearest(asked, columns)}")
    if found[0] not in _numeric(table):
        raise RunsError(
            f"Column {found[0]!r} holds no numbers; give {option}, one of {_list(_numeric(table))}."
        )
    return found[0]


def _check_cells(table: pd.DataFrame, meaning: str, option: str) -> None:
    """Raise RunsError where the column of a meaning is there, but empty or with text in it."""
    name = first_of(meaning, list(map(str, table)))
    if name is None:
        return
    filled = table[name].dropna()
    numbers = pd.to_numeric(filled, errors="coerce")
    texts = filled[numbers.isna()]
    if texts.empty:
        raise RunsError(f"Column {name!r} holds no finite number; fill it, or give {option}.")
    raise RunsError(
        f"Column {name!r} holds {len(texts)} text{'s' * (len(texts) != 1)} among "
        f"{len(filled)} values, such as {str(texts.iloc[0])!r}; leave these cells empty, or give "
        f"{option}."
    )


def _in_flop(table: pd.DataFrame, column: str, notes: tuple[str, ...]) -> Quantity:
    """Read a column of compute, converted to FLOP where its name states another unit."""
    values = table[column].astype(float)
    if column not in all_of("compute", [column]):
        return Quantity(column, column, "", values, notes)
    if (flop := flop_per_unit(column)) != 1:
        return Quantity(column, "compute", "FLOP", values * flop, (*notes, converted(column)))
    unit = "FLOP" if "flop" in _words(column) else ""
    return Quantity(column, "compute", unit, values, notes)


def converted(column: str) -> str:
    """Say that a column was converted to FLOP."""
    return f"{column!r} was converted to FLOP: times {flop_per_unit(column):g}."


def _recognised(
    spent: Quantity, table: pd.DataFrame, size: str | None, tokens: str | None
) -> Quantity:
    """State that compute without a unit is FLOP where it is what parameters and tokens take."""
    if spent.unit or not (size and tokens):
        return spent
    expected = PER_PARAMETER_AND_TOKEN * table[size].astype(float) * table[tokens].astype(float)
    ratio = float((spent.values / expected).median())
    if not 0.5 < ratio < 2:
        return spent
    note = f"{spent.column!r} is about 6 {size} {tokens} ({ratio:.2f} times), so it is FLOP."
    return spent._replace(unit="FLOP", notes=(*spent.notes, note))


def _choice(meaning: str, option: str, found: Sequence[str]) -> tuple[str, ...]:
    """State which column was taken, and which others were possible."""
    if len(found) == 1:
        return (f"{found[0]!r} is taken as {meaning}.",)
    return (
        f"{found[0]!r} is taken as {meaning}; it could also be {_list(found[1:])}: "
        f"give {option} to choose.",
    )


def _numeric(table: pd.DataFrame) -> list[str]:
    """List the columns that hold numbers and are not empty."""
    return [
        str(name)
        for name in table
        if pd.api.types.is_numeric_dtype(table[name])
        and not pd.api.types.is_bool_dtype(table[name])
        and np.isfinite(table[name].astype(float)).any()
    ]


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(map(repr, names[:SHOWN])) + more) if names else "none: it has no numbers"


def _words(name: object) -> str:
    """Spell a name in lower case with one underscore between words: Val Loss, val-loss."""
    return re.sub(r"[\W_]+", "_", str(name)).strip("_").lower()
