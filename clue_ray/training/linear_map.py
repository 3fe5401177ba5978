"""One linear map of TF-IDF vectors, shared by all services: the strongest cheap rival.

The map keeps the directions in which the histories of one user in two services agree. With
between = the covariance of a user's vectors in two different services and total = the covariance
of single vectors, they solve between w = c (total + ridge) w, where c is the correlation of the
two services along w. This is canonical correlation analysis (Hotelling 1936) with one set of
weights for all services, after a truncated SVD.
"""

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
    reduced = [matrix @ reduction for matrix in terms]
    centres = np.stack(
        [
            rows[have].mean(axis=0) if have.any() else np.zeros(rows.shape[1])
            for rows, have in zip(reduced, present, strict=True)
        ]
    )
    centred = [
        (rows - centre) * have[:, None]
        for rows, centre, have in zip(reduced, centres, present, strict=True)
    ]
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
    vectors: list[Matrix], present: NDArray[np.bool_], directions: int
) -> tuple[Matrix, Matrix]:
    """Compute the directions in which users' vectors in different services agree most.

    Each is weighted by the root of its correlation, so that weak ones count less in a cosine.

    Args:
        vectors: Centred vectors of the same users, one matrix per service, [users, components];
            a user without events in a service has zeros there.
        present: Whether users have events, [users, services].

    Returns:
        The correlations, [directions], and the directions, [components, directions].
    """
    number = present.sum(axis=1)
    pairs = max(1, int((number * (number - 1)).sum()))
    own = reduce(np.add, (rows.T @ rows for rows in vectors))
    summed = reduce(np.add, vectors)
    # The products of a user's sum hold each ordered pair of services, and each service with itself.
    between = (summed.T @ summed - own) / pairs
    total = own / max(1, int(number.sum()))
    size = len(total)
    variance = max(np.trace(total) / size, 1e-12)  # of a few equal histories it is 0
    ridged = total + RIDGE * variance * np.eye(size)
    first = max(0, size - directions)
    values, found = eigh(between, ridged, subset_by_index=[first, size - 1])
    correlations = np.clip(values[::-1], 0, None)
    return correlations, found[:, ::-1] * np.sqrt(correlations)
