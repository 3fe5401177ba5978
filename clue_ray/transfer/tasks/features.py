"""Frozen features of users, [users, columns], by each method, from the same inputs.

The methods differ only in these features. The heads that read them and the users that they are
evaluated on are the same for all methods.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import sparse

from clue_ray.corpus.ranges import ranges
from clue_ray.training.linear_map import shared_linear_map, shared_users
from clue_ray.training.terms import leading_directions, term_counts, unit, unit_rows
from clue_ray.transfer.encode import Histories, UserEncoder, encode_items

COMPONENTS = 64
"""Directions of TF-IDF, SVD."""
OWN_WEIGHTS = 400
"""Number of labels up to which each label has its own weights."""
LABEL_COLUMNS = 128
"""Columns of the features of labels, if there are more."""
Matrix = NDArray[np.float64]


def user_terms(histories: Histories, train: NDArray[np.int64]) -> list[sparse.csr_array]:
    """Return TF-IDF vectors of users in each service and, last, over all services.

    Args:
        train: indices of the users that document frequencies are computed from.

    Returns:
        One matrix per service and one for all, each [users, vocabulary].
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
    """Project TF-IDF vectors onto the leading singular directions of the training users.

    The vectors are normalised to unit length.
    """
    terms = user_terms(histories, train)[-1]
    directions = leading_directions(terms[train], min(COMPONENTS, len(train), terms.shape[1]))
    return unit(terms @ directions)


def linear_map(histories: Histories, train: NDArray[np.int64]) -> tuple[Matrix, list[Matrix]]:
    """Encode users by the linear map that all services share, fitted to the training users.

    Returns:
        Vectors of users over all services, in the direction of the mean over their services, and
        in each service, of unit length. All are zeros if no training user has two services.
    """
    if not len(shared_users(histories, train, limit=1)):
        zeros = np.zeros((len(histories.user_ids), 1))
        return zeros, [zeros] * len(histories.services)
    fitted, everyone = shared_linear_map(histories, users=train), np.arange(len(histories.user_ids))
    each = [fitted.encode(histories, everyone, s) for s in range(len(histories.services))]
    return unit(np.sum(each, axis=0)), each


@torch.no_grad()
def untrained_items(encoder: UserEncoder, histories: Histories) -> tuple[Matrix, list[Matrix]]:
    """Average the centred item vectors of the encoder before training.

    Returns:
        Vectors of users over all services, and in each service, of unit length.
    """
    length = encoder.card.run.sequence_length
    users, services, windows = histories.present(length)
    events = histories.events[ranges(*windows)]
    distinct, places = np.unique(events, return_inverse=True)
    untrained = encoder.card.build()
    assert untrained.transformer is not None
    items = encode_items(untrained.transformer, histories, distinct).double().numpy()
    items -= items.mean(0)  # with initial weights all items have a large component in common
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


def encode_users(encoder: UserEncoder, histories: Histories) -> Matrix:
    """Encode users, one vector per user."""
    return encoder.encode_histories(histories).values.astype(np.float64)


def encode_services(encoder: UserEncoder, histories: Histories) -> list[Matrix]:
    """Encode users in each service; a user without events in a service has zeros."""
    vectors = encoder.encode_histories(histories, per_service=True)
    rows = pd.Index(histories.user_ids).get_indexer(pd.Index(vectors.user_ids))
    each = []
    for name in histories.services:
        matrix = np.zeros((len(histories.user_ids), vectors.values.shape[1]))
        matrix[rows[vectors.services == name]] = vectors.values[vectors.services == name]
        each.append(matrix)
    return each


def label_features(names: tuple[str, ...]) -> torch.Tensor | None:
    """Return features of labels from their words, [labels, columns], if there are many labels.

    With them a rare label learns from similar ones. Up to OWN_WEIGHTS labels, return None: each
    label has its own weights.
    """
    if len(names) <= OWN_WEIGHTS:
        return None
    counts, _ = word_counts(names)
    weights = np.log(len(names) / np.asarray((counts > 0).sum(axis=0))) + 1
    terms = unit_rows(counts, weights)
    reduced = unit(terms @ leading_directions(terms, min(LABEL_COLUMNS, *terms.shape)))
    return F.normalize(torch.from_numpy(reduced), dim=-1).float()


def word_counts(texts: Sequence[str]) -> tuple[sparse.csr_array, NDArray[np.object_]]:
    """Return whether texts contain words, [texts, words], and the words."""
    # Sorted, because the order of a set differs between processes.
    distinct = [sorted(set(text.lower().split())) for text in texts]
    codes, words = pd.factorize(np.array([word for own in distinct for word in own], dtype=object))
    owners = np.repeat(np.arange(len(texts)), list(map(len, distinct)))
    shape = (len(texts), len(words))
    return sparse.csr_array((np.ones(len(codes)), (owners, codes)), shape=shape), words
