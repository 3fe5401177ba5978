"""The specification of a downstream task: a log, the inputs that an encoder sees, and the target.

Exactly one of KINDS defines the target. A task names no encoder,
so every run can be evaluated on it.
"""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from clue_ray.errors import SpecError
from clue_ray.runs import SCORES
from clue_ray.spec.items import ItemsSpec, with_text_of_items
from clue_ray.spec.specs import CorpusSpec, SplitSpec
from clue_ray.spec.yaml import FILE_NAME, Spec, read_yaml
from clue_ray.transfer.tasks.rules import (
    WINDOW_KINDS,
    ChurnSpec,
    MultiLabelSpec,
    RegressionSpec,
    WindowRule,
)

KINDS = ("next_item", "attribute", "retrieval", *WINDOW_KINDS)


class NextItemSpec(Spec):
    """Rank the items that a user takes in a service that the encoder does not see."""

    service: str
    days: int | None = Field(None, ge=1)
    """labels are the items within this many days after the cut in time; without a cut, the label is
    the user's most recent item"""
    part: int | None = Field(None, ge=1)
    """part of the text, split at ';', that is the label, such as a category; the whole text, which
    is the item, if omitted"""
    min_users: int = Field(2, ge=1)
    "training users that a label needs to be a candidate; other labels count as not found"


class AttributeSpec(Spec):
    """Predict a property of users, given as a table.

    Three or more distinct numbers are a regression, all other values are classes.
    """

    table: str
    "CSV or Parquet file, or package:NAME/FILE within an installed package"
    column: str
    user: str = "user_id"
    "the table's column of user ids"
    prefix: str = ""
    "what the log's user ids have before the table's ids"
    positive: tuple[str, ...] | None = None
    "values that form the class yes, all others no; each value is a class if omitted"


class RetrievalSpec(Spec):
    """Retrieve a user's vector in one service by their vector in another, without training."""

    query: str
    target: str
    candidates: int = Field(256, ge=2)
    "test users that are queried, each among all of them"


