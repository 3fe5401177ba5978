"""What a downstream task is: a YAML file of a log, what the encoder may see of it, and what is to
be told from that.

Exactly one of `next_item`, `attribute` and `retrieval` says what is asked. A task names no encoder,
so that any run can be put to it.
"""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from clue_ray.errors import SpecError
from clue_ray.runs import SCORES
from clue_ray.spec.specs import CorpusSpec, SplitSpec
from clue_ray.spec.yaml import Spec, read_yaml

KINDS = ("next_item", "attribute", "retrieval")


class NextItemSpec(Spec):
    """Rank what a user takes in a service that the encoder is not shown."""

    service: str
    days: int | None = Field(None, ge=1)
    """labels are what falls within these days from the cut on; without a cut in time, the user's
    most recent item"""
    part: int | None = Field(None, ge=1)
    """which part of the text, split at ';', is the label (a category); the whole text, so the item,
    when omitted"""
    min_users: int = Field(2, ge=1)
    "training users a label must have to be a candidate; others cannot be found and count as missed"


class AttributeSpec(Spec):
    """Tell a property of users, given as a table: a regression of three or more numbers, else
    classes.
    """

    table: str
    "CSV or Parquet file, or package:NAME/FILE within an installed package"
    column: str
    user: str = "user_id"
    "the table's column of user ids"
    prefix: str = ""
    "what the log writes before the table's ids"
    positive: tuple[str, ...] | None = None
    "values that count as yes, all others as no; each value is a class when omitted"


class RetrievalSpec(Spec):
    """Find a user's vector in one service by their vector in another, nothing trained."""

    query: str
    target: str
    candidates: int = Field(256, ge=2)
    "test users among whom each is sought"


class TaskSpec(Spec):
    """A downstream task."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str = ""
    events: str | tuple[str, ...] | dict[str, Any]
    columns: dict[str, str] = Field(default={})
    text: str = "{text}"
    services: tuple[str, ...] | None = None
    "shown to the encoder; all but the service asked for when omitted"
    time: datetime | None = None
    "cut in time: the encoder sees what is before it, labels come from then on; UTC if no zone"
    split: SplitSpec = SplitSpec(validation=0.1, test=0.2)
    """by the same hash of the user id as a corpus's, so that a test share no larger than the
    encoder's is new to it"""
    other_company: bool = False
    "the log is not the one the encoder was trained on, and equal ids are other people"
    next_item: NextItemSpec | None = None
    attribute: AttributeSpec | None = None
    retrieval: RetrievalSpec | None = None
    head: Literal["mlp", "linear"] = "mlp"
    "what reads the frozen features: one hidden layer, or none (logistic regression)"
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field((0, 1, 2), min_length=1)
    """of the head, and the first three of the encoder trained from scratch; scores are means over
    them"""
    scratch_steps: int = Field(400, ge=0)
    "most steps of the same encoder trained from scratch on the task alone; 0 leaves it out"

    @field_validator("time")
    @classmethod
    def _in_utc(cls, time: datetime | None) -> datetime | None:
        return SplitSpec(time=time).time

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"asks {len(given)} things ({', '.join(given) or 'none'}); give one of "
                f"{', '.join(KINDS)}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"gives seeds {list(self.seeds)}; a seed given twice is no second start, so leave "
                f"it out"
            )
        if self.split.time:
            raise ValueError("gives split.time; the cut in time of a task is its own key, time")
        if self.next_item and self.next_item.days and not self.time:
            raise ValueError(
                "gives next_item.days without a cut in time; add time, or leave days out"
            )
        if self.next_item and self.next_item.service in (self.services or ()) and not self.time:
            raise ValueError(
                f"shows the encoder the service {self.next_item.service!r} that it asks for, "
                f"without a cut in time; "
                "the labels would leak, so leave it out of services or give time"
            )
        return self

    @model_validator(mode="after")
    def _two_services(self) -> Self:
        asked = self.retrieval
        if asked and asked.query == asked.target:
            raise ValueError(
                f"seeks service {asked.query!r} by itself; give another retrieval.target"
            )
        if (
            asked
            and self.services
            and (hidden := sorted({asked.query, asked.target} - set(self.services)))
        ):
            raise ValueError(
                f"asks for service {hidden[0]!r}, which services leaves out; add it there"
            )
        return self

    @property
    def kind(self) -> str:
        """Which of the three things is asked."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def column(self) -> str:
        """How the columns of a runs table begin that hold its scores."""
        return column_of(self.name)

    def reading(self) -> CorpusSpec:
        """Say how the log is read, by the reader of corpora."""
        document = {
            "events": self.events,
            "columns": self.columns,
            "text": self.text,
            "timestamp_format": self.timestamp_format,
            "separator": self.separator,
        }
        return CorpusSpec.parse(document, f"task {self.name}")


def column_of(task: str) -> str:
    """Say how the columns of a runs table begin that hold a task's scores."""
    return f"{SCORES}{task.replace('-', '_')}"


def read_task(path: str | Path) -> TaskSpec:
    """Read and validate a task file; raise SpecError with one sentence when it cannot be meant."""
    return TaskSpec.parse(read_yaml(path), str(path))


def read_tasks(paths: Iterable[str | Path]) -> list[TaskSpec]:
    """Read several task files, whose columns in a runs table must differ; raise SpecError with one
    sentence.
    """
    found: dict[str, str] = {}
    tasks = []
    for path in paths:
        task = read_task(path)
        if other := found.get(task.column):
            raise SpecError(
                f"Tasks {other} and {path} share the name {task.name!r}; give each a name of its "
                f"own."
            )
        found[task.column] = str(path)
        tasks.append(task)
    return tasks


def parse_against(named: list[str]) -> dict[str, str]:
    """Parse NAME=RUN, further encoders to set beside the first."""
    pairs = [one.partition("=") for one in named]
    if wrong := [
        one for one, (name, _, run) in zip(named, pairs, strict=True) if not name or not run
    ]:
        raise SpecError(
            f"--against is {wrong[0]!r}; write it as NAME=RUN, such as 'one "
            f"service=results/a/runs/b'."
        )
    names = [name for name, _, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SpecError(f"--against names {twice[0]!r} twice; give each encoder a name of its own.")
    return {name: run for name, _, run in pairs}
