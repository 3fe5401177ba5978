"""Training loss is smoothed over users, so that curves of different batch sizes compare."""

import math

import pytest

from clue_ray.spec.compute import Work
from clue_ray.spec.specs import EvaluationSpec, RunSpec
from clue_ray.training.counters import SMOOTHING_USERS, Counters, describe_run


def after(batch_size, losses):
    counters = Counters()
    for loss in losses:
        counters.add(Work(tokens=100 * batch_size), Work(), loss, 0, users=batch_size)
    return counters


def test_the_same_users_the_same_smoothed_loss():
    small, large = after(32, [5.0] * 40 + [4.0] * 8), after(128, [5.0] * 10 + [4.0] * 2)
    assert small.train_loss == pytest.approx(large.train_loss, abs=1e-12)
    assert 4 < small.train_loss < 5


def test_smoothing_forgets_after_as_many_users():
    counters = after(SMOOTHING_USERS, [9.0] * 50 + [1.0])
    assert counters.train_loss == pytest.approx(1 + 8 * math.exp(-1), abs=1e-12)
    assert after(8, [3.5]).train_loss == pytest.approx(
        3.5
    )  # the first steps are no mix with nothing
    assert math.isnan(Counters().train_loss)


def test_kept_and_read_back():
    counters = after(32, [5.0, 4.0])
    assert Counters.from_dict(counters.to_dict()) == counters


def test_settings_without_a_column_are_described(corpus):
    def described(encoder, **train):
        run = RunSpec(encoder=encoder, train={"steps": 3, **train}, sequence_length=4)
        return describe_run(run, corpus, EvaluationSpec()).other_settings

    assert described({"size": "xs", "bag": False}, seed=3, learning_rate=0.1) == ""
    shape = {"width": 16, "item_layers": 1, "service_layers": 1, "heads": 2, "time": True}
    assert (
        described(shape, past_future=0.5, clip_norm=0.1)
        == "encoder.time true, train.past_future 0.5"
    )
