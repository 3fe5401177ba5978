"""The registry of columns: what every column of the runs table is called and how it is used.

Tables, figures, warnings and fits read their columns here. To add an axis, give its column a
`Column.axis`; a new column also needs a field in `clue_ray.runs` and an entry in `COLUMNS`.
"""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

Format = Literal["text", "count", "general", "significant", "loss", "flop", "seconds", "rate"]


@dataclass(frozen=True)
class Column:
    """One column of the runs table, or of a learning curve.

    Attributes:
        label: what it is called wherever there is room.
        head: what it is called in a narrow table and in the name of a run.
        unit: unit or counted thing, where `label` does not say it.
        format: how its values are written.
        field: dotted field of the study file that sets it; empty for what a run measures.
        axis: its place among the axes that a scaling law may have; None for other columns.
        held: whether runs must agree in it, besides the axes, to be compared along one axis.
        log: whether figures use a logarithmic scale.
    """

    name: str
    label: str
    head: str
    unit: str = ""
    format: Format = "count"
    field: str = ""
    axis: int | None = None
    held: bool = False
    log: bool = False


def _column(name: str, label: str = "", head: str = "", **properties: Any) -> Column:
    """Build a column that is called by its name where nothing else is given."""
    label = label or name.replace("_", " ")
    return Column(name, label, head or label, **properties)


_ENTRIES = (
    _column("run_id", "run", format="text"),
    _column("status", format="text"),
    _column("error", format="text"),
    _column("study", format="text"),
    _column("corpus_digest", format="text"),
    _column("encoder_size", head="size", format="text", field="encoder.size"),
    _column("encoder_parts", head="parts", format="text", field="encoder.bag", held=True),
    _column("other_settings", format="text", held=True),
    _column("width", field="encoder.width", log=True),
    _column("item_layers", field="encoder.item_layers", log=True),
    _column("service_layers", field="encoder.service_layers", log=True),
    _column("heads", field="encoder.heads", log=True),
    _column(
        "non_embedding_params",
        "non-embedding parameters",
        "params",
        field="encoder.size",
        axis=1,
        log=True,
    ),
    _column("total_params", "total parameters", field="encoder.size", log=True),
    _column("corpus_users", head="users", field="corpus_users", axis=3, log=True),
    _column("corpus_tokens", log=True),
    _column(
        "sequence_length", head="length", unit="events", field="sequence_length", axis=2, log=True
    ),
    _column(
        "global_batch_size",
        head="batch",
        unit="users",
        field="train.global_batch_size",
        axis=4,
        log=True,
    ),
    _column(
        "learning_rate",
        head="rate",
        format="general",
        field="train.learning_rate",
        held=True,
        log=True,
    ),
    _column("seed", field="train.seed", held=True),
    _column("steps", field="train.steps", axis=5, log=True),
    _column("users_seen", field="train.users_seen", log=True),
    _column("train_tokens", "training tokens", "tokens", log=True),
    _column(
        "train_flops",
        "training compute",
        "FLOPs",
        unit="FLOP",
        format="flop",
        field="train.train_flops",
        log=True,
    ),
    _column("executed_flops", "executed compute", unit="FLOP", format="flop", log=True),
    _column("loss", "held-out loss", "loss", unit="nats", format="loss"),
    _column(
        "loss_at_training_temperature",
        "held-out loss at the training temperature",
        "uncalibrated loss",
        unit="nats",
        format="loss",
    ),
    _column("loss_candidates", "candidates"),
    _column("recall_at_10", "recall@10", format="significant"),
    _column("mrr", "MRR", format="significant"),
    _column("train_loss", "training loss", unit="nats", format="significant"),
    _column("wall_seconds", "wall time", "seconds", format="seconds", log=True),
    _column("tokens_per_second", "tokens/s", format="rate", log=True),
    _column("num_workers", "workers", field="resources.workers", log=True),
    _column("device", format="text"),
    _column("started_at", format="text"),
    _column("clue_ray_version", format="text"),
    _column("step", log=True),  # of learning curves only
)

