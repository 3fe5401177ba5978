"""Build the targets of window tasks from a log, without a loop over users."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clue_ray.corpus.logs.schema import template_fields
from clue_ray.errors import SpecError
from clue_ray.spec.items import ItemsSpec, split_item_key
from clue_ray.spec.specs import CorpusSpec
from clue_ray.transfer.tasks.rules import MultiLabelSpec, RegressionSpec, WindowRule
from clue_ray.transfer.tasks.spec import TaskSpec

DAY = 86_400.0
MARK = "\x02"
"""Between the fields of a template that is read for labels and filters at once."""
Targets = tuple[list[str], tuple[str, ...], NDArray[Any], NDArray[np.int64]]
"""Users with a target, names of labels or classes, targets, missed labels: see `Examples`."""


def reads_again(task: TaskSpec) -> bool:
    """Return whether the targets of a task need another reading of the log than its item text."""
    rule = task.rule
    if rule is None:
        return False
    # As a label, the id of an item that the catalogue lacks would stand for itself.
    labels = isinstance(rule, MultiLabelSpec) and bool(task.items or rule.items)
    return labels or bool(rule.where) or getattr(rule, "text", None) is not None


def target_reading(task: TaskSpec) -> CorpusSpec:
    """Return how the log is read for the targets: the logs that count, with their templates.

    An id that a catalogue lacks has no label and no number, so its row does not count.
    """
    spec, rule = task.reading(), task.rule
    assert rule is not None
    changes: dict[str, Any] = {"text": _target_template(rule, spec.text)}
    if isinstance(spec.events, dict):
        changes["events"] = {
            name: log.model_copy(update={"text": _target_template(rule, log.text or spec.text)})
            for name, log in spec.events.items()
            if rule.services is None or name in rule.services
        }
    items = _items_in_use(rule, spec, changes) if rule.items is None else rule.items
    changes["items"] = {
        name: each.model_copy(update={"unmatched": "reject"}) for name, each in items.items()
    }
    return spec.model_copy(update=changes)


def _target_template(rule: WindowRule, text: str) -> str:
    """Return a template of the label or number, then of the columns that the rule filters by.

    Args:
        text: the log's own template, which is the label of a rule without one.
    """
    numbers = isinstance(rule, RegressionSpec) and rule.value == "sum"
    # A row whose template has no value at all would be left out, and "" may be asked for.
    empty = any("" in values for values in (rule.where or {}).values())
    own = text if isinstance(rule, MultiLabelSpec) or numbers or empty else ""
    label = getattr(rule, "text", None)
    fields = [f"{{{column}}}" for column in rule.where or ()]
    return MARK.join([own if label is None else label, *fields])


def _items_in_use(
    rule: WindowRule, spec: CorpusSpec, changes: dict[str, Any]
) -> dict[str, ItemsSpec]:
    """Return the task's own catalogues of columns that a template of the targets names."""
    logs = changes.get("events", {})
    named = [(log.text, spec.columns | (log.columns or {})) for log in logs.values()]
    used = {
        columns.get(field, field)
        for template, columns in named or [(changes["text"], spec.columns)]
        for field in template_fields(template)
    }
    known = list(spec.events) if isinstance(spec.events, dict) else []
    return {
        name: each
        for name, each in (spec.items or {}).items()
        if (place := split_item_key(name, known))[1] in used
        and (not logs or place[0] in (None, *logs))
    }


def select_events(task: TaskSpec, events: pd.DataFrame) -> pd.DataFrame:
    """Return the events that a rule counts, with the column `label`.

    Args:
        events: the log, its text as `target_reading` says.

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
