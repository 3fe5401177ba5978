"""TF-IDF vectors of users' histories, for the methods that encoders are compared with.

A history is one user's events in one service: all of them, or the most recent ones. Its vector
holds (1 + ln count) * idf of each token, scaled to unit length.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from clue_ray.batches.packing import recent_windows
from clue_ray.corpus.store import Corpus, ranges

WHOLE_HISTORY = np.iinfo(np.int64).max
"""A number of events that no history exceeds."""
OVERSAMPLED = 16
"""Extra random directions of the SVD, which make its last components exact."""
POWER_ITERATIONS = 4

Matrix = NDArray[np.float64]


def term_counts(
    corpus: Corpus,
    users: NDArray[np.int64],
    service: int,
    sequence_length: int | None = None,
) -> sparse.csr_array:
    """Count the tokens of histories, [users, rows of an encoder's token table].

    Guide tokens are left out: they name the service, which all users share.

    Args:
        sequence_length: Number of most recent events of a history; all of them by default.
    """
    windows = recent_windows(
        corpus, users, np.full(len(users), service), sequence_length or WHOLE_HISTORY
    )
    items = corpus.events[ranges(*windows)]
    owner = np.repeat(
        np.repeat(np.arange(len(users)), windows.lengths), corpus.item_lengths[items] - 1
    )
    tokens = corpus.item_tokens[
        ranges(corpus.item_offsets[items] + 1, corpus.item_lengths[items] - 1)
    ]
    counts = sparse.csr_array(
        (np.ones(len(tokens)), (owner, tokens)), shape=(len(users), corpus.shared_guide + 1)
    )
    counts.sum_duplicates()
    return counts


def inverse_document_frequency(counts: list[sparse.csr_array]) -> Matrix:
    """Compute ln((1 + n) / (1 + df)) + 1 over n histories that are not empty, [tokens].

    Args:
        counts: The token counts of each service, [users, tokens].
    """
    documents = sum(int((matrix.sum(axis=1) > 0).sum()) for matrix in counts)
    frequency = sum(np.asarray((matrix > 0).sum(axis=0)).ravel() for matrix in counts)
    return np.log((1 + documents) / (1 + frequency)) + 1


def unit_rows(counts: sparse.csr_array, weights: Matrix) -> sparse.csr_array:
    """Weight counts by (1 + ln count) * weight and scale rows to unit length.

    An empty row stays zero.
    """
    weighted = counts.copy()
    weighted.sum_duplicates()
    weighted.data = (1 + np.log(weighted.data)) * weights[weighted.indices]
    norms = np.sqrt(weighted.multiply(weighted).sum(axis=1))
    return sparse.diags_array(1 / np.maximum(norms, 1e-12)) @ weighted


def unit(rows: Matrix) -> Matrix:
    """Scale rows to unit length; a row of zeros stays zero."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def leading_directions(matrix: sparse.csr_array, components: int) -> Matrix:
    """Compute the leading right singular vectors, [columns, components].

    By power iteration on a random subspace (Halko, Martinsson and Tropp 2011, algorithm 4.4); an
    exact SVD of a sparse matrix with a column per token would need it dense.
    """
    found = np.random.default_rng(0).standard_normal((matrix.shape[1], components + OVERSAMPLED))
    for _ in range(POWER_ITERATIONS):
        found, _ = np.linalg.qr(matrix.T @ np.linalg.qr(matrix @ found)[0])
    _, _, right = np.linalg.svd(matrix @ found, full_matrices=False)
    return found @ right[:components].T
