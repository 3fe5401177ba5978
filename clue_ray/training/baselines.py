"""What a reader may expect without training: untrained TF-IDF cosine on the pool that scores the
encoders.

What a linear method learns from the same users: TF-IDF, truncated SVD and canonical correlation,
    one pair at a time.

For each pair of services, training users' histories become TF-IDF vectors, each service is reduced
by its own SVD, and the whitened cross-covariance of the two gives the directions in which they go
together (Hotelling 1936).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize_scalar

from clue_ray.corpus.store import Corpus, ranges
from clue_ray.training.evaluate import Pools, Scores, make_pools, mean_scores, score_similarities

MAX_LOG_SCALE = np.log(1000.0)


def tfidf_baseline(corpus: Corpus, candidates: int) -> dict[str, Any]:
    """Score TF-IDF cosine between a user's whole histories in two services; nothing is learnt.

    Terms are token ids; weights (1 + ln tf) x (ln((1 + n) / (1 + df)) + 1), df over training users'
    histories. The loss is at the temperature that is best on the pool itself, in the baseline's
    favour.

    Returns:
        name, loss, recall_at_10, mrr, loss_candidates: what baseline.json holds.
    """
    pools = make_pools(corpus, candidates)
    matrices = [torch.from_numpy(m) for m in _pool_similarities(corpus, pools)]
    return {
        "name": "TF-IDF cosine, untrained",
        **_best_scores(matrices)._asdict(),
        "loss_candidates": candidates,
    }


def _best_scores(cosines: list[torch.Tensor]) -> Scores:
    """Score matrices of cosines at the temperature that gives them the lowest loss."""
    best = minimize_scalar(
        lambda log_scale: (
            mean_scores([score_similarities(np.exp(log_scale) * m) for m in cosines]).loss
        ),
        bounds=(0.0, MAX_LOG_SCALE),
        method="bounded",
    )
    return mean_scores([score_similarities(float(np.exp(best.x)) * m) for m in cosines])


def _pool_similarities(corpus: Corpus, pools: Pools) -> list[NDArray[np.float64]]:
    """Return each pool's matrix of cosines, [candidates, candidates], first service by second."""
    weights = _inverse_document_frequency(corpus)
    vectors = {
        service: unit_rows(term_counts(corpus, corpus.test_users, service), weights)
        for service in {service for pair in pools for service in pair}
    }
    row_of = {user: row for row, user in enumerate(corpus.test_users.tolist())}
    rows = {pair: [row_of[user] for user in users.tolist()] for pair, users in pools.items()}
    return [(vectors[a][rows[a, b]] @ vectors[b][rows[a, b]].T).toarray() for a, b in pools]


def term_counts(corpus: Corpus, users: NDArray[np.int64], service: int) -> sparse.csr_array:
    """Count the tokens of users' histories in one service, [users, vocabulary]; guide tokens are
    left out.
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


def _inverse_document_frequency(corpus: Corpus) -> NDArray[np.float64]:
    """Weigh terms by how few training histories hold them, [vocabulary]."""
    counts = [
        term_counts(corpus, corpus.train_users, service) for service in range(len(corpus.services))
    ]
    documents = sum(
        int((corpus.counts[corpus.train_users, s] > 0).sum()) for s in range(len(corpus.services))
    )
    frequency = sum((matrix > 0).sum(axis=0) for matrix in counts)
    return np.log((1 + documents) / (1 + np.asarray(frequency))) + 1


def unit_rows(counts: sparse.csr_array, weights: NDArray[np.float64]) -> sparse.csr_array:
    """Weigh counts and scale rows to length one; an empty row stays zero."""
    weighted = counts.copy()
    weighted.sum_duplicates()
    weighted.data = (1 + np.log(weighted.data)) * weights[weighted.indices]
    norms = np.sqrt(weighted.multiply(weighted).sum(axis=1))
    return sparse.diags_array(1 / np.maximum(norms, 1e-12)) @ weighted


COMPONENTS = 128
DIRECTIONS = 64
RIDGE = 1e-3
OVERSAMPLED = 16
POWER_ITERATIONS = 4
MAX_USERS = 50_000
"""Training users the baseline learns from; more change little and cost memory."""


Matrix = NDArray[np.float64]


def linear_baseline(corpus: Corpus, candidates: int) -> dict[str, Any]:
    """Score the linear method, trained on the training users, on the pool that scores the encoders.

    The loss is at the temperature that is best on the pool itself, in the baseline's favour.

    Returns:
        name, loss, recall_at_10, mrr, loss_candidates.
    """
    pools = make_pools(corpus, candidates)
    scores = _best_scores(
        [torch.from_numpy(matrix) for matrix in _linear_similarities(corpus, pools)]
    )
    return {
        "name": "TF-IDF, SVD and CCA, trained",
        **scores._asdict(),
        "loss_candidates": candidates,
    }


def _linear_similarities(corpus: Corpus, pools: Pools) -> list[Matrix]:
    """Return each pool's matrix of cosines, [candidates, candidates], first service by second."""
    weights = _inverse_document_frequency(corpus)
    everyone = np.arange(len(corpus.user_ids))
    terms = {
        s: unit_rows(term_counts(corpus, everyone, s), weights)
        for s in {s for pair in pools for s in pair}
    }
    found = []
    for pair, users in pools.items():
        train = corpus.users_of_pair(corpus.train_users, pair)[:MAX_USERS]
        (a, pool_a), (b, pool_b) = (_reduce_terms(terms[s][train], terms[s][users]) for s in pair)
        first, second = canonical_directions(a, b)
        found.append(unit(pool_a @ first) @ unit(pool_b @ second).T)
    return found


def _reduce_terms(train: sparse.csr_array, pool: sparse.csr_array) -> tuple[Matrix, Matrix]:
    """Reduce TF-IDF vectors to the leading singular directions of the training users', centred on
    them.
    """
    directions = leading_directions(train, min(COMPONENTS, *train.shape))
    reduced = unit(train @ directions)
    centre = reduced.mean(0)
    return reduced - centre, unit(pool @ directions) - centre


def leading_directions(matrix: sparse.csr_array, components: int) -> Matrix:
    """Return the leading right singular vectors, [columns, components], by power iteration on a
    random subspace.

    Halko, Martinsson and Tropp 2011, algorithm 4.4.
    """
    found = np.random.default_rng(0).standard_normal((matrix.shape[1], components + OVERSAMPLED))
    for _ in range(POWER_ITERATIONS):
        found, _ = np.linalg.qr(matrix.T @ np.linalg.qr(matrix @ found)[0])
    _, _, right = np.linalg.svd(matrix @ found, full_matrices=False)
    return found @ right[:components].T


def canonical_directions(a: Matrix, b: Matrix) -> tuple[Matrix, Matrix]:
    """Return the directions of two sides, [components, directions], weighted by the root of their
    correlation.
    """
    whiten_a, whiten_b = _whitening(a), _whitening(b)
    left, correlation, right = np.linalg.svd(whiten_a @ (a.T @ b / len(a)) @ whiten_b)
    weight = np.sqrt(correlation[:DIRECTIONS])
    return whiten_a @ left[:, :DIRECTIONS] * weight, whiten_b @ right[:DIRECTIONS].T * weight


def _whitening(x: Matrix) -> Matrix:
    """Return the inverse root of a ridged covariance."""
    values, vectors = np.linalg.eigh(x.T @ x / len(x) + RIDGE * np.eye(x.shape[1]))
    return (vectors / np.sqrt(values)) @ vectors.T


def unit(rows: Matrix) -> Matrix:
    """Scale rows to length one; a row of zeros stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
