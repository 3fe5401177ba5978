"""Intervals: coverage by simulation, a slow reference, bounds, speed."""

import time

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

from benchmarks.coverage import CASES, Case, coverage
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.intervals import MAX_PROFILED, Likelihood
from clue_ray.scaling.fitting.result import Fit
from clue_ray.scaling.fitting.warnings import widths_differ

FLOOR, HEIGHT, EXPONENT = 1.8, 3.5, 0.25


def simulate(
    num_runs: int, seed: int, noise: float = 0.003, decades: float = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Draw runs equally spaced in log compute, with normal noise on log loss."""
    x = np.logspace(0, decades, num_runs)
    rng = np.random.default_rng(seed)
    return x, (FLOOR + HEIGHT * x**-EXPONENT) * np.exp(noise * rng.normal(size=num_runs))


def fitted(
    num_runs: int, seed: int, law: str = "power_law_plus_constant", loss: str = "log_huber"
) -> Fit:
    x, y = simulate(num_runs, seed)
    return fit_law(law, {"x": x, "y": y}, x="x", y="y", loss=loss)


def test_intervals_cover_the_truth() -> None:
    at, replicates = 1e4, 40
    truth, hits = FLOOR + HEIGHT * at**-EXPONENT, np.zeros(3)
    for seed in range(replicates):
        found = fitted(8, seed)
        low, high = found.interval("exponent")
        value, run = found.predict(x=at), found.predict_run(x=at)
        outcome = truth * np.exp(0.003 * np.random.default_rng(10_000 + seed).normal())
        hits += [
            low <= EXPONENT <= high,
            value.low <= truth <= value.high,
            run.low <= outcome <= run.high,
        ]
    assert (hits / replicates >= 0.85).all(), hits / replicates


def test_straight_line_matches_textbook() -> None:
    """For a law that is linear in log space the profile is the exact t interval of regression."""
    x, y = simulate(8, seed=4)
    found = fit_law("power_law", {"x": x, "y": y}, x="x", y="y", loss="log_least_squares")
    design = np.stack([np.ones(8), -np.log(x)], 1)
    best, *_ = np.linalg.lstsq(design, np.log(y), rcond=None)
    variance = np.sum((np.log(y) - design @ best) ** 2) / 6
    covariance, quantile = variance * np.linalg.inv(design.T @ design), t_distribution.ppf(0.975, 6)
    assert found.parameters["exponent"] == pytest.approx(best[1], rel=1e-8)
    error = quantile * np.sqrt(covariance[1, 1])
    assert found.interval("exponent") == pytest.approx((best[1] - error, best[1] + error), rel=1e-4)
    row = np.array([1, -np.log(1e4)])
    for prediction, extra in ((found.predict(x=1e4), 0.0), (found.predict_run(x=1e4), variance)):
        width = quantile * np.sqrt(row @ covariance @ row + extra)
        ends = (np.exp(row @ best - width), np.exp(row @ best + width))
        assert prediction[1:] == pytest.approx(ends, rel=1e-4)


def test_exponent_interval_matches_a_slow_profile() -> None:
    """The reference fits floor and coefficient at each exponent and finds the ends as roots."""
    x, y = simulate(10, seed=2)
    found = fit_law(
        "power_law_plus_constant", {"x": x, "y": y}, x="x", y="y", loss="log_least_squares"
    )

    def cost(exponent: float) -> float:
        theta = np.array([2.0, 3.0])
        for _ in range(60):
            terms = np.stack([np.ones(10), x**-exponent], 1)
            values = terms @ theta
            theta = (
                theta
                - np.linalg.lstsq(terms / values[:, None], np.log(values) - np.log(y), rcond=None)[
                    0
                ]
            )
        return float(np.sum((np.log(terms @ theta) - np.log(y)) ** 2))

    best = found.parameters["exponent"]
    limit = cost(best) * (1 + f_distribution.ppf(0.95, 1, 7) / 7)
    slow = [brentq(lambda b: cost(b) - limit, *sorted((best, end))) for end in (best / 3, best * 3)]
    assert found.interval("exponent") == pytest.approx(slow, rel=1e-4)


def test_intervals_respect_bounds_and_hold_the_estimate() -> None:
    x = np.logspace(0, 3, 8)
    y = 5 * x**-0.1 * np.exp(0.03 * np.random.default_rng(0).normal(size=8))
    found = fit_law("power_law_plus_constant", {"x": x, "y": y}, x="x", y="y")
    low, high = found.interval("irreducible_loss")
    assert low == pytest.approx(0, abs=1e-6)
    assert found.parameters["irreducible_loss"] <= high < y.min()
    for name, value in found.parameters.items():
        assert found.interval(name)[0] <= value <= found.interval(name)[1]
    narrow, wide = found.predict(level=0.5, x=1e4), found.predict(level=0.99, x=1e4)
    assert wide.low < narrow.low <= narrow.value <= narrow.high < wide.high


def test_bootstrap_agrees_with_profile_on_good_data_and_is_seeded() -> None:
    found = fitted(20, 1)
    profile, bootstrap = found.predict(x=1e4), found.bootstrap_predict(x=1e4)
    assert not widths_differ(profile[1:], bootstrap[1:])
    assert found.bootstrap_interval("exponent") == fitted(20, 1).bootstrap_interval("exponent")


FEW = {
    "x": np.array([5.7e10, 1.0e11, 1.7e11, 2.7e11, 9.0e11]),
    "y": np.array([5.470, 5.438, 5.406, 5.274, 5.267]),
}


@pytest.mark.parametrize(
    "law", ["power_law", "log_linear", "power_law_plus_constant", "bounded_power_law"]
)
def test_band_of_few_runs_is_smooth_finite_and_widens(law: str) -> None:
    found = fit_law(law, FEW | {"loss_candidates": np.full(5, 256)}, x="x", y="y")
    x = np.geomspace(5.7e10, 3.3e13, 41)
    low, high = found.band(x)
    curve = found.curve(x)
    assert (np.isfinite(high) & (low > 0) & (low <= curve) & (curve <= high)).all()
    assert high.max() < 6
    assert max(np.abs(np.diff(high, 2)).max(), np.abs(np.diff(low, 2)).max()) < 0.1  # no jumps
    beyond = (high - low)[x > 9e11]
    assert (np.diff(beyond) > 0).all()
    for place in (0, 20, 40):  # the envelope agrees with separate intervals
        one = found.predict(x=x[place])
        assert [low[place], high[place]] == pytest.approx(one[1:], abs=0.03)


def test_few_runs_use_least_squares() -> None:
    """With 3 degrees of freedom nothing is clipped: the robust fit's interval is the textbook t
    interval."""
    found = fit_law("power_law", FEW, x="x", y="y")
    design = np.stack([np.ones(5), -np.log(FEW["x"])], 1)
    best, *_ = np.linalg.lstsq(design, np.log(FEW["y"]), rcond=None)
    variance = np.sum((np.log(FEW["y"]) - design @ best) ** 2) / 3
    error = t_distribution.ppf(0.975, 3) * np.sqrt(
        (variance * np.linalg.inv(design.T @ design))[1, 1]
    )
    assert found.interval("exponent") == pytest.approx((best[1] - error, best[1] + error), rel=1e-4)


def test_exact_data_have_a_point_as_interval() -> None:
    x = np.logspace(0, 3, 8)
    found = fit_law(
        "power_law_plus_constant", {"x": x, "y": FLOOR + HEIGHT * x**-EXPONENT}, x="x", y="y"
    )
    assert found.predict(x=1e4) == pytest.approx([FLOOR + HEIGHT * 1e4**-EXPONENT] * 3, rel=1e-5)


def test_an_interval_is_computed_once_per_level(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = fitted(8, 3), []
    interval = Likelihood.interval
    monkeypatch.setattr(
        Likelihood, "interval", lambda self, *how: asked.append(how) or interval(self, *how)
    )
    first = found.interval("exponent")
    assert found.known_interval("exponent") == first == found.interval("exponent")
    narrower = found.interval("exponent", 0.8)
    assert first[0] < narrower[0] < narrower[1] < first[1]
    assert len(asked) == 2


def test_a_prediction_is_quick() -> None:
    found = fitted(20, 3)
    began = time.perf_counter()
    found.predict(x=1e4)
    assert time.perf_counter() - began < 1.5  # about 0.05 s on an idle core


@pytest.mark.parametrize(
    "case", [CASES[1], pytest.param(CASES[4], marks=pytest.mark.slow)], ids=lambda case: case.name
)
def test_nominal_intervals_cover_in_the_benchmark(case: Case) -> None:
    """Of 60 studies, 95 % coverage means 52 to 60 with a probability of 99.9 %."""
    found = coverage(case, draws=60)
    assert min(found.values()) >= 52 / 60, found


def seeded(seed: int, shared: float, own: float = 0.002, seeds: int = 4) -> dict[str, np.ndarray]:
    """Draw eight configurations of several seeds, with runs that share a part of their noise."""
    x = np.logspace(0, 3, 8)
    rng = np.random.default_rng(seed)
    noise = np.repeat(shared * rng.normal(size=8), seeds) + own * rng.normal(size=8 * seeds)
    return {"x": np.repeat(x, seeds), "y": np.repeat(4 * x**-0.15, seeds) * np.exp(noise)}


def test_intervals_of_seeds_that_err_together_cover() -> None:
    """Counted as 32 independent runs, eight configurations would cover only about 70 %."""
    hits = np.zeros(2)
    for seed in range(40):
        found = fit_law("power_law", seeded(seed, shared=0.01), x="x", y="y")
        assert found.likelihood.configurations == 8
        assert found.likelihood.freedom == 6
        ends = (found.interval("exponent"), found.bootstrap_interval("exponent"))
        hits += [low <= 0.15 <= high for low, high in ends]
    assert (hits / 40 >= 0.85).all(), hits / 40


def test_balanced_seeds_give_the_interval_of_their_means() -> None:
    """For a straight line, equal numbers of seeds and errors shared, the F test is that of
    configuration means."""
    data = seeded(3, shared=0.01)
    found = fit_law("power_law", data, x="x", y="y", loss="log_least_squares")
    means = np.exp(np.log(data["y"]).reshape(8, 4).mean(axis=1))
    alone = fit_law(
        "power_law", {"x": data["x"][::4], "y": means}, x="x", y="y", loss="log_least_squares"
    )
    assert found.interval("exponent") == pytest.approx(alone.interval("exponent"), rel=0.02)


def test_independent_seeds_count_as_runs_each() -> None:
    freedoms = {
        fit_law("power_law", seeded(seed, shared=0), x="x", y="y").likelihood.freedom
        for seed in range(8)
    }
    assert 30 in freedoms  # where configurations differ no more than seeds


def test_seeds_do_not_make_many_configurations() -> None:
    found = fit_law("power_law", seeded(0, shared=0.01, seeds=8), x="x", y="y")
    assert found.num_runs > MAX_PROFILED
    assert not found.likelihood.many
    few = fit_law("power_law", seeded(0, shared=0.01), x="x", y="y")
    widths = [np.diff(fit.bootstrap_interval("exponent"))[0] for fit in (few, found)]
    assert 0.5 < widths[0] / widths[1] < 2  # more seeds of few configurations hardly help


def uneven(seed: int, num_runs: int = 60) -> dict[str, np.ndarray]:
    """Draw many runs with heavy-tailed noise, fifty times larger at small than at large compute."""
    x = np.logspace(0, 3, num_runs)
    noise = np.geomspace(0.05, 0.001, num_runs) * np.random.default_rng(seed).standard_t(
        3, size=num_runs
    )
    return {"x": x, "y": 4 * x**-0.15 * np.exp(noise)}


def test_intervals_of_many_runs_cover_where_noise_is_uneven() -> None:
    """The bootstrap is shown; the profile, which assumes equal noise, covers about 80 %."""
    hits = np.zeros(2)
    for seed in range(40):
        found = fit_law("power_law", uneven(seed), x="x", y="y")
        low, high = found.interval("coefficient")
        ahead = found.predict(x=1e4)
        hits += [low <= 4 <= high, ahead.low <= 4 * 1e4**-0.15 <= ahead.high]
    assert (hits / 40 >= 0.85).all(), hits / 40


def test_what_is_shown_of_many_runs_is_one_interval() -> None:
    found = fit_law("power_law", uneven(0), x="x", y="y")
    assert found.likelihood.many
    assert not fitted(20, 1).likelihood.many
    for name in found.parameters:
        assert found.interval(name) == found.known_interval(name) == found.bootstrap_interval(name)
    places = np.array([1.0, 30.0, 1e4])
    low, high = found.band(places)
    for place, *ends in zip(places, low, high, strict=True):
        assert found.predict(x=place)[1:] == pytest.approx(ends)
    # With 60 runs the median of the draws is near the estimate.
    drawn = found.problem.natural(found.likelihood.draws, "exponent")
    assert abs(np.median(drawn) - found.parameters["exponent"]) < 0.3 * drawn.std()


def test_two_kinds_of_interval_that_differ_are_named_on_the_fit() -> None:
    """Only one of the two straight lines has equal noise everywhere."""
    told = [fit_law("power_law", uneven(seed), x="x", y="y").warnings for seed in range(6)]
    assert any("bootstrap and profile intervals differ" in " ".join(warnings) for warnings in told)
    alike = fitted(60, 0, "power_law_plus_constant", "log_least_squares")
    assert alike.warnings == ()
    assert alike.to_dict()["warnings"] == []
