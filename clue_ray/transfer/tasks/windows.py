"""Build the targets of window tasks from a log, without a loop over users."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clue_ray.errors import SpecError
from clue_ray.spec.specs import CorpusSpec
from clue_ray.transfer.tasks.rules import MultiLabelSpec, RegressionSpec
from clue_ray.transfer.tasks.spec import TaskSpec

DAY = 86_400.0
MARK = "\x02"
"""Between the fields of a template that is read for labels and filters at once."""
Targets = tuple[list[str], tuple[str, ...], NDArray[Any], NDArray[np.int64]]
"""Users with a target, names of labels or classes, targets, missed labels: see `Examples`."""


def target_template(task: TaskSpec) -> str | None:
    """Return the template to read for the targets; None if the item text serves."""
    rule = task.rule
    text = getattr(rule, "text", None)
    if rule is None or (text is None and not rule.where):
        return None
    fields = [f"{{{column}}}" for column in rule.where or ()]
    return MARK.join([task.text if text is None else text, *fields])


def target_reading(task: TaskSpec, template: str) -> CorpusSpec:
    """Return how the log is read for the targets: the logs that count, with their template."""
    spec, rule = task.reading(), task.rule
    assert rule is not None
    changes: dict[str, Any] = {"text": template}
    if rule.items is not None:
        changes["items"] = rule.items
    if isinstance(spec.events, dict):
        changes["events"] = {
            name: log.model_copy(update={"text": template})
            for name, log in spec.events.items()
            if rule.services is None or name in rule.services
        }
    return spec.model_copy(update=changes)


def select_events(task: TaskSpec, events: pd.DataFrame) -> pd.DataFrame:
    """Return the events that a rule counts, with the column `label`.

    Args:
        events: the log, its text by `target_template`.

    Raises:
        SpecError: no event has the values that the rule names.
    """
    rule = task.rule
    assert rule is not None
    text = events["text"]
    if rule.where:
        fields = text.str.split(MARK, expand=True).reindex(columns=range(1 + len(rule.where)))
        text = fields[0].fillna("").str.strip()
        for number, (column, values) in enumerate(rule.where.items()):
            found = fields[number + 1].fillna("")
            if not (kept := found.isin(values)).any():
                raise SpecError(
                    f"Task {task.name} counts events with {column} {', '.join(values)}, but no "
                    f"event has that; values found are {', '.join(sorted(found.unique())[:8])}."
                )
            events, fields, text = events[kept], fields[kept], text[kept]
    rows = events.assign(label=text)
    return rows if rule.services is None else rows[rows["service"].isin(rule.services)]


def label_windows(
    task: TaskSpec, events: pd.DataFrame, cuts: "pd.Series[float]", part: "pd.Series[Any]"
) -> Targets:
    """Return the targets of all users of a window task.

    Args:
        events: events that count, with the column `label`, as `select_events` returns them.
        cuts: time at which each user's window begins, in seconds, indexed by user.
        part: part of the split of each user, indexed by user.

    Raises:
        SpecError: no label, or no number, is found.
    """
    rule = task.rule
    assert rule is not None
    users = part.index
    user = users.get_indexer(pd.Index(events["user_id"]))
    after = events["timestamp"].to_numpy() - cuts.to_numpy()[user]
    within = (after >= 0) & (after < rule.days * DAY)
    if isinstance(rule, MultiLabelSpec):
        labels = label_texts(events["label"].replace("", None), rule.part).to_numpy()
        return _multi_label(task, rule, users, user[within], labels[within], part)
    nothing = np.zeros(len(users), np.int64)
    if isinstance(rule, RegressionSpec):
        values = _amounts(task, rule, events["label"][within])
        sums = np.bincount(user[within], values, len(users))
        if rule.log and (sums < 0).any():
            raise SpecError(
                f"Task {task.name} predicts log(1 + value), but a user has {sums.min():g}; set "
                "regression.log to false."
            )
        return list(users), (), np.log1p(sums) if rule.log else sums, nothing
    days = task.churn.active_days if task.churn else None
    reach = np.inf if days is None else days * DAY
    active = np.zeros(len(users), bool)
    active[user[(after < 0) & (after >= -reach)]] = True
    gone = np.ones(len(users), np.int64)
    gone[user[within]] = 0
    chosen = np.flatnonzero(active)
    return list(users[chosen]), ("stays", "leaves"), gone[chosen], nothing[chosen]


def _multi_label(
    task: TaskSpec,
    rule: MultiLabelSpec,
    users: "pd.Index[Any]",
    user: NDArray[np.int64],
    labels: NDArray[Any],
    part: "pd.Series[Any]",
) -> Targets:
    """Mark the labels of each user's window, [users, labels] of bool."""
    pairs = pd.DataFrame({"user": user, "label": labels}).dropna().drop_duplicates()
    training = pairs[(part.to_numpy() == "train")[pairs["user"]]]
    counts = training["label"].value_counts()
    # Sorted by name first, so that labels of equal counts are the same ones every time.
    counts = (
        counts[counts >= rule.min_users].sort_index().sort_values(kind="stable", ascending=False)
    )
    names = tuple(map(str, counts.index[: rule.labels]))
    if not names:
        raise SpecError(
            f"Task {task.name} has no label that {rule.min_users} training users have in their "
            f"window; lower multi_label.min_users, or give a longer window or a coarser label."
        )
    column = pd.Index(names).get_indexer(pd.Index(pairs["label"]))
    known = column >= 0
    targets = np.zeros((len(users), len(names)), bool)
    targets[pairs["user"].to_numpy()[known], column[known]] = True
    missed = np.bincount(pairs["user"].to_numpy()[~known], minlength=len(users))
    return list(users), names, targets, missed


def _amounts(task: TaskSpec, rule: RegressionSpec, text: "pd.Series[str]") -> NDArray[np.float64]:
    if rule.value == "events":
        return np.ones(len(text))
    numbers = pd.to_numeric(text, errors="coerce")
    if (odd := text[numbers.isna() & (text != "")]).size:
        raise SpecError(
            f"Task {task.name} sums numbers, but an event has {odd.iloc[0]!r}; give a template of "
            "one number in regression.text, such as '{price}'."
        )
    return numbers.fillna(0.0).to_numpy(np.float64)


def label_texts(text: "pd.Series[str]", part: int | None) -> "pd.Series[str]":
    """Return the part of each text that is its label; missing where a text has no such part."""
    if part is None:
        return text
    labels = text.str.split(";").map(
        lambda parts: parts[part - 1].strip() if len(parts) >= part else "", na_action="ignore"
    )
    return labels.where(labels != "")
