"""Held-out scores equal the naive ones, on a pool that is the same for every run."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clue_ray.corpus.store import Corpus
from clue_ray.encoder.model import Encoder
from clue_ray.spec.specs import EncoderSpec
from clue_ray.training.calibration import fit_temperature
from clue_ray.training.evaluate import embed, evaluate, score_similarities
from clue_ray.training.pools import Pools, make_pools
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


def test_evaluate_equals_plain_embeddings(corpus):
    model = Encoder(EncoderSpec(size="xxs"), corpus.vocabulary(4), temperature=0.1, seed=0)
    scored, validation = (
        {pair: users for pair, users in pool.items() if pair == (0, 2)}
        for pool in make_pools(corpus, 16)[:2]
    )

    def cosines(users: np.ndarray) -> np.ndarray:
        sides = []
        for service in (0, 2):
            lengths = np.minimum(4, corpus.counts[users, service])
            histories = [
                corpus.events[corpus.offsets[u * 3 + service] :][:length]
                for u, length in zip(users, lengths, strict=True)
            ]
            sides.append(torch.stack([plain_embedding(model, corpus, h) for h in histories]))
        with torch.no_grad():
            return (sides[0] @ sides[1].T).double().numpy()

    found = evaluate(model, corpus, Pools(scored, validation, 16), 4)
    own, others = cosines(scored[0, 2]), cosines(validation[0, 2])
    temperature = fit_temperature([torch.from_numpy(others)])
    assert found.calibrated_temperature == pytest.approx(temperature, rel=0.02)
    assert found[:3] == pytest.approx(naive_scores(own / found.calibrated_temperature), abs=1e-4)
    assert found.loss_at_training_temperature == pytest.approx(naive_scores(own / 0.1)[0], abs=1e-4)


def test_users_without_events_embed_to_zero(corpus):
    model = Encoder(EncoderSpec(size="xxs"), corpus.vocabulary(4), temperature=0.1, seed=0)
    histories = Corpus(corpus.path, corpus.manifest)
    histories.offsets = corpus.offsets.copy()
    start = corpus.test_users[3] * 3 + 1  # the second service is given to the first
    histories.offsets[start] = histories.offsets[start + 1]
    vectors = embed(model, histories, corpus.test_users, 1, 4)
    norms = vectors.norm(dim=1)
    assert norms[3] == 0
    assert torch.allclose(norms[norms > 0], torch.ones(len(norms) - 1), atol=1e-5)
