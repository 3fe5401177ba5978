"""Turn the log of a task into examples: each user's inputs, target and part of the split.

If the log has times, the labels of training users are earlier than those of test users, so a head
is evaluated on other people and on a later time. Users that cannot be used are listed with reasons.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clue_ray.corpus.hashes import split_of
from clue_ray.corpus.logs.catalogue import check_joined, load_catalogues
from clue_ray.corpus.logs.items import Joined
from clue_ray.corpus.logs.reading import Reading, plan_reading, read_part
from clue_ray.corpus.logs.schema import good_rows, normalise
from clue_ray.errors import EventLogError, SpecError
from clue_ray.transfer.encode import LEFT_OUT
from clue_ray.transfer.events import EVENTS
from clue_ray.transfer.tasks.attributes import label_attribute, user_values
from clue_ray.transfer.tasks.spec import RetrievalSpec, TaskSpec
from clue_ray.transfer.tasks.windows import (
    DAY,
    label_texts,
    label_windows,
    reads_again,
    select_events,
    target_reading,
)

logger = logging.getLogger(__name__)
Say = Callable[[str], None]
MIN_USERS = 20
"""Users that each part of the split needs."""


@dataclass(frozen=True)
class Examples:
    """Users of a task, sorted by id.

    Attributes:
        inputs: events that an encoder may see, as EVENTS, of these users only.
        part: part of the split: train, validation or test, [users].
        names: labels or classes; empty for regression and for retrieval.
        targets: true labels, of which a user may have several, [users, names] of bool; or class
            numbers or values, [users]; zeros for retrieval.
        missed: number of a user's labels that are not candidates, [users].
        cuts: time at which each user's inputs end, in seconds, [users].
        multi: whether each label is a question of its own, not a candidate among others.
        left_out: users of the log that cannot be used, as LEFT_OUT, sorted by user.
        key: fingerprint of the task and its log.
    """

    users: NDArray[np.object_]
    inputs: pa.Table
    part: NDArray[np.object_]
    names: tuple[str, ...]
    targets: NDArray[Any]
    missed: NDArray[np.int64]
    left_out: pa.Table
    cuts: NDArray[np.float64]
    multi: bool = False
    key: str = ""

    def rows(self, *parts: str) -> NDArray[np.int64]:
        """Return the indices of the users in parts of the split."""
        return np.flatnonzero(np.isin(self.part, parts))


def plan_events(task: TaskSpec) -> Reading:
    """Find and check the files of a task's log.

    Raises:
        EventLogError: the log cannot be read, or lacks the times that the task needs.
    """
    reading = plan_reading(task.reading())
    if task.time and not all(log.has_time for log in reading.logs):
        raise EventLogError(
            f"Task {task.name} has a cut in time, but its log has no column 'timestamp'; leave "
            "time out."
        )
    if task.next_item and len(reading.files) > 1 and not all(log.has_time for log in reading.logs):
        raise EventLogError(
            f"Task {task.name} asks for a user's last item, but its log is {len(reading.files)} "
            "files without a column 'timestamp', so their order is unknown; give that column, or "
            "one file in order of time."
        )
    return reading


def read_events(reading: Reading, say: Say = logger.warning) -> tuple[pd.DataFrame, set[str]]:
    """Read a task's log into memory; return its events, and the users without usable rows.

    `say` is called with a sentence for each catalogue that lacks ids of the log.

    Raises:
        EventLogError: the log cannot be read, or a catalogue has none of its ids.
    """
    reading = load_catalogues(reading)
    tables: list[pa.Table] = []
    users: set[str] = set()
    joined: list[Joined] = []
    for part in reading.parts:
        log = reading.logs[part.log]
        for batch in read_part(part, log):
            rows = normalise(
                batch.table, log, reading.spec, file=part.number, first_row=batch.first_row
            )
            joined += batch.joined
            users.update(user for user in pc.unique(rows["user_id"]).to_pylist() if user)
            tables.append(good_rows(rows).select(EVENTS.names))
    for sentence in check_joined(reading, joined):
        say(sentence)
    events = pa.concat_tables([EVENTS.empty_table(), *tables]).to_pandas()
    return events, users - set(events["user_id"])


def make_examples(
    task: TaskSpec, events: pd.DataFrame, unusable: Collection[str] = (), say: Say = logger.warning
) -> Examples:
    """Turn a log into a task's examples.

    Args:
        unusable: users of the log that are not in `events`.
        say: as for `read_events`.

    Raises:
        SpecError: the log lacks what the task asks for, or a part of the split has too few users.
        EventLogError: the log has no usable row.
    """
    _check_log(task, events)
    users = events["user_id"].unique()
    part = pd.Series(split_of(pd.Series(users), task.split), index=users)
    cuts = _find_cuts(task, events, part)
    cut = events["user_id"].map(cuts)
    seen = set(task.services or set(events["service"].unique()) - set(_label_services(task)))
    inputs = events[events["service"].isin(seen) & (events["timestamp"] < cut)]
    if task.rule:
        counted = select_events(task, _read_targets(task, events, say))
        counted = counted[counted["user_id"].isin(part.index)]
        labelled, names, targets, missed = label_windows(task, counted, cuts, part)
    else:
        labelled, names, targets, missed = _label(task, events, cut, part)
    used = np.array(sorted(set(labelled) & set(inputs["user_id"].unique())), dtype=object)
    rows = pd.Index(labelled).get_indexer(pd.Index(used))
    used_inputs = inputs[inputs["user_id"].isin(used)]
    examples = Examples(
        users=used,
        inputs=pa.Table.from_pandas(used_inputs, EVENTS, preserve_index=False),
        part=part[used].to_numpy(dtype=object),
        names=names,
        targets=targets[rows],
        missed=missed[rows],
        left_out=_list_left_out(_group_left_out(task, part, unusable, labelled, used)),
        cuts=np.asarray(cuts[used], np.float64),
        multi=task.multi_label is not None,
    )
    _check_examples(task, examples)
    return examples


def draw_candidates(asked: RetrievalSpec, part: NDArray[np.object_]) -> NDArray[np.int64]:
    """Draw the test users that are queried, each among all of them; return their indices."""
    test = np.flatnonzero(part == "test")
    return np.sort(np.random.default_rng(0).permutation(test)[: asked.candidates])


def _check_log(task: TaskSpec, events: pd.DataFrame) -> None:
    """Raise EventLogError or SpecError if a log lacks rows, services or times of a task."""
    if events.empty:
        raise EventLogError(
            f"Task {task.name} has a log without a usable row; check events and columns."
        )
    found = set(events["service"].unique())
    if unknown := sorted(
        {
            *(task.services or ()),
            *_asked_services(task),
            *((task.rule and task.rule.services) or ()),
        }
        - found
    ):
        raise SpecError(
            f"Task {task.name} names service {unknown[0]!r}, which its log lacks; its services are "
            f"{', '.join(sorted(found))}."
        )
    if task.time is None:
        return
    cut = task.time.timestamp()
    first, last = float(events["timestamp"].min()), float(events["timestamp"].max())
    if task.rule:
        _check_window(task, cut, first, last)
    if first >= cut or (task.next_item and last < cut):
        begin, end = (f"{pd.Timestamp(second, unit='s'):%Y-%m-%d}" for second in (first, last))
        raise SpecError(
            f"Task {task.name} has its cut in time at {task.time:%Y-%m-%d}, but its log is from "
            f"{begin} to {end}; choose a time within."
        )


def _check_window(task: TaskSpec, cut: float, first: float, last: float) -> None:
    """Raise SpecError if the windows of test or training users lie outside the log."""
    days = task.window_days or 0
    # The log may end in the last day of the window: nobody exports until midnight.
    if first >= cut - days * DAY or last < cut + (days - 1) * DAY:
        begin, end = (f"{pd.Timestamp(second, unit='s'):%Y-%m-%d}" for second in (first, last))
        raise SpecError(
            f"Task {task.name} has windows of {days} days before and after its cut at "
            f"{task.time:%Y-%m-%d}, but its log is from {begin} to {end}; choose another time or "
            "fewer days."
        )


def _read_targets(task: TaskSpec, events: pd.DataFrame, say: Say) -> pd.DataFrame:
    """Return the events that targets are built from: the log again, if its rule needs columns."""
    if not reads_again(task):
        return events
    return read_events(plan_reading(target_reading(task), numbers=True), say)[0]


def _group_left_out(
    task: TaskSpec,
    part: "pd.Series[Any]",
    unusable: Collection[str],
    labelled: Collection[str],
    used: NDArray[Any],
) -> dict[str, Collection[str]]:
    """Group the users that are left out by reason.

    Args:
        part: part of the split of each user with events, indexed by user.
        labelled: users with a label.
        used: users with a label and inputs.
    """
    reasons: dict[str, Collection[str]] = {}
    if task.attribute:
        known = {*part.index, *unusable}
        reasons["no events in the log"] = set(user_values(task.attribute).index) - known
    reasons["no usable row"] = unusable
    no_label = "not in both services" if task.retrieval else "no label"
    no_label = "not active before the window" if task.churn else no_label
    reasons[no_label] = set(part.index) - set(labelled)
    reasons["no events that the encoder may see"] = set(labelled) - set(used)
    if task.retrieval:
        parts = part[used].to_numpy(dtype=object)
        not_drawn = parts == "test"
        not_drawn[draw_candidates(task.retrieval, parts)] = False
        # Users that are not scored still count for the frequency of words in TF-IDF.
        reasons["not a test user"] = set(used[parts != "test"])
        reasons["not drawn as a candidate"] = set(used[not_drawn])
    return reasons


def _list_left_out(reasons: Mapping[str, Collection[str]]) -> pa.Table:
    """Build the table LEFT_OUT from users grouped by reason, sorted by user."""
    rows = sorted((user, reason) for reason, users in reasons.items() for user in users)
    return pa.table(
        [pa.array(column, pa.string()) for column in zip(*rows, strict=True)] or [[], []], LEFT_OUT
    )


def _asked_services(task: TaskSpec) -> tuple[str, ...]:
    if task.retrieval:
        return (task.retrieval.query, task.retrieval.target)
    if task.rule:
        return task.rule.services or ()
    return _label_services(task)


def _label_services(task: TaskSpec) -> tuple[str, ...]:
    return (task.next_item.service,) if task.next_item else ()


def _find_cuts(task: TaskSpec, events: pd.DataFrame, part: "pd.Series[Any]") -> "pd.Series[float]":
    """Return the time at which each user's inputs end, in seconds, indexed by user.

    With `days`, the inputs of training and validation users end `days` earlier, so that their
    labels, too, lie before the cut. Without a cut in time, inputs end before the item that is the
    label, because later events may reveal it.
    """
    if task.next_item and not task.time:
        asked = events[events["service"] == task.next_item.service]
        return asked.groupby("user_id")["timestamp"].max().reindex(part.index).fillna(np.inf)
    cuts = pd.Series(task.time.timestamp() if task.time else np.inf, index=part.index)
    if task.window_days:
        cuts[part != "test"] -= task.window_days * DAY
    return cuts


def _label(
    task: TaskSpec, events: pd.DataFrame, cut: "pd.Series[float]", part: "pd.Series[Any]"
) -> tuple[list[str], tuple[str, ...], NDArray[Any], NDArray[np.int64]]:
    """Return users with a label, names of the labels, targets, and counts of missed labels.

    See `Examples`. The arrays are in the order of the users.
    """
    if task.attribute:
        return label_attribute(task.attribute, part)
    if task.retrieval:
        services = events[events["timestamp"] < cut].groupby("user_id")["service"].agg(set)
        pair = set(_asked_services(task))
        both = [str(user) for user, found in services.items() if pair <= found]
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
            f"event of {asked.service} has; a text is for example {rows['text'].iloc[0]!r}."
        )
    pairs = pd.DataFrame({"user": rows["user_id"], "label": text}).dropna().drop_duplicates()
    counts = pairs[pairs["user"].map(part) == "train"]["label"].value_counts()
    names = tuple(sorted(counts[counts >= asked.min_users].index))
    users = sorted(pairs["user"].unique())
    row = pd.Index(users).get_indexer(pairs["user"])
    column = pd.Index(names).get_indexer(pairs["label"])  # -1 if a label is not a candidate
    targets = np.zeros((len(users), len(names)), dtype=bool)
    targets[row[column >= 0], column[column >= 0]] = True
    return users, names, targets, np.bincount(row[column < 0], minlength=len(users))


def _check_examples(task: TaskSpec, examples: Examples) -> None:
    """Raise SpecError if a part of the split has too few users, or too few labels or classes."""
    for part in ("test",) if task.retrieval else ("test", "validation", "train"):
        users = len(examples.rows(part))
        if users < MIN_USERS:
            remedy = "lower" if part == "train" else "raise"
            raise SpecError(
                f"Task {task.name} has {users} users of part {part} with inputs and a label, fewer "
                f"than {MIN_USERS}; {remedy} split.{'test' if part == 'train' else part}, or give "
                "a larger log."
            )
    if task.attribute or task.churn or task.regression:
        what = task.attribute.column if task.attribute else f"{task.kind} target"
        _check_classes(task.name, what, examples)
    if task.multi_label:
        _check_labels(task, examples)
    if task.next_item and len(examples.names) < 2:
        raise SpecError(
            f"Task {task.name} has {len(examples.names)} labels that {task.next_item.min_users} "
            "training users have, fewer than 2; lower next_item.min_users, or give next_item.part."
        )
    if task.next_item and not examples.targets[examples.rows("validation")].any():
        raise SpecError(
            f"Task {task.name} has no validation user with a label that {task.next_item.min_users} "
            "training users have; raise split.validation, lower next_item.min_users, or give "
            "next_item.part."
        )


def _check_labels(task: TaskSpec, examples: Examples) -> None:
    """Raise SpecError if test users differ in no label."""
    shares = examples.targets[examples.rows("test")].mean(0)
    if not ((shares > 0) & (shares < 1)).any():
        raise SpecError(
            f"Task {task.name} has one class: all test users have the same {len(shares)} labels; "
            "give a longer window, more labels, or a larger split.test."
        )


def _check_classes(task: str, column: str, examples: Examples) -> None:
    """Raise SpecError if an attribute has one value in a part, or a class only test users have."""
    for part in ("train", "test"):
        values = examples.targets[examples.rows(part)]
        if len(np.unique(values)) < 2:
            only = examples.names[int(values[0])] if examples.names else float(values[0])
            raise SpecError(
                f"Task {task} has one class: all {part} users have {column} {only!r}; give a "
                "column with more than one value."
            )
    if not examples.names:
        return
    train, test = (
        set(examples.targets[examples.rows(part)].tolist()) for part in ("train", "test")
    )
    if new := sorted(test - train):
        raise SpecError(
            f"Task {task} has test users with {column} {examples.names[new[0]]!r}, which no "
            f"training user has, one of {len(examples.names)} classes; give attribute.positive, or "
            "a column of numbers or of fewer classes."
        )
