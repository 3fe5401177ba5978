"""Term counts equal a count by hand, and the subspace of the truncated SVD is the SVD's."""

from collections import Counter

import numpy as np
import pytest
from scipy import sparse

from clue_ray.training.terms import (
    inverse_document_frequency,
    leading_directions,
    term_counts,
    unit,
    unit_rows,
)


@pytest.mark.parametrize("length", [None, 3])
def test_terms_are_counted_in_the_most_recent_events(corpus, length):
    users, service = corpus.test_users[:5], 1
    found = term_counts(corpus, users, service, length).toarray()
    for row, user in zip(found, users, strict=True):
        start = corpus.offsets[user * 3 + service]
        events = corpus.events[start : corpus.offsets[user * 3 + service + 1]][:length]
        tokens = Counter()
        for item in events:
            bounds = corpus.item_offsets[item : item + 2]
            tokens.update(corpus.item_tokens[bounds[0] + 1 : bounds[1]].tolist())
        assert {token: row[token] for token in np.flatnonzero(row)} == tokens


@pytest.mark.parametrize("rows_at_once", [7, 8192])
def test_leading_directions_span_the_svd(rows_at_once, monkeypatch):
    monkeypatch.setattr("clue_ray.training.terms.ROWS_AT_ONCE", rows_at_once)
    rng = np.random.default_rng(0)
    scales = np.array([9.0, 7, 5, 4, 3, *[0.3] * 35])
    matrix = (
        rng.standard_normal((200, 40)) * scales @ np.linalg.qr(rng.standard_normal((40, 40)))[0]
    )
    found = leading_directions(sparse.csr_array(matrix), 5)
    _, _, right = np.linalg.svd(matrix, full_matrices=False)
    assert found.shape == (40, 5)
    assert np.allclose(found @ found.T, right[:5].T @ right[:5], atol=1e-6)


def test_empty_histories_are_no_documents():
    counts = [sparse.csr_array(np.array([[2.0, 0], [0, 0]])), sparse.csr_array(np.eye(2))]
    expected = np.log(np.array([4 / 3, 4 / 2])) + 1
    assert np.allclose(inverse_document_frequency(counts), expected)


def test_rows_of_zeros_stay():
    assert unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [
        [pytest.approx(0.6), pytest.approx(0.8)],
        [0.0, 0.0],
    ]
    weighted = unit_rows(sparse.csr_array(np.array([[1.0, np.e], [0, 0]])), np.array([1.0, 0.5]))
    assert np.allclose(weighted.toarray(), [[0.5**0.5, 0.5**0.5], [0, 0]])
