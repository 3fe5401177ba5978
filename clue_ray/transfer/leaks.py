"""Does a task ask for what the encoder, or its input, has already seen? Then its scores mean nothing: it is refused."""

import numpy as np
import pandas as pd

from clue_ray.corpus.store import split_of
from clue_ray.errors import SpecError
from clue_ray.transfer.examples import Examples, label_texts
from clue_ray.transfer.exported import EncoderCard
from clue_ray.transfer.tasks import TaskSpec

COPIED = 0.5
"""Share of test users whose labels all stand in their inputs, above which a service is a copy of another."""


def check_pretraining(task: TaskSpec, examples: Examples, card: EncoderCard) -> None:
    """Refuse test users that the encoder was trained on together with what is asked of them.

    It has seen it where the service asked for is one of its own, or where its training went past the cut in time. Users
    held out of its training are safe in any case: the task's split and the corpus's are prefixes of one order.

    Raises:
        SpecError: so it is.
    """
    if task.other_company or task.attribute:
        return
    test = pd.Series(examples.users[examples.rows("test")])
    if (split_of(test, card.split) != "train").all():
        return
    asked = (task.next_item.service,) if task.next_item else _pair(task)
    seen = [service for service in asked if service in card.services]
    end = card.split.time
    late = task.time is not None and (end is None or end > task.time)
    if seen or late:
        share = card.split.test + card.split.validation
        what = f"service {seen[0]!r}" if seen else f"events after {task.time:%Y-%m-%d}"
        raise SpecError(
            f"Task {task.name} leaks: encoder {card.run_id} was trained on {what} of its test users; set split.test to "
            f"at most {share:g}, the share that its training held out, or train an encoder without them."
        )


def _pair(task: TaskSpec) -> tuple[str, ...]:
    assert task.retrieval is not None
    return (task.retrieval.query, task.retrieval.target)


def check_inputs(task: TaskSpec, examples: Examples, events: pd.DataFrame) -> None:
    """Refuse a next-item task without times whose labels mostly stand in the input under another service's name.

    Raises:
        SpecError: so it is.
    """
    asked = task.next_item
    if asked is None or task.time is not None:
        return
    test = examples.users[examples.rows("test")]
    own, rows = examples.inputs.to_pandas(), events[events["service"] == asked.service]
    shown = own.assign(text=label_texts(own["text"], asked.part)).groupby("user_id")["text"].agg(set)
    last = rows.sort_values("timestamp", kind="stable").groupby("user_id")["text"].last()
    labels = label_texts(last.loc[list(test)], asked.part)
    copied = float(np.mean([label in shown[user] for user, label in labels.dropna().items()]))
    if copied > COPIED:
        raise SpecError(
            f"Task {task.name} leaks: {copied:.0%} of its test users have the item asked for among what the encoder is "
            f"shown; leave the service that repeats {asked.service!r} out of services."
        )
