"""Does a task ask for what the encoder, or its input, has already seen? Then its scores mean nothing: it is refused."""

import re

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from clue_ray.corpus.store import split_of
from clue_ray.errors import SpecError
from clue_ray.transfer.examples import FEWEST, Examples, label_texts
from clue_ray.transfer.exported import EncoderCard
from clue_ray.transfer.features import word_counts
from clue_ray.transfer.tasks import NextItemSpec, TaskSpec

COPIED = 0.5
"""Share of test users whose labels all stand in their inputs, above which a service is a copy of another; of values,
by how much more users' inputs hold their own than another's."""
PUNCTUATION = re.compile(r"[^\w.]+|\.(?!\d)")
TOLD = 0.9
"""By how much a class may have a word more, or less, often than all others, above which the word says the class."""


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
    """Refuse a task whose labels stand in the inputs: of a next-item task without times, under another service's name.

    Raises:
        SpecError: so it is.
    """
    if task.attribute:
        check_words(task.name, task.attribute.column, examples)
    if task.next_item and task.time is None:
        check_copies(task.name, task.next_item, examples, events)


def check_copies(task: str, asked: NextItemSpec, examples: Examples, events: pd.DataFrame) -> None:
    """Refuse last items that mostly stand in the inputs under another service's name; raise SpecError."""
    test = examples.users[examples.rows("test")]
    own, rows = examples.inputs.to_pandas(), events[events["service"] == asked.service]
    shown = own.assign(text=label_texts(own["text"], asked.part)).groupby("user_id")["text"].agg(set)
    last = rows.sort_values("timestamp", kind="stable").groupby("user_id")["text"].last()
    labels = label_texts(last.loc[list(test)], asked.part)
    copied = float(np.mean([label in shown[user] for user, label in labels.dropna().items()]))
    if copied > COPIED:
        raise SpecError(
            f"Task {task} leaks: {copied:.0%} of its test users have the item asked for among what the encoder is "
            f"shown; leave the service that repeats {asked.service!r} out of services."
        )


def check_words(task: str, column: str, examples: Examples) -> None:
    """Refuse an attribute that a word of the inputs gives away; raise SpecError.

    Of classes that is a word which one class has and the others lack (Youden 1950: a difference of shares of TOLD); of
    values, the value itself. Classes of few users are left alone: some word tells them apart by chance.
    """
    present, words = user_words(examples)
    if examples.names:
        for number, name in enumerate(examples.names):
            own = examples.targets == number
            if min(own.sum(), (~own).sum()) < FEWEST:
                continue
            told = np.abs(present[own].mean(axis=0) - present[~own].mean(axis=0))
            if told.max() > TOLD:
                raise SpecError(
                    f"Task {task} leaks: users of {column} {name!r} and others are told apart by the word "
                    f"{words[told.argmax()]!r} in their texts (shares differ by {told.max():.0%}); leave that part of "
                    "the text, or that service, out."
                )
        return
    copied = share_copied(examples.targets, present, words)
    if copied > COPIED:
        raise SpecError(
            f"Task {task} leaks: the texts of {copied:.0%} of its users hold their value of {column}, beyond chance; "
            "leave that part of the text out."
        )


def user_words(examples: Examples) -> tuple[sparse.csr_array, NDArray[np.object_]]:
    """Say which words the inputs of each user hold, [users, words], and the words."""
    codes, texts = pd.factorize(examples.inputs["text"].to_numpy(zero_copy_only=False))
    rows = pd.Index(examples.users).get_indexer(pd.Index(examples.inputs["user_id"].to_pandas()))
    taken = sparse.csr_array((np.ones(len(rows)), (rows, codes)), shape=(len(examples.users), len(texts)))
    counts, words = word_counts([PUNCTUATION.sub(" ", text) for text in texts])
    return sparse.csr_array((taken @ counts > 0).astype(np.float64)), words


def share_copied(values: NDArray[np.float64], present: sparse.csr_array, words: NDArray[np.object_]) -> float:
    """Return how many more users' inputs hold their own value than another's, as a share."""
    spelled = [np.format_float_positional(value, trim="-") for value in values]
    columns = pd.Index(words).get_indexer(pd.Index(spelled))

    def holding(of: NDArray[np.int64]) -> float:
        return float(present[np.flatnonzero(of >= 0), of[of >= 0]].sum() / len(of))

    return holding(columns) - holding(np.random.default_rng(0).permutation(columns))
