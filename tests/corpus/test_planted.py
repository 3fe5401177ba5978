"""Planted logs are drawn as described, and their floor equals a slow calculation."""

import itertools
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from clue_ray.corpus.planted import (
    METADATA_KEY,
    PlantedLog,
    PlantedSpec,
    bayes_loss,
    bayes_scores,
    planted_events,
    planted_floor,
    write_planted,
)
from clue_ray.errors import EventLogError

SPEC = PlantedSpec(users=400, services=2, topics=5, concentration=1.0, items_per_topic=6, events=10)


def test_one_text_belongs_to_one_topic_and_one_service():
    texts = PlantedLog(SPEC).texts.to_pylist()
    assert len(set(texts)) == 2 * 5 * 6
    events = planted_events(SPEC).to_pandas()
    assert events.groupby("text")["service"].nunique().max() == 1
    index = {text: i for i, text in enumerate(texts)}
    topic = events["text"].map(index) // 6 % 5
    share = topic.groupby(events["user_id"]).agg(lambda t: t.value_counts(normalize=True).iloc[0])
    assert (
        share.mean() > 0.6
    )  # total concentration 1 over 5 topics: most of a user's events are of one


def test_popular_items_follow_zipf():
    events = planted_events(SPEC.model_copy(update={"users": 4000})).to_pandas()
    index = {text: i for i, text in enumerate(PlantedLog(SPEC).texts.to_pylist())}
    rank = events["text"].map(index) % 6
    expected = 1 / np.arange(1, 7)
    assert np.allclose(
        rank.value_counts(normalize=True).sort_index(), expected / expected.sum(), atol=0.01
    )


def test_scores_equal_the_definition():
    """Integrate p(a, b) / (p(a) p(b)) over a grid of mixtures of two topics."""
    alpha = 0.7
    grid = (np.arange(200_000) + 0.5) / 200_000
    prior = grid ** (alpha - 1) * (1 - grid) ** (alpha - 1)
    prior /= prior.sum()

    def probability(counts):
        return float((prior * grid ** counts[0] * (1 - grid) ** counts[1]).sum())

    for a, b in itertools.product([(2, 1), (0, 3), (4, 0)], [(1, 1), (0, 0), (3, 2)]):
        joint = probability((a[0] + b[0], a[1] + b[1]))
        expected = math.log(joint / probability(a) / probability(b))
        found = bayes_scores(np.array([a]), np.array([b]), 2 * alpha)[0, 0]
        assert found == pytest.approx(expected, abs=2e-3)


def test_floor_of_the_published_setting():
    """64 topics, concentration 2, 256 candidates, full histories: the values in planted.md."""
    spec = PlantedSpec(topics=64, concentration=2.0, events=2000)
    for length, expected in [(4, 2.1), (8, 0.57), (16, 0.07)]:
        assert bayes_loss(spec, length, 256, users=4096) == pytest.approx(expected, abs=0.06)


def test_floor_falls_with_history_and_rises_with_candidates():
    spec = PlantedSpec()
    losses = [bayes_loss(spec, length, 256, users=1024) for length in (8, 16, 32, 64)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] > 0.3
    assert losses[0] < math.log(256)
    assert bayes_loss(spec, 32, 64, users=1024) < losses[2]


def test_no_score_beats_the_floor():
    """Compare with the cosine of topic counts at its best temperature, on the same draws."""
    planted, rng = PlantedLog(SPEC), np.random.default_rng(0)
    drawn = planted.draw_topics(rng, 400)
    a, b = (drawn.counts(service, 400, 5, 16).astype(float) for service in (0, 1))
    cosine = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (
        b / np.linalg.norm(b, axis=1, keepdims=True)
    ).T

    def loss(scores):
        right = np.diagonal(scores)
        return (np.logaddexp.reduce(scores, axis=1) - right).mean()

    floor = loss(bayes_scores(a.astype(int), b.astype(int), SPEC.concentration))
    assert floor < min(loss(cosine * scale) for scale in np.geomspace(1, 100, 30))


def test_histories_are_cut_to_the_sequence_length():
    drawn = PlantedLog(SPEC).draw_topics(np.random.default_rng(0), 50)
    whole, cut = (drawn.counts(1, 50, 5, length).sum(axis=1) for length in (10**6, 7))
    assert np.array_equal(cut, np.minimum(whole, 7))
    assert whole.max() > 7
    assert whole.sum() == (drawn.service == 1).sum()


@pytest.mark.slow
@pytest.mark.ray
def test_streamed_log_is_the_drawn_one(ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "clue_ray.corpus.planted.EVENTS_PER_FILE", 2000
    )  # in the driver: how many files are written
    rows = write_planted(SPEC, tmp_path / "log")
    table = pq.read_table(tmp_path / "log")
    assert rows == table.num_rows
    assert table["user_id"].combine_chunks().unique().to_pylist().__len__() == SPEC.users
    first = sorted((tmp_path / "log").iterdir())[0]
    assert PlantedSpec.model_validate_json(pq.read_schema(first).metadata[METADATA_KEY]) == SPEC
    with pytest.raises(EventLogError, match="exists already"):
        write_planted(SPEC, tmp_path / "log")
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def test_floor_of_a_planted_log_falls_with_history_and_no_other_log_has_one():
    spec = PlantedSpec(
        users=240, services=3, topics=12, concentration=2, items_per_topic=20, events=24
    )
    floor = planted_floor(spec.model_dump_json(), {4, 16}, 16)
    assert floor["bayes_loss_candidates"] == 16
    assert list(floor["bayes_loss"]) == ["4", "16"]
    assert floor["bayes_loss"]["4"] == bayes_loss(spec, 4, 16) > floor["bayes_loss"]["16"] > 0
    assert planted_floor(None, {4}, 16) == {}
