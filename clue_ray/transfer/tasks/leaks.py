"""Does a task ask for what the encoder, or its input, has already seen? Then its scores mean
nothing: it is refused.
"""

import re
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import ks_2samp

from clue_ray.corpus.store import split_of
from clue_ray.errors import SpecError
from clue_ray.transfer.encoder_file import EncoderCard
from clue_ray.transfer.tasks.attributes import user_values
from clue_ray.transfer.tasks.examples import FEWEST, Examples, label_texts
from clue_ray.transfer.tasks.features import word_counts
from clue_ray.transfer.tasks.spec import AttributeSpec, NextItemSpec, TaskSpec

COPIED = 0.5
"""Share of test users whose labels all stand in their inputs, above which a service is a copy of
another; of values, by how much more users' inputs hold their own than another's."""
MOST_VALUES = 100
"""Values of an attribute that are looked at as classes, those of most users."""
NUMBER = re.compile(r"\d+(?:\.\d+)?")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
PUNCTUATION = re.compile(r"[^\w.]+|\.(?!\d)")
TOLD = 0.9
"""By how much a class may have a word more, or less, often than all others, above which the word
says the class."""


def check_pretraining(task: TaskSpec, examples: Examples, card: EncoderCard) -> None:
    """Refuse test users that the encoder was trained on together with what is asked of them.

    It has seen it where the service asked for is one of its own, or where its training went past
    the cut in time. Users
    held out of its training are safe in any case: the task's split and the corpus's are prefixes of
        one order.

    Raises:
        SpecError: so it is.
    """
    if task.other_company:
        return
    test = pd.Series(examples.users[examples.rows("test")])
    if (split_of(test, card.split) != "train").all():
        return
    asked = (task.next_item.service,) if task.next_item else _pair(task) if task.retrieval else ()
    seen = [service for service in asked if service in card.services]
    end = card.split.time
    late = task.time is not None and (end is None or end > task.time)
    if seen or late:
        share = card.split.test + card.split.validation
        what = f"service {seen[0]!r}" if seen else f"events after {task.time:%Y-%m-%d}"
        raise SpecError(
            f"Task {task.name} leaks: encoder {card.run_id} was trained on {what} of its test "
            f"users; set split.test to "
            f"at most {share:g}, the share that its training held out, or train an encoder without "
            f"them."
        )


def _pair(task: TaskSpec) -> tuple[str, ...]:
    assert task.retrieval is not None
    return (task.retrieval.query, task.retrieval.target)


def check_inputs(task: TaskSpec, examples: Examples, events: pd.DataFrame) -> None:
    """Refuse a task whose labels stand in the inputs: of a next-item task without times, under
    another service's name.

    Raises:
        SpecError: so it is.
    """
    if task.attribute:
        _check_words(task.name, task.attribute, examples)
    if task.next_item and task.time is None:
        _check_copies(task.name, task.next_item, examples, events)


def _check_copies(task: str, asked: NextItemSpec, examples: Examples, events: pd.DataFrame) -> None:
    """Refuse last items that mostly stand in the inputs under another service's name; raise
    SpecError.
    """
    test = examples.users[examples.rows("test")]
    own, rows = examples.inputs.to_pandas(), events[events["service"] == asked.service]
    shown = (
        own.assign(text=label_texts(own["text"], asked.part)).groupby("user_id")["text"].agg(set)
    )
    last = rows.sort_values("timestamp", kind="stable").groupby("user_id")["text"].last()
    labels = label_texts(last.loc[list(test)], asked.part)
    copied = float(np.mean([label in shown[user] for user, label in labels.dropna().items()]))
    if copied > COPIED:
        raise SpecError(
            f"Task {task} leaks: {copied:.0%} of its test users have the item asked for among what "
            f"the encoder is "
            f"shown; leave the service that repeats {asked.service!r} out of services."
        )


def _check_words(task: str, asked: AttributeSpec, examples: Examples) -> None:
    """Refuse an attribute that stands in the inputs; raise SpecError.

    A word gives a class away where its users have it so much more often than all others, or less,
    that the shares differ by TOLD (Youden 1950), and by more than any number of words would tell:
    who buys all has every word. Classes are those of the task and the table's own values; of few
    users some word tells them apart by chance. Of numbers, the value itself must not stand there.
    """
    own = user_values(asked).reindex(examples.users)
    present, words = _user_words(examples, lambda text: f"{text} {PUNCTUATION.sub(' ', text)}")
    count = present.sum(axis=1)
    classes = {name: examples.targets == number for number, name in enumerate(examples.names)}
    classes |= {
        str(value): (own == value).to_numpy() for value in own.value_counts().index[:MOST_VALUES]
    }
    for name, members in classes.items():
        if min(members.sum(), (~members).sum()) < FEWEST:
            continue
        told = np.abs(present[members].mean(axis=0) - present[~members].mean(axis=0))
        if told.max() > max(TOLD, ks_2samp(count[members], count[~members]).statistic):
            raise SpecError(
                f"Task {task} leaks: users of {asked.column} {name!r} and others are told apart by "
                f"the word "
                f"{words[told.argmax()]!r} in their texts (shares differ by {told.max():.0%}); "
                f"leave that part of the "
                "text, or that service, out."
            )
    if not examples.names and (copied := _share_copied(examples)) > COPIED:
        raise SpecError(
            f"Task {task} leaks: the texts of {copied:.0%} of its users hold their value of "
            f"{asked.column}, beyond "
            "chance; leave that part of the text out."
        )


def _user_words(
    examples: Examples, spell: Callable[[str], str]
) -> tuple[sparse.csr_array, NDArray[np.object_]]:
    """Say which words the inputs of each user hold, as they are spelled, [users, words], and the
    words.
    """
    codes, texts = pd.factorize(examples.inputs["text"].to_numpy(zero_copy_only=False))
    rows = pd.Index(examples.users).get_indexer(pd.Index(examples.inputs["user_id"].to_pandas()))
    taken = sparse.csr_array(
        (np.ones(len(rows)), (rows, codes)), shape=(len(examples.users), len(texts))
    )
    counts, words = word_counts([spell(text) for text in texts])
    return sparse.csr_array((taken @ counts > 0).astype(np.float64)), words


def _share_copied(examples: Examples) -> float:
    """Return how many more users' inputs hold their own value, perhaps rounded, than another's, as
    a share.
    """
    present, numbers = _user_words(examples, _spell_numbers)
    column_of = pd.Index(numbers.astype(np.float64))
    other = np.random.default_rng(0).permutation(len(examples.users))

    def lead(values: NDArray[np.float64]) -> float:
        columns = column_of.get_indexer(pd.Index(values))
        holding = [
            present[np.flatnonzero(of >= 0), of[of >= 0]].sum() for of in (columns, columns[other])
        ]
        return float(holding[0] - holding[1]) / len(values)

    values = np.abs(examples.targets)
    return max(lead(values), *(lead(values.round(digits)) for digits in range(3)))


def _spell_numbers(text: str) -> str:
    """Keep the numbers of a text alone, without signs and separators of thousands: 1,234.50 is
    1234.5.
    """
    return " ".join(str(float(number)) for number in NUMBER.findall(THOUSANDS.sub("", text)))
