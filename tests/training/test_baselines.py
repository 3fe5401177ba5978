"""The linear baseline: its subspace is the SVD's, its directions are those that go together, and it
learns."""

import numpy as np
import pytest
from scipy import sparse

from clue_ray.training.baselines import (
    canonical_directions,
    leading_directions,
    linear_baseline,
    tfidf_baseline,
    unit,
)


def test_leading_directions_span_the_svd():
    rng = np.random.default_rng(0)
    scales = np.array([9.0, 7, 5, 4, 3, *[0.3] * 35])
    matrix = (
        rng.standard_normal((200, 40)) * scales @ np.linalg.qr(rng.standard_normal((40, 40)))[0]
    )
    found = leading_directions(sparse.csr_array(matrix), 5)
    _, _, right = np.linalg.svd(matrix, full_matrices=False)
    assert found.shape == (40, 5)
    assert np.allclose(found @ found.T, right[:5].T @ right[:5], atol=1e-6)


def test_canonical_directions_find_what_two_sides_share():
    rng = np.random.default_rng(1)
    shared, noise = rng.standard_normal((5000, 1)), rng.standard_normal((2, 5000, 9))
    a = np.hstack([noise[0, :, :4], 0.5 * shared, 3 * noise[0, :, 4:]])
    b = np.hstack([0.5 * shared + 0.1 * noise[1, :, :1], 2 * noise[1]])
    first, second = canonical_directions(a, b)
    assert np.argmax(np.abs(first[:, 0])) == 4
    assert np.argmax(np.abs(second[:, 0])) == 0
    assert np.corrcoef(a @ first[:, 0], b @ second[:, 0])[0, 1] > 0.95
    assert np.abs(np.corrcoef(a @ first[:, 1], b @ second[:, 1])[0, 1]) < 0.2


def test_the_trained_baseline_beats_the_untrained(corpus):
    trained, untrained = linear_baseline(corpus, 32), tfidf_baseline(corpus, 32)
    assert trained["loss_candidates"] == 32
    assert trained["name"] != untrained["name"]
    assert trained["loss"] < untrained["loss"] - 0.3
    assert trained["recall_at_10"] > untrained["recall_at_10"] + 0.05
    assert linear_baseline(corpus, 32) == trained


def test_rows_of_zeros_stay():
    assert unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [
        [pytest.approx(0.6), pytest.approx(0.8)],
        [0.0, 0.0],
    ]
