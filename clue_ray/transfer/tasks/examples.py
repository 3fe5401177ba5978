"""A task's log to examples: each user's inputs, labels and part of the split, with what cannot be
used and why.

Takes a task, gives `Examples`. One idea: a training user's labels lie before the test users' (where
there are times), so that the head is judged on other people and on a later time.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clue_ray.corpus.logs.reading import Reading, plan_reading, read_part
from clue_ray.corpus.logs.schema import good_rows, normalise
from clue_ray.corpus.store import split_of
from clue_ray.errors import EventLogError, SpecError
from clue_ray.transfer.encode import EVENTS, LEFT_OUT
from clue_ray.transfer.tasks.attributes import label_attribute, user_values
from clue_ray.transfer.tasks.spec import RetrievalSpec, TaskSpec

DAY = 86_400.0
FEWEST = 20
"""Users a part of the split needs."""


@dataclass(frozen=True)
class Examples:
    """Users of a task, sorted by id.

    Attributes:
        inputs: rows of EVENTS that an encoder may see, of these users alone.
        part: train, validation or test, [users].
        names: labels or classes; empty for a regression and for retrieval.
        targets: what is true of each user: labels a user may have several of, [users, names] of
            bool; else class numbers or values, [users]; for retrieval nothing.
        left_out: users of the log that cannot be used, rows of LEFT_OUT by user.
    """

    users: NDArray[np.object_]
    inputs: pa.Table
    part: NDArray[np.object_]
    names: tuple[str, ...]
    targets: NDArray[Any]
    missed: NDArray[np.int64]
    "labels of a user that are no candidates, [users]"
    left_out: pa.Table
    key: str = ""
    "fingerprint of the task and its log"

    def rows(self, *parts: str) -> NDArray[np.int64]:
        """List the users of some parts of the split, by index."""
        return np.flatnonzero(np.isin(self.part, parts))


def plan_events(task: TaskSpec) -> Reading:
    """Find and check the files of a task's log; raise EventLogError for one that cannot serve."""
    reading = plan_reading(task.reading())
    if task.time and not all(log.has_time for log in reading.logs):
        raise EventLogError(
            f"Task {task.name} cuts in time, but its log has no column 'timestamp'; leave time out."
        )
    if task.next_item and len(reading.files) > 1 and not all(log.has_time for log in reading.logs):
        raise EventLogError(
            f"Task {task.name} asks for a user's last item, but its log is {len(reading.files)} "
            f"files without a column "
            "'timestamp', whose order says nothing of time; give that column, or one file in order."
        )
    return reading


def read_events(reading: Reading) -> tuple[pd.DataFrame, set[str]]:
    """Read a task's whole log into memory, in the order of the log, and name users none of whose
    rows can be used.
    """
    tables: list[pa.Table] = []
    met: set[str] = set()
    for part in reading.parts:
        log = reading.logs[part.log]
        for batch in read_part(part, log):
            rows = normalise(
                batch.table, log, reading.spec, file=part.number, first_row=batch.first_row
            )
            met.update(user for user in pc.unique(rows["user_id"]).to_pylist() if user)
            tables.append(good_rows(rows).select(EVENTS.names))
    events = pa.concat_tables([EVENTS.empty_table(), *tables]).to_pandas()
    return events, met - set(events["user_id"])


def make_examples(task: TaskSpec, events: pd.DataFrame, unusable: Collection[str] = ()) -> Examples:
    """Turn a log into a task's examples.

    Args:
        unusable: users of the log that are not in `events`.

    Raises:
        SpecError: the log has none of what the task asks for, or too few users of a part of the
            split.
        EventLogError: it has no row that can be used.
    """
    if events.empty:
        raise EventLogError(
            f"Task {task.name} has a log without a row that can be used; look at events and "
            f"columns."
        )
    found = set(events["service"].unique())
    asked = {*(task.services or ()), *_services_asked(task)}
    if unknown := sorted(asked - found):
        raise SpecError(
            f"Task {task.name} names service {unknown[0]!r}, which its log lacks; its services are "
            f"{', '.join(sorted(found))}."
        )
    _check_cut(task, events)
    part = pd.Series(
        split_of(pd.Series(events["user_id"].unique()), task.split),
        index=events["user_id"].unique(),
    )
    cut = events["user_id"].map(_cuts(task, events, part))
    shown = set(task.services or found - set(_services_hidden(task)))
    inputs = events[events["service"].isin(shown) & (events["timestamp"] < cut)]
    labelled, names, targets, missed = _label(task, events, cut, part)
    users = np.array(sorted(set(labelled) & set(inputs["user_id"].unique())), dtype=object)
    index = pd.Index(labelled).get_indexer(pd.Index(users))
    known = {*part.index, *unusable}
    strangers = (
        {user for user in user_values(task.attribute).index if user not in known}
        if task.attribute
        else set()
    )
    reasons = {
        "no events in the log": strangers,
        "no row that can be used": unusable,
        "not in both services" if task.retrieval else "no label": set(part.index) - set(labelled),
        "no events that the encoder may see": set(labelled) - set(users),
        **(
            _not_sought(task.retrieval, users, part[users].to_numpy(dtype=object))
            if task.retrieval
            else {}
        ),
    }
    examples = Examples(
        users=users,
        inputs=pa.Table.from_pandas(
            inputs[inputs["user_id"].isin(users)], EVENTS, preserve_index=False
        ),
        part=part[users].to_numpy(dtype=object),
        names=names,
        targets=targets[index],
        missed=missed[index],
        left_out=_list_left_out(reasons),
    )
    _check_parts(task, examples)
    return examples


