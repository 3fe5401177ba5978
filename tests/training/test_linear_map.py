"""The shared linear map equals a dense fit with plain loops over pairs of services."""

import numpy as np
import pytest
from scipy.linalg import eigh

from clue_ray.training.linear_map import RIDGE, agreeing_directions, shared_linear_map
from clue_ray.training.terms import term_counts

LENGTH = 6


def plain_tfidf(corpus, users: np.ndarray, idf: np.ndarray, service: int) -> np.ndarray:
    """Weight and normalise the rows of users one by one."""
    rows = []
    for row in term_counts(corpus, users, service, LENGTH).toarray():
        row = np.array([(1 + np.log(count)) if count else 0.0 for count in row]) * idf
        rows.append(row / (np.linalg.norm(row) or 1))
    return np.array(rows)


def plain_fit(corpus, idf: np.ndarray, components: int, directions: int):
    """Fit the map with dense matrices; return the projector of the map and its correlations."""
    users, services = corpus.train_users, range(3)
    terms = [plain_tfidf(corpus, users, idf, s) for s in services]
    have = [corpus.counts[users, s] > 0 for s in services]
    rows = np.concatenate([matrix[h] for matrix, h in zip(terms, have, strict=True)])
    reduction = np.linalg.svd(rows, full_matrices=False)[2][:components].T
    centred = [
        matrix @ reduction - (matrix[h] @ reduction).mean(0)
        for matrix, h in zip(terms, have, strict=True)
    ]
    between, total, pairs, singles = 0, 0, 0, 0
    for user in range(len(users)):
        own = [s for s in services if have[s][user]]
        for a in own:
            total, singles = total + np.outer(centred[a][user], centred[a][user]), singles + 1
            for b in own:
                if a != b:
                    between = between + np.outer(centred[a][user], centred[b][user])
                    pairs += 1
    total = total / singles
    ridged = total + RIDGE * np.diag(total).mean() * np.eye(components)
    values, found = eigh(between / pairs, ridged)
    values, found = values[::-1][:directions], found[:, ::-1][:, :directions]
    weights = reduction @ found * np.sqrt(np.clip(values, 0, None))
    return weights @ weights.T, values


@pytest.mark.parametrize("rows_at_once", [50, 8192])
def test_the_map_equals_a_dense_fit(corpus, rows_at_once, monkeypatch):
    monkeypatch.setattr("clue_ray.training.terms.ROWS_AT_ONCE", rows_at_once)
    assert (corpus.counts > 0).sum(1).min() >= 2  # every user is in two services
    # With all components, because those of a truncated SVD of noise are not exact.
    size = corpus.vocabulary(1).tokens
    found = shared_linear_map(corpus, LENGTH, directions=5, components=size)
    projector, correlations = plain_fit(corpus, found.idf, size, 5)
    assert found.weights.shape == (size, 5)
    assert found.centres.shape == (3, 5)
    assert np.allclose(found.correlations, correlations, atol=1e-6)
    assert np.allclose(found.weights @ found.weights.T, projector, atol=1e-6 * projector.max())


def test_users_are_encoded_by_the_map_and_the_centre_of_their_service(corpus):
    fitted = shared_linear_map(corpus, LENGTH, directions=5, components=12)
    users = corpus.test_users[:4]
    mapped = plain_tfidf(corpus, users, fitted.idf, 2) @ fitted.weights - fitted.centres[2]
    expected = mapped / np.linalg.norm(mapped, axis=1, keepdims=True)
    assert np.allclose(fitted.encode(corpus, users, 2, LENGTH), expected)
    whole = fitted.encode(corpus, users, 2)
    assert not np.allclose(whole, expected)
    assert np.allclose(np.linalg.norm(whole, axis=1), 1)


def test_directions_find_what_two_services_share():
    rng = np.random.default_rng(1)
    shared = rng.standard_normal(5000)
    a, b = rng.standard_normal((2, 5000, 10)) * np.linspace(1, 3, 10)
    a[:, 4], b[:, 4] = 0.5 * shared, 0.5 * shared + 0.1 * b[:, 4]
    b[:50] = 0  # users without events in the second service
    present = np.ones((5000, 2), dtype=bool)
    present[:50, 1] = False
    correlations, found = agreeing_directions([[a, b]], present, 3)
    assert np.argmax(np.abs(found[:, 0])) == 4
    assert correlations[0] > 3 * correlations[1]
    assert np.corrcoef(a[50:] @ found[:, 0], b[50:] @ found[:, 0])[0, 1] > 0.9


def test_some_users_are_enough(corpus):
    whole = shared_linear_map(corpus, directions=4)
    few = shared_linear_map(corpus, users=corpus.train_users[:40], directions=4, components=300)
    assert few.weights.shape[1] == 4
    assert few.idf.max() == pytest.approx(np.log(1 + 3 * 40) + 1)  # of a token that none has
    assert whole.idf.max() > few.idf.max()
