"""Baselines are scored like encoders, and what is trained beats what is not."""

import pytest

from clue_ray.training.baselines import score_baselines


@pytest.fixture(scope="module")
def scored(corpus):
    return score_baselines(corpus, 32, [8, 2, 8])


def test_there_is_one_entry_per_method_and_history(scored):
    assert [(entry["method"], entry["sequence_length"]) for entry in scored] == [
        ("tfidf", None),
        ("linear_map", None),
        ("linear_map", 2),
        ("linear_map", 8),
    ]
    assert len({entry["name"] for entry in scored}) == 4
    assert {entry["loss_candidates"] for entry in scored} == {32}


def test_trained_baselines_beat_the_untrained_and_gain_from_longer_histories(scored):
    untrained, whole, short, longer = scored
    assert whole["loss"] < untrained["loss"] - 0.2
    assert whole["recall_at_10"] > untrained["recall_at_10"] + 0.05
    assert whole["loss"] < longer["loss"] < short["loss"]


def test_baselines_are_reproducible(scored, corpus):
    assert score_baselines(corpus, 32, [2])[:3] == scored[:3]
