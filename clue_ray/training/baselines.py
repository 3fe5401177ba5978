"""Baselines on the pool that scores the encoders: one without training, one linear method.

Both start from TF-IDF vectors of a user's whole history in each service. The untrained baseline is
the cosine of the two vectors. The linear one learns, for each pair of services, the directions in
which the two go together: truncated SVD of each service, then canonical correlation analysis
(Hotelling 1936) over the training users.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from clue_ray.corpus.store import Corpus, ranges
from clue_ray.training.evaluate import score_calibrated
from clue_ray.training.pools import Pool, make_pools, pool_members

COMPONENTS = 128
"""Singular directions kept per service."""
DIRECTIONS = 64
"""Canonical directions kept per pair, as many as an encoder's default output width."""
RIDGE = 1e-3
"""Added to variances before whitening, so that noise in weak directions is not magnified."""
OVERSAMPLED = 16
"""Extra random directions of the SVD, which make its last components exact."""
POWER_ITERATIONS = 4
MAX_USERS = 50_000
"""Training users per pair; more change little and cost memory."""

Matrix = NDArray[np.float64]


def tfidf_baseline(corpus: Corpus, candidates: int) -> dict[str, Any]:
    """Score the TF-IDF cosine between a user's whole histories in two services.

    Returns:
        name, loss, recall_at_10, mrr, loss_candidates: the content of baseline.json.
    """
    return _score("TF-IDF cosine, untrained", _tfidf_similarities, corpus, candidates)


def linear_baseline(corpus: Corpus, candidates: int) -> dict[str, Any]:
    """Train the linear method on the training users and score it.

    Returns:
        name, loss, recall_at_10, mrr, loss_candidates.
    """
    return _score("TF-IDF, SVD and CCA, trained", _linear_similarities, corpus, candidates)


def _score(
    name: str, method: Callable[[Corpus, Pool], list[Matrix]], corpus: Corpus, candidates: int
) -> dict[str, Any]:
    """Score the cosines of a method as those of an encoder are scored."""
    scored, validation = (
        [torch.from_numpy(matrix) for matrix in method(corpus, pool)]
        for pool in make_pools(corpus, candidates)
    )
    scores, temperature = score_calibrated(scored, validation)
    return {
        "name": name,
        **scores._asdict(),
        "loss_candidates": candidates,
        "calibrated_temperature": temperature,
    }


def _tfidf_similarities(corpus: Corpus, pool: Pool) -> list[Matrix]:
    """Return the cosines of each pool, first service by second."""
    weights = _inverse_document_frequency(corpus)
    vectors = {
        service: unit_rows(term_counts(corpus, users, service), weights)
        for service, users in pool_members(pool).items()
    }
    members = pool_members(pool)
    rows = {
        (pair, s): np.searchsorted(members[s], users) for pair, users in pool.items() for s in pair
    }
    return [
        (vectors[a][rows[pair, a]] @ vectors[b][rows[pair, b]].T).toarray()
        for pair in pool
        for a, b in [pair]
    ]


def _linear_similarities(corpus: Corpus, pool: Pool) -> list[Matrix]:
    """Return the cosines of each pool, first service by second."""
    weights = _inverse_document_frequency(corpus)
    everyone = np.arange(len(corpus.user_ids))
    terms = {
        s: unit_rows(term_counts(corpus, everyone, s), weights)
        for s in {s for pair in pool for s in pair}
    }
    found = []
    for pair, users in pool.items():
        train = corpus.users_of_pair(corpus.train_users, pair)[:MAX_USERS]
        (a, pool_a), (b, pool_b) = (_reduce_terms(terms[s][train], terms[s][users]) for s in pair)
        first, second = canonical_directions(a, b)
        found.append(unit(pool_a @ first) @ unit(pool_b @ second).T)
    return found


def term_counts(corpus: Corpus, users: NDArray[np.int64], service: int) -> sparse.csr_array:
    """Count the tokens of users' histories in one service, [users, vocabulary].

    Guide tokens are left out: they name the service, which all users share.
    """
    starts = corpus.offsets[users * len(corpus.services) + service]
    lengths = corpus.counts[users, service]
    items = corpus.events[ranges(starts, lengths)]
    owner = np.repeat(np.repeat(np.arange(len(users)), lengths), corpus.item_lengths[items] - 1)
    tokens = corpus.item_tokens[
        ranges(corpus.item_offsets[items] + 1, corpus.item_lengths[items] - 1)
    ]
    shape = (len(users), corpus.manifest["vocab_size"])
    return sparse.csr_array((np.ones(len(tokens)), (owner, tokens)), shape=shape)


def _inverse_document_frequency(corpus: Corpus) -> Matrix:
    """Compute ln((1 + n) / (1 + df)) + 1 over training users' histories, [vocabulary]."""
    counts = [
        term_counts(corpus, corpus.train_users, service) for service in range(len(corpus.services))
    ]
    documents = sum(
        int((corpus.counts[corpus.train_users, s] > 0).sum()) for s in range(len(corpus.services))
    )
    frequency = sum((matrix > 0).sum(axis=0) for matrix in counts)
    return np.log((1 + documents) / (1 + np.asarray(frequency))) + 1


def unit_rows(counts: sparse.csr_array, weights: Matrix) -> sparse.csr_array:
    """Weight counts by (1 + ln count) * weight and scale rows to unit length.

    An empty row stays zero.
    """
    weighted = counts.copy()
    weighted.sum_duplicates()
    weighted.data = (1 + np.log(weighted.data)) * weights[weighted.indices]
    norms = np.sqrt(weighted.multiply(weighted).sum(axis=1))
    return sparse.diags_array(1 / np.maximum(norms, 1e-12)) @ weighted


def _reduce_terms(train: sparse.csr_array, pool: sparse.csr_array) -> tuple[Matrix, Matrix]:
    """Reduce TF-IDF vectors to the leading singular directions of the training users'.

    Both are centred on the training users, as covariances below assume.
    """
    directions = leading_directions(train, min(COMPONENTS, *train.shape))
    reduced = unit(train @ directions)
    centre = reduced.mean(0)
    return reduced - centre, unit(pool @ directions) - centre


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


def canonical_directions(a: Matrix, b: Matrix) -> tuple[Matrix, Matrix]:
    """Compute the canonical directions of two views, [components, directions] each.

    Each is weighted by the root of its correlation, so that weak ones count less in a cosine.

    Args:
        a, b: centred vectors of the same users, [users, components].
    """
    whiten_a, whiten_b = _whitening(a), _whitening(b)
    left, correlation, right = np.linalg.svd(whiten_a @ (a.T @ b / len(a)) @ whiten_b)
    weight = np.sqrt(correlation[:DIRECTIONS])
    return whiten_a @ left[:, :DIRECTIONS] * weight, whiten_b @ right[:DIRECTIONS].T * weight


def _whitening(x: Matrix) -> Matrix:
    """Compute the inverse root of a ridged covariance."""
    values, vectors = np.linalg.eigh(x.T @ x / len(x) + RIDGE * np.eye(x.shape[1]))
    return (vectors / np.sqrt(values)) @ vectors.T


def unit(rows: Matrix) -> Matrix:
    """Scale rows to unit length; a row of zeros stays zero."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
