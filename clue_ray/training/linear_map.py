"""One linear map of TF-IDF vectors, shared by all services: the strongest cheap rival.

The map keeps the directions in which the histories of one user in two services agree. With
between = the covariance of a user's vectors in two different services and total = the covariance
of single vectors, they solve between w = c (total + ridge) w, where c is the correlation of the
two services along w. This is canonical correlation analysis (Hotelling 1936) with one set of
weights for all services, after a truncated SVD.
"""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import eigh

from clue_ray.corpus.store import Corpus
from clue_ray.training.terms import (
    USERS_AT_ONCE,
    Matrix,
    inverse_document_frequency,
    leading_directions,
    split_rows,
    term_counts,
    unit,
    unit_rows,
)

COMPONENTS = 256
"""Singular directions kept."""
DIRECTIONS = 64
"""Directions of the map, as many as an encoder's default output width."""
SHAPES = ((COMPONENTS, DIRECTIONS), (512, 128))
"""Numbers of components and directions that a baseline chooses from, on validation users."""
RIDGE = 0.3
"""Added to the variances, as a share of their mean, so that rare directions are not trusted."""
MAX_HISTORIES = 100_000
"""Histories that the map is fitted to; more change little and cost memory."""


class LinearMap(NamedTuple):
    """A linear map of TF-IDF vectors: user = unit(tfidf @ weights - centres[service])."""

    weights: Matrix
    "[rows of an encoder's token table, directions]"
    centres: Matrix
    "mean of training users' mapped vectors, [services, directions]"
    idf: Matrix
    "weight of each token in the TF-IDF vectors, [rows of an encoder's token table]"
    correlations: Matrix
    "of a user's vectors in two services, along each direction, descending, [directions]"

    def encode(
        self,
        corpus: Corpus,
        users: NDArray[np.int64],
        service: int,
        sequence_length: int | None = None,
    ) -> Matrix:
        """Encode users by their histories in one service, [users, directions], of unit length.

        A user without events there has zeros.
        """
        counts = term_counts(corpus, users, service, sequence_length)
        vectors = unit_rows(counts, self.idf) @ self.weights - self.centres[service]
        return unit(vectors * (corpus.count_events(users, service) > 0)[:, None])


def shared_linear_map(
    corpus: Corpus,
    sequence_length: int | None = None,
    *,
    users: NDArray[np.int64] | None = None,
    directions: int = DIRECTIONS,
    components: int = COMPONENTS,
) -> LinearMap:
    """Fit one linear map for all services to users with histories in at least two of them.

    Args:
        sequence_length: Number of most recent events of a history; all of them by default.
        users: Indices of the users to fit to; the training users by default.
        directions: Columns of the map, at most as many as there are components.
        components: Directions of the truncated SVD before it.
    """
    services = len(corpus.services)
    everyone = corpus.train_users if users is None else users
    shared = shared_users(corpus, everyone, MAX_HISTORIES // services)
    counts = [term_counts(corpus, shared, s, sequence_length) for s in range(services)]
    idf = inverse_document_frequency(counts)
    terms = [unit_rows(matrix, idf) for matrix in counts]
    present = [corpus.count_events(shared, s) > 0 for s in range(services)]
    stacked = sparse.csr_array(
        sparse.vstack([matrix[have] for matrix, have in zip(terms, present, strict=True)])
    )
    reduction = leading_directions(stacked, min(components, *stacked.shape))
    # A row without events is zero, so the sum over all rows is that over those with events.
    means = [
        rows.sum(axis=0) / max(1, have.sum()) for rows, have in zip(terms, present, strict=True)
    ]
    centres = np.stack(means) @ reduction
    centred = (
        [
            (rows[some] @ reduction - centre) * have[some, None]
            for rows, centre, have in zip(terms, centres, present, strict=True)
        ]
        for some in split_rows(len(shared))
    )
    correlations, found = agreeing_directions(centred, np.stack(present, axis=1), directions)
    return LinearMap(reduction @ found, centres @ found, idf, correlations)


def shared_users(corpus: Corpus, users: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return the first `limit` of `users`, in order, with events in at least two services."""
    services, found = np.arange(len(corpus.services)), [users[:0]]
    for start in range(0, len(users), USERS_AT_ONCE):
        some = users[start : start + USERS_AT_ONCE]
        found.append(some[(corpus.count_events(some[:, None], services) > 0).sum(axis=1) >= 2])
        if sum(map(len, found)) >= limit:
            break
    return np.concatenate(found)[:limit]


def agreeing_directions(
    vectors: Iterable[list[Matrix]], present: NDArray[np.bool_], directions: int
) -> tuple[Matrix, Matrix]:
    """Compute the directions in which users' vectors in different services agree most.

    Each is weighted by the root of its correlation, so that weak ones count less in a cosine.

    Args:
        vectors: Blocks of users, each with their centred vectors, one matrix per service, [users of
            the block, components]; a user without events in a service has zeros there.
        present: Whether users have events, [users, services].

    Returns:
        The correlations, [directions], and the directions, [components, directions].
    """
    number = present.sum(axis=1)
    pairs = max(1, int((number * (number - 1)).sum()))
    own = all_pairs = np.zeros(())
    for block in vectors:
        own = own + reduce(np.add, (rows.T @ rows for rows in block))
        summed = reduce(np.add, block)
        all_pairs = all_pairs + summed.T @ summed
    # The products of a user's sum hold each ordered pair of services, and each service with itself.
    between = (all_pairs - own) / pairs
    total = own / max(1, int(number.sum()))
    size = len(total)
    variance = max(np.trace(total) / size, 1e-12)  # of a few equal histories it is 0
    ridged = total + RIDGE * variance * np.eye(size)
    first = max(0, size - directions)
    values, found = eigh(between, ridged, subset_by_index=[first, size - 1])
    correlations = np.clip(values[::-1], 0, None)
    return correlations, found[:, ::-1] * np.sqrt(correlations)