COLUMNS: dict[str, Column] = {column.name: column for column in _ENTRIES}
"""Every column by name: the runs table in its order, then those of learning curves alone."""
SIZE = "non_embedding_params"
"""The size of an encoder as laws measure it; tables and names show `encoder_size` for it."""
NOUNS = {"train_flops": "compute", "loss": "loss"}
"""Shorter words for columns in sentences."""
LENGTHS = ("steps", "users_seen")
"""How long a run trained. Runs are compared at equal steps, or else at equal users seen."""


_NAMED: ContextVar[Mapping[str, Mapping[str, str]]] = ContextVar(
    "named", default=MappingProxyType({})
)


@contextmanager
def named(names: Mapping[str, Mapping[str, str]]) -> Iterator[None]:
    """Call columns otherwise inside a `with` block: label and unit by name.

    The runs of other tools have their own words for what stands in `train_flops` and `loss`.
    """
    token = _NAMED.set(names)
    try:
        yield
    finally:
        _NAMED.reset(token)


def _find(name: str) -> Column | None:
    """Return a column as it is called here; None where it is not known."""
    column, other = COLUMNS.get(name), _NAMED.get().get(name)
    if column is None or other is None:
        return column
    return replace(column, label=other["label"], head=other["label"], unit=other["unit"])


def noun(name: str) -> str:
    """Return what sentences call a column: compute and loss, not training compute and so on."""
    return short_label(name) if name in _NAMED.get() else NOUNS.get(name, short_label(name))


def in_unit(name: str) -> str:
    """Return what follows a number of this column: its unit behind a space, or nothing."""
    column = _find(name)
    return f" {column.unit}" if column and column.unit else ""


def with_unit(words: str, name: str) -> str:
    """Return the head of numbers in the unit of a column: backtest error, nats."""
    return f"{words},{unit}" if (unit := in_unit(name)) else words


def axes(without: Container[str] = ()) -> list[str]:
    """List the axes that a law may have, in the order in which reports show them."""
    places = {name: column.axis for name, column in COLUMNS.items() if column.axis is not None}
    return [name for name in sorted(places, key=places.__getitem__) if name not in without]


def held_equal() -> list[str]:
    """List the settings, axes aside, in which runs along one axis agree."""
    return [name for name, column in COLUMNS.items() if column.held and column.axis is None]


def run_axes() -> list[str]:
    """List the axes that describe a run besides its encoder size and how long it trained."""
    return axes(without=(SIZE, *LENGTHS))


def name_columns() -> list[str]:
    """List the columns that name a run: size xs, length 16, users 8,000, batch 64."""
    return ["encoder_size", *run_axes()]


def settings() -> list[str]:
    """List what distinguishes the runs of a study, for tables of runs; their length is left out."""
    return ["encoder_size", SIZE, *run_axes(), *held_equal(), "num_workers"]


def fixed_columns() -> list[str]:
    """List the columns in which runs that differ only in their seed agree."""
    # Not the length of training: seeds draw other users, so their FLOPs differ slightly.
    skipped = ("seed", *LENGTHS, "train_flops")
    kept = (name for name, column in COLUMNS.items() if column.field or column.held)
    return [name for name in kept if name not in skipped]


def scale_fields() -> dict[str, bool]:
    """Return the fields of a study file that make a run larger or longer, and which are whole."""
    columns = [COLUMNS[name] for name in (*run_axes(), "width", *LENGTHS, "train_flops")]
    return {column.field: column.format == "count" for column in columns}


def is_log(name: str) -> bool:
    """Return whether figures show a column on a logarithmic scale."""
    return name in COLUMNS and COLUMNS[name].log


def format_of(name: str) -> Format:
    """Return the name of the format of a column's values; other numbers are counts."""
    return COLUMNS[name].format if name in COLUMNS else "count"


def label(name: str) -> str:
    """Return what a column is called, with its unit, for figures and table heads."""
    column = _find(name)
    return f"{short_label(name)}, {column.unit}" if column and column.unit else short_label(name)


def short_label(name: str) -> str:
    """Return what a column is called, without its unit, for legends and sentences."""
    column = _find(name)
    return column.label if column else name.replace("_", " ")


def head_of(name: str) -> str:
    """Return what a column is called in a narrow table."""
    column = _find(name)
    return column.head if column else name.replace("_", " ")
