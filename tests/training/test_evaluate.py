"""Held-out scores equal the naive ones, on a pool that is the same for every run."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clue_ray.corpus.store import Corpus
from clue_ray.encoder.model import Encoder
from clue_ray.errors import CorpusError
from clue_ray.spec.specs import EncoderSpec
from clue_ray.training.baselines import tfidf_baseline
from clue_ray.training.evaluate import embed, evaluate, make_pools, score_similarities
from tests.plain import plain_embedding


def naive_scores(logits: np.ndarray) -> tuple[float, float, float]:
    losses, hits, reciprocal = [], [], []
    for matrix in (logits, logits.T):
        for i, row in enumerate(matrix):
            losses.append(-row[i] + math.log(sum(math.exp(v) for v in row)))
            rank = 1 + sum(v > row[i] for v in row) + (sum(v == row[i] for v in row) - 1) / 2
            hits.append(rank <= 10)
            reciprocal.append(1 / rank)
    return float(np.mean(losses)), float(np.mean(hits)), float(np.mean(reciprocal))


@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 5.0]))
def test_scores_equal_the_naive_ones(seed, scale):
    logits = np.round(np.random.default_rng(seed).normal(size=(14, 14)) * scale, 1)
    assert np.allclose(
        score_similarities(torch.from_numpy(logits)), naive_scores(logits), atol=1e-6
    )


def test_what_is_no_number_has_no_score():
    logits = torch.zeros(4, 4)
    logits[1, 2] = torch.nan
    assert all(math.isnan(score) for score in score_similarities(logits))


def test_a_guess_is_chance():
    scores = score_similarities(torch.zeros(256, 256))
    assert scores.loss == pytest.approx(math.log(256))


def test_pools_hold_held_out_users_with_both_services(corpus: Corpus):
    pools = make_pools(corpus, 16)
    assert len(pools) == 3
    for (a, b), users in pools.items():
        assert len(set(users)) == 16
        assert np.isin(users, corpus.test_users).all()
        assert (corpus.counts[users, a] > 0).all()
        assert (corpus.counts[users, b] > 0).all()
    again = make_pools(corpus, 16)
    assert all(np.array_equal(pools[pair], again[pair]) for pair in pools)


def test_pool_larger_than_the_held_out_users_is_refused(corpus):
    with pytest.raises(
        CorpusError, match=r"evaluation.candidates 1000 is larger than the \d+ held-out users"
    ):
        make_pools(corpus, 1000)


def test_evaluate_equals_plain_embeddings(corpus):
    model = Encoder(EncoderSpec(size="xxs"), corpus.vocabulary(4), temperature=0.1, seed=0)
    pools = {pair: users for pair, users in make_pools(corpus, 16).items() if pair == (0, 2)}
    users = pools[0, 2]
    sides = []
    for service in (0, 2):
        histories = [
            corpus.events[corpus.offsets[u * 3 + service] :][: min(4, corpus.counts[u, service])]
            for u in users
        ]
        sides.append(torch.stack([plain_embedding(model, corpus, h) for h in histories]))
    with torch.no_grad():
        expected = naive_scores((model.scale * sides[0] @ sides[1].T).double().numpy())
    assert np.allclose(evaluate(model, corpus, pools, 4), expected, atol=1e-4)


def test_users_without_events_embed_to_zero(corpus):
    model = Encoder(EncoderSpec(size="xxs"), corpus.vocabulary(4), temperature=0.1, seed=0)
    absent = corpus.counts.copy()
    absent[corpus.test_users[3], 1] = 0
    corpus.__dict__["counts"], kept = absent, corpus.counts
    try:
        vectors = embed(model, corpus, corpus.test_users, 1, 4)
    finally:
        corpus.__dict__["counts"] = kept
    norms = vectors.norm(dim=1)
    assert norms[3] == 0
    assert torch.allclose(norms[norms > 0], torch.ones(len(norms) - 1), atol=1e-5)


def test_baseline_scores_words(corpus):
    scores = tfidf_baseline(corpus, 16)
    assert scores["loss_candidates"] == 16
    assert 0 < scores["loss"] <= math.log(16) + 1e-6
    assert 0 < scores["mrr"] <= 1