def draw_candidates(asked: RetrievalSpec, part: NDArray[np.object_]) -> NDArray[np.int64]:
    """Draw the test users who are sought, and among whom, by index."""
    test = np.flatnonzero(part == "test")
    return np.sort(np.random.default_rng(0).permutation(test)[: asked.candidates])


def _not_sought(
    asked: RetrievalSpec, users: NDArray[np.object_], part: NDArray[np.object_]
) -> dict[str, set[str]]:
    """List users of both services who are not scored, by reason; they still say how rare a word
    is.
    """
    others = np.ones(len(users), dtype=bool)
    others[draw_candidates(asked, part)] = False
    return {
        "not a test user": set(users[part != "test"]),
        "not drawn as a candidate": set(users[others & (part == "test")]),
    }


def _list_left_out(reasons: Mapping[str, Collection[str]]) -> pa.Table:
    """Lay out users by reason as rows of LEFT_OUT, sorted by user."""
    rows = sorted((user, reason) for reason, users in reasons.items() for user in users)
    return pa.table(
        [pa.array(column, pa.string()) for column in zip(*rows, strict=True)] or [[], []], LEFT_OUT
    )


def _check_cut(task: TaskSpec, events: pd.DataFrame) -> None:
    """Refuse a cut in time with no events before it, or of a next-item task none from it on; raise
    SpecError.
    """
    if task.time is None:
        return
    cut, first, last = (
        task.time.timestamp(),
        float(events["timestamp"].min()),
        float(events["timestamp"].max()),
    )
    if first >= cut or (task.next_item and last < cut):
        begin, end = (f"{pd.Timestamp(second, unit='s'):%Y-%m-%d}" for second in (first, last))
        raise SpecError(
            f"Task {task.name} cuts at {task.time:%Y-%m-%d}, but its log goes from {begin} to "
            f"{end}; choose a "
            "time within."
        )


def _services_asked(task: TaskSpec) -> tuple[str, ...]:
    if task.retrieval:
        return (task.retrieval.query, task.retrieval.target)
    return _services_hidden(task)


def _services_hidden(task: TaskSpec) -> tuple[str, ...]:
    return (task.next_item.service,) if task.next_item else ()


def _cuts(task: TaskSpec, events: pd.DataFrame, part: "pd.Series[Any]") -> "pd.Series[float]":
    """Say when each user's inputs end, in seconds; of users the head learns from, `days` before the
    others'.

    Without a cut in time they end before the item that is the label: what came after it may tell of
    it.
    """
    if task.next_item and not task.time:
        asked = events[events["service"] == task.next_item.service]
        return asked.groupby("user_id")["timestamp"].max().reindex(part.index).fillna(np.inf)
    cuts = pd.Series(task.time.timestamp() if task.time else np.inf, index=part.index)
    if task.next_item and task.next_item.days:
        cuts[part != "test"] -= task.next_item.days * DAY
    return cuts


def _label(
    task: TaskSpec, events: pd.DataFrame, cut: "pd.Series[float]", part: "pd.Series[Any]"
) -> tuple[list[str], tuple[str, ...], NDArray[Any], NDArray[np.int64]]:
    """Return the users that have a label, the names of labels, the targets, and how many labels are
    no candidates.
    """
    if task.attribute:
        return label_attribute(task.attribute, part)
    if task.retrieval:
        pair = events[events["timestamp"] < cut].groupby("user_id")["service"].agg(set)
        both = [
            str(user) for user, services in pair.items() if {*_services_asked(task)} <= services
        ]
        return both, (), np.zeros(len(both)), np.zeros(len(both), dtype=np.int64)
    return _label_next(task, events, cut, part)


