"""Checks for leaks: a target that the encoder was trained on, or that its inputs contain.

The scores of such a task would be meaningless, so it is refused.
"""

import re
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import ks_2samp

from clue_ray.corpus.hashes import split_of
from clue_ray.errors import SpecError
from clue_ray.transfer.encoder_file import EncoderCard
from clue_ray.transfer.tasks.attributes import user_values
from clue_ray.transfer.tasks.examples import MIN_USERS, Examples, label_texts
from clue_ray.transfer.tasks.features import word_counts
from clue_ray.transfer.tasks.spec import AttributeSpec, NextItemSpec, TaskSpec

MAX_COPIED = 0.5
"""Largest share of test users with inputs that contain their labels.

Above it, a service counts as a copy of another. For values, it is the share of users with inputs
that contain their own value, minus the share of those that contain another user's.
"""
MAX_DIFFERENCE = 0.9
"""Largest difference between the shares of a class's users and of all others that have a word."""
MAX_VALUES = 100
"""Values of an attribute that are checked as classes, the most frequent ones."""
NUMBER = re.compile(r"\d+(?:\.\d+)?")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
PUNCTUATION = re.compile(r"[^\w.]+|\.(?!\d)")


def check_pretraining(task: TaskSpec, examples: Examples, card: EncoderCard) -> None:
    """Check that an encoder was not trained on the targets of test users.

    It was, if a service of the target is one of its own, or if its training data is later than the
    cut in time. Users that its corpus held out are safe in any case. The splits of task and corpus
    use the same hash of the user id, so the test users of a smaller share are among them.

    Raises:
        SpecError: the encoder was trained on targets of test users.
    """
    if task.other_company:
        return
    test = pd.Series(examples.users[examples.rows("test")])
    if (split_of(test, card.split) != "train").all():
        return
    seen = [service for service in _target_services(task) if service in card.services]
    end = card.split.time
    late = task.time is not None and (end is None or end > task.time)
    if seen or late:
        share = card.split.test + card.split.validation
        what = f"service {seen[0]!r}" if seen else f"events after {task.time:%Y-%m-%d}"
        raise SpecError(
            f"Task {task.name} leaks: encoder {card.run_id} was trained on {what} of its test "
            f"users; set split.test to at most {share:g}, the share that its training held out, or "
            "train an encoder without them."
        )


def _target_services(task: TaskSpec) -> tuple[str, ...]:
    if task.next_item:
        return (task.next_item.service,)
    if task.retrieval:
        return (task.retrieval.query, task.retrieval.target)
    return ()


def check_inputs(task: TaskSpec, examples: Examples, events: pd.DataFrame) -> None:
    """Check that the inputs of a task do not contain its labels.

    Raises:
        SpecError: the inputs contain the attribute, or the last items as events of another service.
    """
    if task.attribute:
        _check_words(task.name, task.attribute, examples)
    if task.next_item and task.time is None:
        _check_copies(task.name, task.next_item, examples, events)


def _check_copies(task: str, asked: NextItemSpec, examples: Examples, events: pd.DataFrame) -> None:
    """Raise SpecError if the inputs contain most last items, as events of another service."""
    test = examples.users[examples.rows("test")]
    inputs, rows = examples.inputs.to_pandas(), events[events["service"] == asked.service]
    inputs["text"] = label_texts(inputs["text"], asked.part)
    shown = inputs.groupby("user_id")["text"].agg(set)
    last = rows.sort_values("timestamp", kind="stable").groupby("user_id")["text"].last()
    labels = label_texts(last.loc[list(test)], asked.part)
    copied = float(np.mean([label in shown[user] for user, label in labels.dropna().items()]))
    if copied > MAX_COPIED:
        raise SpecError(
            f"Task {task} leaks: the inputs of {copied:.0%} of its test users contain their label; "
            f"leave the service that repeats {asked.service!r} out of services."
        )


def _check_words(task: str, asked: AttributeSpec, examples: Examples) -> None:
    """Raise SpecError if the inputs contain an attribute.

    A word reveals a class if the share of the class's users with the word and that of all others
    differ by more than MAX_DIFFERENCE (Youden 1950). They must also differ by more than the counts
    of words do, because a user of many events has every word. Classes are those of the task and
    the table's own values. A number is revealed if the texts contain the value itself.
    """
    own = user_values(asked).reindex(examples.users)
    present, words = _user_words(examples, lambda text: f"{text} {PUNCTUATION.sub(' ', text)}")
    count = present.sum(axis=1)
    classes = {name: examples.targets == number for number, name in enumerate(examples.names)}
    classes |= {
        str(value): (own == value).to_numpy() for value in own.value_counts().index[:MAX_VALUES]
    }
    for name, members in classes.items():
        if min(members.sum(), (~members).sum()) < MIN_USERS:
            continue  # some word separates a few users from all others by chance
        difference = np.abs(present[members].mean(axis=0) - present[~members].mean(axis=0))
        by_count = ks_2samp(count[members], count[~members]).statistic
        if difference.max() > max(MAX_DIFFERENCE, by_count):
            raise SpecError(
                f"Task {task} leaks: the word {words[difference.argmax()]!r} in the texts tells "
                f"users of {asked.column} {name!r} from all others (shares differ by "
                f"{difference.max():.0%}); leave that part of the text, or that service, out."
            )
    if not examples.names and (copied := _share_copied(examples)) > MAX_COPIED:
        raise SpecError(
            f"Task {task} leaks: the texts of {copied:.0%} of its users, beyond chance, contain "
            f"their value of {asked.column}; leave that part of the text out."
        )


def _user_words(
    examples: Examples, spell: Callable[[str], str]
) -> tuple[sparse.csr_array, NDArray[np.object_]]:
    """Return whether the inputs of users contain words, [users, words], and the words.

    Args:
        spell: applied to each text before it is split into words.
    """
    codes, texts = pd.factorize(examples.inputs["text"].to_numpy(zero_copy_only=False))
    rows = pd.Index(examples.users).get_indexer(pd.Index(examples.inputs["user_id"].to_pandas()))
    taken = sparse.csr_array(
        (np.ones(len(rows)), (rows, codes)), shape=(len(examples.users), len(texts))
    )
    counts, words = word_counts([spell(text) for text in texts])
    return sparse.csr_array((taken @ counts > 0).astype(np.float64)), words


def _share_copied(examples: Examples) -> float:
    """Return the share of users with their own value in their inputs, beyond chance.

    Chance is the share of users with another user's value in their inputs. Values count as they
    are, or rounded to 0, 1 or 2 digits, whichever share is largest.
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
    """Return the numbers in a text, without signs and thousands separators: 1,234.50 is 1234.5."""
    return " ".join(str(float(number)) for number in NUMBER.findall(THOUSANDS.sub("", text)))
