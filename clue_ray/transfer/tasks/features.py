"""What each method knows of a user: one frozen vector, from the same inputs.

Takes a task's inputs, gives [users, columns]. One idea: the methods differ in these vectors alone;
what reads them (`heads`) and who is judged are the same for all.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import sparse

from clue_ray.corpus.store import ranges
from clue_ray.training.baselines import leading_directions, term_counts, unit, unit_rows
from clue_ray.transfer.encode import Histories, UserEncoder, encode_items

COMPONENTS = 64


Matrix = NDArray[np.float64]


def user_terms(histories: Histories, train: NDArray[np.int64]) -> list[sparse.csr_array]:
    """Return users' TF-IDF vectors in each service and, last, over all of them, [users,
    vocabulary].

    Args:
        train: users whose histories say how rare a term is, by index.
    """
    everyone = np.arange(len(histories.user_ids))
    counts = [
        term_counts(histories, everyone, service) for service in range(len(histories.services))
    ]
    whole = sparse.csr_array(sum(counts))
    frequency = np.asarray((whole[train] > 0).sum(axis=0))
    weights = np.log((1 + len(train)) / (1 + frequency)) + 1
    return [unit_rows(matrix, weights) for matrix in (*counts, whole)]


def tfidf_svd(histories: Histories, train: NDArray[np.int64]) -> Matrix:
    """Reduce users' TF-IDF vectors to the leading singular directions of the training users', of
    unit length.
    """
    terms = user_terms(histories, train)[-1]
    directions = leading_directions(terms[train], min(COMPONENTS, len(train), terms.shape[1]))
    return unit(terms @ directions)


@torch.no_grad()
def untrained_items(encoder: UserEncoder, histories: Histories) -> tuple[Matrix, list[Matrix]]:
    """Average the item vectors of the encoder as it was before training, centred: over services,
    and in each.
    """
    length = encoder.card.run.sequence_length
    users, services, windows = histories.present(length)
    events = histories.events[ranges(*windows)]
    distinct, places = np.unique(events, return_inverse=True)
    items = encode_items(encoder.card.build(), histories, distinct).double().numpy()
    items -= items.mean(0)  # drawn weights give all items a large part in common
    rows = np.repeat(np.arange(len(users)), windows.lengths)
    membership = sparse.csr_array(
        (np.ones(len(rows)), (rows, places)), shape=(len(users), len(distinct))
    )
    means = unit(membership @ items)
    each = []
    for service in range(len(histories.services)):
        vectors = np.zeros((len(histories.user_ids), items.shape[1]))
        vectors[users[services == service]] = means[services == service]
        each.append(vectors)
    return unit(np.sum(each, axis=0)), each


def encoded(encoder: UserEncoder, histories: Histories) -> Matrix:
    """Encode users as `clue-ray embed` does."""
    return encoder.encode_histories(histories).values.astype(np.float64)


def encoded_services(encoder: UserEncoder, histories: Histories) -> list[Matrix]:
    """Encode users in each service, zeros where they have no events."""
    vectors = encoder.encode_histories(histories, per_service=True)
    rows = pd.Index(histories.user_ids).get_indexer(pd.Index(vectors.user_ids))
    each = []
    for name in histories.services:
        matrix = np.zeros((len(histories.user_ids), vectors.values.shape[1]))
        matrix[rows[vectors.services == name]] = vectors.values[vectors.services == name]
        each.append(matrix)
    return each


def label_features(names: tuple[str, ...]) -> torch.Tensor | None:
    """Describe labels by their words where there are many, so that a rare one learns from its like,
    [labels, columns].

    None where they are few enough for each to have its own weights.
    """
    if len(names) <= OWN_WEIGHTS:
        return None
    counts, _ = word_counts(names)
    weights = np.log(len(names) / np.asarray((counts > 0).sum(axis=0))) + 1
    terms = unit_rows(counts, weights)
    reduced = unit(terms @ leading_directions(terms, min(LABEL_COLUMNS, *terms.shape)))
    return F.normalize(torch.from_numpy(reduced), dim=-1).float()


def word_counts(texts: Sequence[str]) -> tuple[sparse.csr_array, NDArray[np.object_]]:
    """Say which words texts hold, once each: [texts, words], and the words."""
    distinct = [
        sorted(set(text.lower().split())) for text in texts
    ]  # a set's own order differs between processes
    codes, words = pd.factorize(np.array([word for own in distinct for word in own], dtype=object))
    owners = np.repeat(np.arange(len(texts)), list(map(len, distinct)))
    return sparse.csr_array(
        (np.ones(len(codes)), (owners, codes)), shape=(len(texts), len(words))
    ), words


OWN_WEIGHTS = 400
LABEL_COLUMNS = 128
