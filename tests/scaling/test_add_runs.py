"""Runs to add: the choice against brute force, what it promises against a real refit, and what it
leaves."""

from itertools import combinations

import numpy as np
import pytest

from clue_ray.scaling.deciding.add_runs import Design, choose_runs
from clue_ray.scaling.fitting.fit import fit_law

AT = 1e15
CANDIDATES = np.geomspace(2e11, 1e14, 9)


def planted(x, seed=0):
    return (4 + 2 * (x / 1e11) ** -0.25) * np.exp(
        0.003 * np.random.default_rng(seed).normal(size=len(x))
    )


def fitted(x, seed=0):
    table = {"train_flops": x, "loss": planted(x, seed)}
    return fit_law("power_law_plus_constant", table, x="train_flops", y="loss")


@pytest.fixture(scope="module")
def start():
    x = np.geomspace(1e11, 1e13, 8)
    return x, fitted(x[:-1])


def width_of(fit, x, chosen):
    design = Design.build(fit, np.concatenate([x, CANDIDATES]), AT)
    return design.half_width(
        np.append(np.arange(len(x)), [len(x) + place for place in chosen]).astype(int)
    )


def test_half_width_is_that_of_the_fit_to_first_order():
    x = np.geomspace(1e11, 1e16, 40)  # far and many, so that the profile is nearly a parabola
    fit = fitted(x[:-1])
    low, high = fit.predict(train_flops=AT)[1:]
    expected = np.log(high / low) / 2
    assert Design.build(fit, x, AT).half_width(np.arange(len(x))) == pytest.approx(
        expected, rel=0.1
    )


@pytest.mark.parametrize("budget", [3e12, 2e13, 1e14])
def test_choice_is_near_the_best_of_all_choices(start, budget):
    x, fit = start
    chosen, factor = choose_runs(fit, x, CANDIDATES, budget, AT)
    everything = (set_ for size in range(10) for set_ in combinations(range(9), size))
    best = min(
        width_of(fit, x, set_) for set_ in everything if CANDIDATES[list(set_)].sum() <= budget
    )
    assert CANDIDATES[chosen].sum() <= budget
    assert width_of(fit, x, chosen) <= 1.1 * best
    assert factor == pytest.approx(width_of(fit, x, chosen) / width_of(fit, x, []))


def test_chosen_runs_narrow_the_interval_of_a_refit_as_promised(start):
    x, _ = start
    kept = []
    for seed in range(12):
        fit = fitted(x[:-1], seed)
        chosen, factor = choose_runs(fit, x, CANDIDATES, 1e14, AT)
        grown = np.sort(np.append(x, CANDIDATES[chosen]))[:-1]  # the largest is held out
        (_, low, high), (_, new_low, new_high) = (
            f.predict(train_flops=AT) for f in (fit, fitted(grown, seed))
        )
        kept.append(np.log((new_high - new_low) / (high - low)) - np.log(factor))
    assert abs(np.median(kept)) < np.log(2)  # first order, and each refit finds another noise


def test_nothing_is_chosen_below_the_cheapest_run(start):
    x, fit = start
    assert choose_runs(fit, x, CANDIDATES, 1e11, AT) == ([], 1.0)
    assert choose_runs(fit, x, CANDIDATES[:0], 1e14, AT) == ([], 1.0)
