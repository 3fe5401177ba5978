"""Rules that build a task's targets from the events of a window after a cut in time.

Each user is an example, also one without an event in the window: no event is an answer too.
"""

from typing import Literal

from pydantic import Field

from clue_ray.spec.items import ItemsSpec
from clue_ray.spec.yaml import Spec

WINDOW_KINDS = ("multi_label", "churn", "regression")
"""Kinds of tasks whose targets are built by a rule."""


class WindowRule(Spec):
    """Which events count: those of a window of time, of some services, with some values."""

    days: int = Field(ge=1)
    "length of the window; it begins at the cut in time, and earlier by itself for training users"
    services: tuple[str, ...] | None = None
    "services whose events count; all if omitted"
    where: dict[str, tuple[str, ...]] | None = None
    "values that columns of the log must have: {event: [purchase]}; all events if omitted"
    items: dict[str, ItemsSpec] | None = None
    "catalogues for `text` and `where`; those of the task if omitted"


class MultiLabelSpec(WindowRule):
    """Predict which labels a user's events in the window have."""

    text: str | None = None
    "template of the label over the log's columns; the item text if omitted"
    part: int | None = Field(None, ge=1)
    "part of the text, split at ';', that is the label; all of it if omitted"
    labels: int = Field(100, ge=1, le=10_000)
    "number of labels: those that most training users have"
    min_users: int = Field(20, ge=1)
    "training users that a label needs"
    challenge: bool = False
    """score by the RecSys Challenge 2025, too: .8 AUC, .1 novelty and .1 diversity; chance is about
    .6, because scores that are tiny and equal have full novelty and diversity"""


class ChurnSpec(WindowRule):
    """Predict which active users have no event in the window."""

    active_days: int | None = Field(None, ge=1)
    """a user is active with an event that counts in this many days before the window; at any time
    before it if omitted"""


class RegressionSpec(WindowRule):
    """Predict an amount of each user's window."""

    value: Literal["events", "sum"] = "events"
    "number of events, or sum of the numbers in `text`"
    text: str | None = None
    "template of the number, such as '{price}', for a sum"
    log: bool = True
    "predict log(1 + value), because amounts have long tails; negative sums need false"
