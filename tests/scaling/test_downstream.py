"""Predicting the largest runs' scores from their losses: right as often as it says, and it sees a
task that parts."""

import numpy as np
import pytest
from scipy import stats

from clue_ray.scaling.downstream import FEWEST, correlation, hold_out, predict_largest


def studies(count, parts=0.0, noise=0.01):
    """Nine runs a study: loss falls in compute, score in a straight line of loss, the two largest
    off by `parts`."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        compute = 10 ** np.sort(rng.uniform(13, 17, 9))
        loss = 2 + 3 * (compute / 1e13) ** -0.15
        score = 0.9 - 0.1 * loss + rng.normal(0, noise, 9)
        score[-2:] += parts
        yield compute, loss, score


def test_the_interval_covers_as_often_as_it_says():
    verdicts = [predict_largest(*study).verdict for study in studies(1000)]
    wrong = sum(verdict in ("less", "more") for verdict in verdicts)
    assert 30 <= wrong <= 70


@pytest.mark.parametrize(("parts", "verdict"), [(-0.1, "less"), (0.1, "more"), (0.0, "holds")])
def test_a_task_that_parts_and_one_that_follows_are_told_apart(parts, verdict):
    verdicts = [predict_largest(*study).verdict for study in studies(50, parts, noise=0.001)]
    assert verdicts.count(verdict) >= 45


def test_the_interval_is_that_of_ordinary_least_squares():
    compute, loss, score = next(studies(1))
    found = predict_largest(compute, loss, score)
    design = np.stack([np.ones(7), loss[:7]], axis=1)
    weights, (squares,), *_ = np.linalg.lstsq(design, score[:7], rcond=None)
    place = np.array([1, loss[7:].mean()])
    variance = squares / 5 * (1 / 2 + place @ np.linalg.inv(design.T @ design) @ place)
    half = stats.t.ppf(0.975, 5) * variance**0.5
    assert (found.smaller, found.larger) == (7, 2)
    assert found.expected == pytest.approx(place @ weights)
    assert found.high - found.expected == pytest.approx(half, rel=1e-6)
    assert found.stopped == pytest.approx(weights @ [1, loss[:7].min()])


def test_largest_runs_that_gain_no_loss_tell_nothing():
    compute, loss, score = next(studies(1, noise=0.002))
    assert (
        predict_largest(
            compute, np.append(loss[:7], loss[:2]), np.append(score[:7], score[:2])
        ).verdict
        == "no further"
    )


@pytest.mark.parametrize("runs", [0, 1, FEWEST])
def test_few_scored_runs_tell_nothing(runs):
    compute = np.geomspace(1, 1e3, runs)
    assert predict_largest(compute, -np.log(compute + 1), np.log(compute + 1)) is None


def test_runs_of_equal_compute_are_held_out_together():
    assert hold_out(np.array([1.0, 2, 4, 4, 4])).tolist() == [False, False, True, True, True]
    rng = np.random.default_rng(0)
    assert predict_largest(np.ones(8), rng.random(8), rng.random(8)) is None
    assert predict_largest(np.arange(8.0), np.ones(8), rng.random(8)) is None


def test_the_correlation_excludes_zero_by_chance_as_often_as_it_says():
    rng = np.random.default_rng(1)
    found = [correlation(*rng.standard_normal((2, 5))) for _ in range(1000)]
    assert sum(not low <= 0 <= high for _, low, high in found) < 65
    loss = rng.random(12)
    value, low, high = correlation(loss, -loss + 0.3 * rng.random(12))
    assert low < value < high
    assert np.isnan(correlation(loss, np.full(12, 0.1))[0])