def _label_next(
    task: TaskSpec, events: pd.DataFrame, cut: "pd.Series[float]", part: "pd.Series[Any]"
) -> tuple[list[str], tuple[str, ...], NDArray[Any], NDArray[np.int64]]:
    asked = task.next_item
    assert asked is not None
    rows = events[events["service"] == asked.service].assign(cut=cut)
    if task.time:
        rows = rows[rows["timestamp"] >= rows["cut"]]
        rows = rows[rows["timestamp"] < rows["cut"] + (asked.days or np.inf) * DAY]
    else:
        rows = rows.sort_values("timestamp", kind="stable").groupby("user_id").tail(1)
    text = label_texts(rows["text"], asked.part)
    if len(text) and text.isna().all():
        raise SpecError(
            f"Task {task.name} asks for part {asked.part} of the text, split at ';', which no "
            f"event of "
            f"{asked.service} has; such as {rows['text'].iloc[0]!r}."
        )
    pairs = pd.DataFrame({"user": rows["user_id"], "label": text}).dropna().drop_duplicates()
    counts = pairs[pairs["user"].map(part) == "train"]["label"].value_counts()
    names = tuple(sorted(counts[counts >= asked.min_users].index))
    users = sorted(pairs["user"].unique())
    column, row = (
        pd.Index(names).get_indexer(pairs["label"]),
        pd.Index(users).get_indexer(pairs["user"]),
    )
    targets = np.zeros((len(users), len(names)), dtype=bool)
    targets[row[column >= 0], column[column >= 0]] = True
    return users, names, targets, np.bincount(row[column < 0], minlength=len(users))


def label_texts(text: "pd.Series[str]", part: int | None) -> "pd.Series[str]":
    """Cut texts to the part that is the label, null where a text has none; or give them whole."""
    if part is None:
        return text
    parts = text.str.split(";").map(
        lambda found: found[part - 1].strip() if len(found) >= part else ""
    )
    return parts.where(parts != "")


def _check_parts(task: TaskSpec, examples: Examples) -> None:
    """Refuse a task with too few users in a part of the split, or with nothing to tell apart.

    Raises:
        SpecError: so it is.
    """
    for part in ("test",) if task.retrieval else ("test", "validation", "train"):
        users = len(examples.rows(part))
        if users < FEWEST:
            remedy = "lower" if part == "train" else "raise"
            raise SpecError(
                f"Task {task.name} has {users} users of part {part} with inputs and a label, fewer "
                f"than {FEWEST}; "
                f"{remedy} split.{'test' if part == 'train' else part}, or give a larger log."
            )
    if task.attribute:
        _check_classes(task.name, task.attribute.column, examples)
    if task.next_item and len(examples.names) < 2:
        raise SpecError(
            f"Task {task.name} has {len(examples.names)} labels that {task.next_item.min_users} "
            f"training users have; "
            "lower next_item.min_users, or give next_item.part."
        )
    if task.next_item and not examples.targets[examples.rows("validation")].any():
        raise SpecError(
            f"Task {task.name} has no validation user with a label that {task.next_item.min_users} "
            f"training users "
            "have; raise split.validation, lower next_item.min_users, or give next_item.part."
        )


def _check_classes(task: str, column: str, examples: Examples) -> None:
    """Refuse an attribute that is the same for all users of a part of the split; raise
    SpecError.
    """
    for part in ("train", "test"):
        values = examples.targets[examples.rows(part)]
        if len(np.unique(values)) < 2:
            only = examples.names[int(values[0])] if examples.names else float(values[0])
            raise SpecError(
                f"Task {task} has one class: all {part} users have {column} {only!r}; give a "
                f"column that tells users "
                "apart."
            )
    if not examples.names:
        return
    train, test = (
        set(examples.targets[examples.rows(part)].tolist()) for part in ("train", "test")
    )
    if new := sorted(test - train):
        raise SpecError(
            f"Task {task} has test users with {column} {examples.names[new[0]]!r}, which no "
            f"training user has, one of "
            f"{len(examples.names)} classes; give attribute.positive, or a column of numbers or of "
            f"fewer classes."
        )
