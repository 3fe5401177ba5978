"""TF-IDF vectors of users' histories, for the methods that encoders are compared with.

A history is one user's events in one service: all of them, or the most recent ones. Its vector
holds (1 + ln count) * idf of each token, scaled to unit length.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from clue_ray.batches.packing import recent_windows
from clue_ray.corpus.ranges import ranges
from clue_ray.corpus.store import Corpus

WHOLE_HISTORY = np.iinfo(np.int64).max
"""A number of events that no history exceeds."""
EVENTS_AT_ONCE = 250_000
"""Events whose tokens are counted at a time; about 100 MB at 16 tokens each."""
USERS_AT_ONCE = 65_536
"""Users whose events are counted at a time."""
ROWS_AT_ONCE = 8192
"""Rows that are dense at a time; 34 MB at 512 columns."""
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
    blocks = [
        _count_block(corpus, some, service, sequence_length or WHOLE_HISTORY)
        for some in split_users(corpus, users)
    ]
    return sparse.csr_array(sparse.vstack(blocks))


def split_users(corpus: Corpus, users: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Split users into blocks of about EVENTS_AT_ONCE events, at least one block."""
    services = np.arange(len(corpus.services))
    for start in range(0, max(1, len(users)), USERS_AT_ONCE):
        some = users[start : start + USERS_AT_ONCE]
        events = corpus.count_events(some[:, None], services).sum(axis=1)
        block = np.cumsum(events) // EVENTS_AT_ONCE
        yield from np.split(some, np.flatnonzero(np.diff(block)) + 1)


def _count_block(
    corpus: Corpus, users: NDArray[np.int64], service: int, sequence_length: int
) -> sparse.csr_array:
    windows = recent_windows(corpus, users, np.full(len(users), service), sequence_length)
    items = corpus.events[ranges(*windows)]
    lengths = corpus.count_item_tokens(items) - 1
    owner = np.repeat(np.repeat(np.arange(len(users)), windows.lengths), lengths)
    tokens = corpus.item_tokens[ranges(corpus.item_offsets[items] + 1, lengths)]
    counts = sparse.csr_array(
        (np.ones(len(tokens)), (owner, tokens)), shape=(len(users), corpus.shared_guide + 1)
    )
    counts.sum_duplicates()
    return counts


def inverse_document_frequency(counts: Iterable[sparse.csr_array]) -> Matrix:
    """Compute ln((1 + n) / (1 + df)) + 1 over n histories that are not empty, [tokens].

    Args:
        counts: Token counts of histories, [users, tokens] each; read once, one after the other.
    """
    documents, frequency = 0, np.zeros(1, np.int64)
    for matrix in counts:
        documents += int((np.diff(matrix.indptr) > 0).sum())
        frequency = frequency + np.bincount(matrix.indices, minlength=matrix.shape[1])
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

    By subspace iteration from a random start (Halko, Martinsson and Tropp 2011, section 4.5); an
    exact SVD of a sparse matrix with a column per token would need it dense. Each pass reads blocks
    of rows, so that nothing dense has as many rows as the matrix.
    """
    found = np.random.default_rng(0).standard_normal((matrix.shape[1], components + OVERSAMPLED))
    for _ in range(POWER_ITERATIONS):
        found = np.linalg.qr(_apply_twice(matrix, found))[0]
    _, right = np.linalg.eigh(found.T @ _apply_twice(matrix, found))
    return found @ right[:, ::-1][:, :components]


def _apply_twice(matrix: sparse.csr_array, vectors: Matrix) -> Matrix:
    """Compute matrix.T @ matrix @ vectors."""
    blocks = (matrix[rows] for rows in split_rows(matrix.shape[0]))
    return sum((block.T @ (block @ vectors) for block in blocks), np.zeros_like(vectors))


def split_rows(number: int) -> Iterator[slice]:
    """Split rows into blocks of `ROWS_AT_ONCE`."""
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, number, ROWS_AT_ONCE))