class TaskSpec(Spec):
    """A downstream task."""

    elsewhere = ("split.time",)

    name: str = Field(pattern=FILE_NAME)
    question: str = ""
    events: str | tuple[str, ...] | dict[str, Any]
    columns: dict[str, str] = Field(default={})
    text: str = "{text}"
    items: dict[str, ItemsSpec] | None = None
    "catalogues of items, as in a corpus section"
    timestamp_format: str | None = None
    separator: str | None = None
    services: tuple[str, ...] | None = None
    "services that the encoder sees; if omitted, all except that of next_item"
    time: datetime | None = None
    "cut in time: the encoder sees events before it, labels are later; UTC if without a time zone"
    split: SplitSpec = SplitSpec(validation=0.1, test=0.2)
    """by the same hash of the user id as for a corpus: with a test share that is no larger than
    that of the encoder's corpus, the encoder was not trained on the test users"""
    other_company: bool = False
    "the encoder was trained on another log, in which equal ids are other people"
    next_item: NextItemSpec | None = None
    attribute: AttributeSpec | None = None
    retrieval: RetrievalSpec | None = None
    multi_label: MultiLabelSpec | None = None
    churn: ChurnSpec | None = None
    regression: RegressionSpec | None = None
    head: Literal["mlp", "linear", "challenge"] = "mlp"
    """the model on the frozen features: one hidden layer, none (logistic regression), or the
    network of the RecSys Challenge 2025, of 50 million parameters"""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field((0, 1, 2), min_length=1)
    """seeds of the head, over which scores are averaged; the first three are also the seeds of the
    encoders trained from scratch"""
    scratch_steps: int = Field(400, ge=0)
    "maximum steps of the encoder trained from scratch on the task; 0 leaves this baseline out"

    @field_validator("time")
    @classmethod
    def _in_utc(cls, time: datetime | None) -> datetime | None:
        return SplitSpec(time=time).time

    @model_validator(mode="before")
    @classmethod
    def _text_of_items(cls, document: Any) -> Any:
        return with_text_of_items(document)

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"has {len(given)} targets ({', '.join(given) or 'none'}); give one of "
                f"{', '.join(KINDS)}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"has repeated seeds {list(self.seeds)}; a repeated seed adds nothing, so leave it "
                "out"
            )
        if self.rule and not self.time:
            raise ValueError(f"has {self.kind} without a cut in time; add time")
        if self.split.time:
            raise ValueError("has split.time; give the cut in time of a task as time instead")
        if self.next_item and self.next_item.days and not self.time:
            raise ValueError(
                "has next_item.days without a cut in time; add time, or leave days out"
            )
        if self.next_item and self.next_item.service in (self.services or ()) and not self.time:
            raise ValueError(
                f"shows the encoder the service {self.next_item.service!r} of its labels without a "
                "cut in time; the labels would leak, so leave it out of services or give time"
            )
        return self

    @model_validator(mode="after")
    def _two_services(self) -> Self:
        asked = self.retrieval
        if asked and asked.query == asked.target:
            raise ValueError(
                f"retrieves service {asked.query!r} by itself; give another retrieval.target"
            )
        if asked and self.services:
            hidden = sorted({asked.query, asked.target} - set(self.services))
            if hidden:
                raise ValueError(
                    f"retrieves with service {hidden[0]!r}, which services lacks; add it there"
                )
        return self

    @property
    def kind(self) -> str:
        """The target, one of KINDS."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def rule(self) -> WindowRule | None:
        """The rule that builds the targets of a window task; None for other kinds."""
        return self.multi_label or self.churn or self.regression

    @property
    def window_days(self) -> int | None:
        """Days of the window of the labels; None for labels without a window."""
        if self.rule:
            return self.rule.days
        return self.next_item.days if self.next_item else None

    @property
    def column(self) -> str:
        """The prefix of the columns of a runs table with the task's scores."""
        return column_of(self.name)

    def reading(self) -> CorpusSpec:
        """Return how the log is read, in terms of a corpus."""
        document = {
            "events": self.events,
            "columns": self.columns,
            "text": self.text,
            "items": self.items,
            "timestamp_format": self.timestamp_format,
            "separator": self.separator,
        }
        return CorpusSpec.parse(document, f"task {self.name}")


def column_of(task: str) -> str:
    """Return the prefix of the columns of a runs table with a task's scores."""
    return f"{SCORES}{task.replace('-', '_')}"


def read_task(path: str | Path) -> TaskSpec:
    """Read and validate a task file.

    Raises:
        SpecError: the file cannot be read or is not a valid task.

    Example:
        >>> import json
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from clue_ray import read_task
        >>> task = {"name": "next", "question": "Which shop item is next?", "events": "log.parquet"}
        >>> label = {"services": ["news"], "next_item": {"service": "shop"}}
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "task.yaml"
        ...     _ = file.write_text(json.dumps(task | label))
        ...     read = read_task(file)
        >>> read.name
        'next'
    """
    return TaskSpec.parse(read_yaml(path), str(path))


def read_tasks(paths: Iterable[str | Path]) -> list[TaskSpec]:
    """Read several task files.

    Raises:
        SpecError: a file is not a valid task, or two tasks have the same columns in a runs table.
    """
    found: dict[str, str] = {}
    tasks = []
    for path in paths:
        task = read_task(path)
        if other := found.get(task.column):
            raise SpecError(
                f"Tasks {other} and {path} have the same name {task.name!r}; give each its own."
            )
        found[task.column] = str(path)
        tasks.append(task)
    return tasks


def parse_against(named: list[str]) -> dict[str, str]:
    """Parse values of --against, NAME=RUN, to name -> run.

    Raises:
        SpecError: a value lacks its name or run, or a name is given twice.
    """
    runs: dict[str, str] = {}
    for value in named:
        name, _, run = value.partition("=")
        if not name or not run:
            raise SpecError(
                f"--against is {value!r}; write it as NAME=RUN, such as "
                "'one service=results/a/runs/b'."
            )
        if name in runs:
            raise SpecError(f"--against names {name!r} twice; give each encoder its own name.")
        runs[name] = run
    return runs
