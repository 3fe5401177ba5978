"""The methods that a task compares, and the features of users that each computes."""

from collections.abc import Callable
from functools import partial

import numpy as np

from clue_ray.transfer.encode import Histories, UserEncoder
from clue_ray.transfer.tasks import features
from clue_ray.transfer.tasks.examples import Examples
from clue_ray.transfer.tasks.features import Matrix
from clue_ray.transfer.tasks.scratch import train_from_scratch
from clue_ray.transfer.tasks.spec import TaskSpec

MAX_SCRATCH = 3
"""Maximum number of encoders trained from scratch; each has one head."""
NO_FEATURES = {
    "next_item": "popularity",
    "attribute": "base rate",
    "retrieval": "guess",
    "multi_label": "popularity",
    "churn": "base rate",
    "regression": "base rate",
}
"""Name of the baseline without features, by kind of task."""
METHODS = (
    "encoder",
    "TF-IDF, SVD",
    "TF-IDF, cosine",
    "shared linear map",
    "untrained items",
    "counts, 1/7/30 days",
    "from scratch",
    *NO_FEATURES.values(),
)
"""Names of methods, which a further encoder cannot have."""
OF_THE_LOG = ("TF-IDF, SVD", "shared linear map", "counts, 1/7/30 days")
"""Baselines with heads that are the same for all encoders of a corpus."""


def method_features(
    task: TaskSpec, examples: Examples, encoder: UserEncoder, others: dict[str, UserEncoder]
) -> dict[str, Callable[[], list[Matrix]]]:
    """Return how to compute the features of each method; encoders from scratch are several."""
    histories, train = histories_of(examples, encoder), examples.rows("train")
    known: dict[str, Callable[[], list[Matrix]]] = {
        "encoder": lambda: [features.encode_users(encoder, histories)],
        "TF-IDF, SVD": lambda: [features.tfidf_svd(histories, train)],
        "shared linear map": lambda: [features.linear_map(histories, train)[0]],
    }
    if encoder.model.transformer is not None:
        known["untrained items"] = lambda: [features.untrained_items(encoder, histories)[0]]
    if task.rule:
        known["counts, 1/7/30 days"] = lambda: [features.window_counts(examples)]
    for name, other in others.items():
        # Each encoder has its own tokenizer and services, and so its own histories.
        known[name] = partial(
            lambda other: [features.encode_users(other, histories_of(examples, other))], other
        )
    if task.scratch_steps:
        known["from scratch"] = lambda: [
            features.encode_users(one, histories)
            for one in (
                train_from_scratch(encoder, histories, examples, steps=task.scratch_steps, seed=s)
                for s in task.seeds[:MAX_SCRATCH]
            )
        ]
    return known


def histories_of(examples: Examples, encoder: UserEncoder) -> Histories:
    """Return the inputs of all users, each looked at when their inputs end."""
    if not np.isfinite(examples.cuts).all():
        return Histories(examples.inputs, encoder.exported)
    return Histories(examples.inputs, encoder.exported, examples.cuts)
