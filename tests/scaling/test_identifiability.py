"""Identifiability: numbers against their definitions, tied exponents distinguished or not."""

from itertools import product

import numpy as np
import pytest

from clue_ray.scaling.deciding.allocate import allocate
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.result import Fit
from clue_ray.scaling.judging.identifiability import MAX_CONDITION, identifiability


def surface(alpha: float, beta: float, noise: float = 0.002, seed: int = 0) -> Fit:
    size, tokens = np.array(list(product(np.logspace(4, 6, 5), np.logspace(6, 8, 5)))).T
    loss = 1.8 + 1.5 * (size / 1e4) ** -alpha + 1.2 * (tokens / 1e6) ** -beta
    loss = loss * np.exp(noise * np.random.default_rng(seed).normal(size=25))
    return fit_law("parametric_loss", {"N": size, "D": tokens, "L": loss}, x=["N", "D"], y="L")


def test_condition_and_worst_direction_match_finite_differences() -> None:
    fit = surface(0.3, 0.5)
    found = identifiability(fit)

    def logs(theta: np.ndarray) -> np.ndarray:
        return np.asarray(fit.problem.log_values(theta))

    steps = 1e-6 * np.eye(5)
    slopes = np.stack([(logs(fit.theta + h) - logs(fit.theta - h)) / 2e-6 for h in steps], axis=1)
    scaled = slopes / np.linalg.norm(slopes, axis=0)
    assert found.condition == pytest.approx(np.linalg.cond(scaled), rel=1e-4)
    direction = np.array(list(found.worst_direction.values()))
    assert np.linalg.norm(scaled @ direction) == pytest.approx(
        np.linalg.svd(scaled)[1][-1], rel=1e-4
    )
    assert np.diag(found.correlation) == pytest.approx(1)
    assert np.abs(found.correlation).max() <= 1 + 1e-9


def test_different_exponents_are_distinguished() -> None:
    apart = identifiability(surface(0.25, 0.7)).tied
    assert apart is not None
    assert apart.p_value < 1e-3
    assert apart.ratio > 1.2
    assert 0.25 < apart.exponent < 0.7
    same = identifiability(surface(0.4, 0.4))
    assert same.tied is not None
    assert same.tied.p_value > 0.05
    assert 1 <= same.tied.ratio < 1.3
    assert same.tied.exponent == pytest.approx(0.4, abs=0.05)
    assert any("equal exponents" in warning for warning in same.warnings)


def test_the_test_of_tied_exponents_has_its_nominal_size() -> None:
    # type: ignore[union-attr]
    values = [identifiability(surface(0.4, 0.4, seed=seed)).tied.p_value for seed in range(30)]
    assert np.mean(np.array(values) < 0.05) <= 0.2
    assert np.mean(np.array(values) < 0.5) > 0.2


def test_laws_of_one_predictor_have_nothing_to_tie() -> None:
    x = np.logspace(10, 13, 8)
    fit = fit_law(
        "power_law_plus_constant", {"x": x, "y": 1.8 + 3.5 * (x / 1e10) ** -0.25}, x="x", y="y"
    )
    found = identifiability(fit)
    assert found.tied is None
    assert found.warnings == ()
    assert 1 < found.condition < 1e3
    assert found.to_dict()["tied"] is None
    assert found.to_dict()["split"] is None


def test_a_parameter_without_effect_has_no_finite_condition() -> None:
    """The coefficient and the floor of a flat law cannot be distinguished."""
    x = np.logspace(10, 13, 8)
    rising = fit_law(
        "power_law_plus_constant", {"x": x, "y": 2 + 0.1 * np.log10(x / 1e10)}, x="x", y="y"
    )
    found = identifiability(rising)
    assert found.condition > MAX_CONDITION
    assert "hardly tell" in found.warnings[0]


def test_the_range_of_the_best_split_holds_its_truth() -> None:
    found = surface(0.25, 0.7)
    split = identifiability(found).split
    assert split is not None
    assert split.low < 0.7 / 0.95 < split.high
    assert split.high - split.low < 0.2
    alpha, beta = found.parameters["alpha"], found.parameters["beta"]
    assert split.value == pytest.approx(beta / (alpha + beta))
    sizes = [allocate(found, budget).non_embedding_params.value for budget in (1e12, 1e14)]
    assert np.log10(sizes[1] / sizes[0]) / 2 == pytest.approx(split.value)
    assert identifiability(found).to_dict()["split"]["low"] == split.low
