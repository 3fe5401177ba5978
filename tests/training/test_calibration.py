"""The fitted temperature is the best of a dense grid, for vectors of any quality."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clue_ray.runs import TEMPERATURE_BOUNDS
from clue_ray.training.calibration import fit_temperature
from clue_ray.training.evaluate import score_calibrated, score_cosines


def cosines(users: int, noise: float, seed: int) -> torch.Tensor:
    """Return the cosines of two noisy views of random users."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((users, 16))
    views = (shared + noise * rng.standard_normal(shared.shape) for _ in range(2))
    a, b = (F.normalize(torch.from_numpy(view), dim=1) for view in views)
    return a @ b.T


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_the_temperature_is_the_best_of_a_dense_grid(noise):
    matrices = [cosines(40, noise, 0), cosines(60, noise, 1)]

    def loss(temperature: float) -> float:
        losses = [score_cosines([matrix], temperature).loss for matrix in matrices]
        return float(np.average(losses, weights=[40, 60]))

    grid = np.geomspace(*TEMPERATURE_BOUNDS, 500)
    best = grid[np.argmin([loss(temperature) for temperature in grid])]
    found = fit_temperature(matrices)
    assert found == pytest.approx(best, rel=0.02)
    assert loss(found) <= loss(best) + 1e-6


def test_float32_cosines_have_the_same_temperature():
    matrix = cosines(50, 1.0, 2)
    assert fit_temperature([matrix.float()]) == pytest.approx(fit_temperature([matrix]), rel=1e-3)


@pytest.mark.parametrize(("matrix", "bound"), [(1e-5 * torch.eye(20), 0), (-torch.eye(20), 1)])
def test_a_temperature_stays_within_its_bounds(matrix, bound):
    assert fit_temperature([matrix]) == pytest.approx(TEMPERATURE_BOUNDS[bound], rel=0.01)


def test_what_is_no_number_has_no_temperature():
    broken = torch.full((4, 4), math.nan)
    assert math.isnan(fit_temperature([torch.eye(4), broken]))
    scores, temperature = score_calibrated([broken], [broken])
    assert all(map(math.isnan, (*scores, temperature)))


def test_ranks_do_not_depend_on_the_temperature():
    scored = [cosines(30, 1.0, 3)]
    scores, temperature = score_calibrated(scored, [cosines(30, 1.0, 4)])
    assert scores == score_cosines(scored, temperature)
    assert scores[1:] == score_cosines(scored, 0.02)[1:]
