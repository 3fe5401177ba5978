"""Forecasts: laws are recovered, intervals hold, seals cannot be changed without notice."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri
from scipy.stats import multivariate_normal

from clue_ray.errors import FitError, RunsError
from clue_ray.runs import Runs, chance_loss
from clue_ray.scaling.forecasting.combine import Record
from clue_ray.scaling.forecasting.forecast import forecast
from clue_ray.scaling.forecasting.hypotheses import RETURN, Mixture, Posterior, State
from clue_ray.scaling.forecasting.seal import open_card, read_seals, seal_forecast, verify_seal

AT = 1e18


def law(compute, floor=2.0):
    return floor + 3 * (compute / 1e15) ** -0.12


def study(noise=0.0, seed=0, runs=24, floor=2.0, decades=2.5):
    compute = np.geomspace(AT / 10 / 10**decades, AT / 10, runs)
    error = np.random.default_rng(seed).normal(0, noise, runs)
    return pd.DataFrame({"train_flops": compute, "loss": law(compute, floor) * np.exp(error)})


def ask(table, at=AT, **options):
    return forecast(table, **{"x": "train_flops", "y": "loss", "at": at, **options})


@pytest.mark.parametrize("floor", [0.0, 2.0])
def test_a_law_without_noise_is_predicted(floor):
    """Both laws are hedged against a floor and a drift that the runs do show, hence not exactly."""
    made = ask(study(floor=floor))
    assert made.value == pytest.approx(law(AT, floor), rel=0.004)
    kind = "power law with a floor" if floor else "power law"
    assert made.laws[kind] == max(made.laws.values())


def test_intervals_hold_the_truth_of_noisy_laws():
    made = [(ask(study(0.01, seed)), law(AT)) for seed in range(24)]
    for level, least in ((0.8, 0.65), (0.95, 0.85)):
        inside = [low <= truth <= high for (f, truth) in made for low, high in [f.interval(level)]]
        assert np.mean(inside) >= least


def test_the_filter_equals_the_joint_distribution_of_the_runs():
    """Mean, variance and likelihood of one hypothesis, against the full covariance matrix."""
    x, drift, noise, slope = np.array([0.0, 0.3, 0.4, 1.1, 1.9]), 0.04, 0.02, -0.3
    z = 1.0 + slope * x + 0.05 * np.sin(3 * x)
    none = np.zeros(1)
    one = [np.array([value]) for value in (z[0], slope, 0.0, noise**2, slope**2, drift)]
    state, likelihood = State(*one, none, none, none), 0.0
    for i in range(1, 4):
        state = state.move(x[i] - x[i - 1], np.array([drift]))
        total = state.zz + noise**2
        likelihood += np.log(ndtr_density(z[i] - state.z, total))
        state = state.see(z[i] - state.z, total)
    there = state.move(x[4] - x[3], np.array([drift]))

    # z(x) - z(x0) = slope x + the integral of a stationary deviation with covariance e^-|s - t|.
    grid = np.linspace(0, x[-1], 2001)
    kernel = drift * np.exp(-np.abs(grid[:, None] - grid) / RETURN)
    integral = np.array([np.where(grid < end, grid[1], 0.0) for end in x])
    covariance = integral @ kernel @ integral.T + slope**2 * np.outer(x, x)
    covariance += noise**2 * (1 + np.eye(5) * (np.arange(5) > 0))  # the first run is the start
    mean = z[0] + slope * x
    seen, new = slice(1, 4), 4
    gain = np.linalg.solve(covariance[seen, seen], covariance[seen, new])
    assert there.z == pytest.approx(mean[new] + gain @ (z[seen] - mean[seen]), abs=1e-3)
    variance = covariance[new, new] - gain @ covariance[seen, new]
    assert there.zz + noise**2 == pytest.approx(variance, rel=1e-2)
    slow = multivariate_normal(mean[seen], covariance[seen, seen]).logpdf(z[seen])
    assert likelihood == pytest.approx(slow, abs=0.02)


def ndtr_density(error, variance):
    return float(np.exp(-(error**2) / variance / 2)[0] / np.sqrt(2 * np.pi * variance[0]))


def test_quantiles_invert_the_distribution():
    rng = np.random.default_rng(0)
    mixture = Mixture(
        rng.normal(size=(3, 20)),
        rng.uniform(0.1, 1, (3, 20)),
        rng.uniform(0, 2, 20),
        np.where(np.arange(20) < 10, np.inf, 4.0),
        np.full(20, 0.05),
    )
    levels = np.array([0.025, 0.5, 0.9])
    for level, found in zip(levels, mixture.quantiles(levels), strict=True):
        assert mixture.below(found) == pytest.approx(level, abs=1e-6)
    free = np.array([np.inf])
    single = Mixture(np.array([[0.3]]), np.array([[0.2]]), np.array([1.5]), free, np.ones(1))
    expected = np.log(1.5 + np.exp(0.3 + 0.2 * ndtri(0.9)))
    assert single.quantiles(np.array([0.9])) == pytest.approx(expected, abs=1e-8)
    assert single.below(np.array([expected])) == pytest.approx(ndtr(ndtri(0.9)))


def test_the_backtest_sees_only_what_was_known():
    """Points beyond a cut do not change what was predicted there."""
    table = study(0.02, 2)
    x, y = np.log10(table["train_flops"].to_numpy()), np.log(table["loss"].to_numpy())
    changed = np.where(np.arange(len(y)) >= 15, y - 1, y)
    before, after = Record.build(x, y), Record.build(x, changed)
    early = [pair for pair in zip(before.cuts, after.cuts, strict=True) if pair[0][0] <= 15]
    assert early
    for (cut, old, beyond), (_, new, _) in early:
        assert old.laws == new.laws
        np.testing.assert_array_equal(old.predict(x[beyond]).z, new.predict(x[beyond]).z)
        assert old.end == x[cut - 1]
        assert before.factor(cut) == after.factor(cut)
    assert before.factor() != after.factor()


def test_intervals_of_the_backtest_are_not_stretched_by_the_errors_they_are_judged_by():
    x = np.linspace(0, 3, 20)
    broken = -0.2 * x - 0.3 * (np.arange(20) >= 12)
    table = pd.DataFrame({"train_flops": 10**x, "loss": np.exp(broken)})
    smooth = table.assign(loss=np.exp(-0.2 * x))
    ends = ["low80", "high80", "low95", "high95"]
    early = [
        one.loc[one["cut"] <= 10 ** x[11] * 1.001, ends]
        for one in (ask(table, 1e4).backtest, ask(smooth, 1e4).backtest)
    ]
    assert len(early[0])
    pd.testing.assert_frame_equal(*early)


def test_errors_larger_than_predicted_widen_the_interval():
    x = np.linspace(0, 3, 20)
    smooth = -0.2 * x
    broken = smooth - 0.3 * (np.arange(20) >= 12)  # a sudden change that no law of the past shows
    assert Record.build(x, smooth).factor() < 1 < Record.build(x, broken).factor()


def test_weights_do_not_depend_on_the_unit_of_the_loss():
    x, y = np.linspace(0, 3, 12), np.log(2 + np.exp(-np.linspace(0, 3, 12)))
    assert Posterior.build(x, y).laws == pytest.approx(Posterior.build(x, y + 5).laws)


def test_a_drifting_slope_follows_a_curve_that_bends():
    compute = np.geomspace(1e12, 1e16, 40)
    loss = 5 * (compute / 1e14) ** np.where(compute < 1e14, -0.02, -0.2)
    made, truth = ask({"train_flops": compute, "loss": loss}, at=1e17), 5 * 1e3**-0.2
    slope, offset = np.polyfit(np.log(compute), np.log(loss), 1)
    straight = np.exp(offset + slope * np.log(1e17))
    assert abs(made.value - truth) < abs(straight - truth) / 2
    assert sum(w for name, w in made.laws.items() if "drifting" in name) > 0.7
    assert sum(made.laws.values()) == pytest.approx(1)


def test_a_ceiling_is_seen_where_the_loss_leaves_a_plateau():
    """The next decade of an S-shaped curve falls far more than any line through it shows."""
    compute = np.geomspace(1e12, 1e16, 16)
    rise = (compute / 3e15) ** -0.8
    table = {"train_flops": compute, "loss": rise / (1 + rise)}
    made, truth = ask(table, at=1e17), (1e17 / 3e15) ** -0.8
    assert made.value == pytest.approx(truth / (1 + truth), rel=0.3)
    assert made.laws["S-shaped law with a ceiling"] > 0.5
    low, high = ask(table, at=1e17, chance=1.0).interval(0.95)
    assert low <= truth / (1 + truth) <= high


def test_runs_behind_the_frontier_change_nothing():
    table = study(0.0)
    behind = table.assign(loss=table["loss"] * 1.3)
    assert ask(pd.concat([table, behind])).value == pytest.approx(ask(table).value)


def test_seeds_of_a_setting_are_averaged_before_they_compete():
    table = study(0.0, runs=12).assign(width=range(12), seed=0)
    lucky = table.iloc[[3, 3]].assign(
        seed=[1, 2], loss=[table["loss"][3] - 1, table["loss"][3] + 1]
    )
    assert ask(pd.concat([table, lucky])).value == pytest.approx(ask(table).value)


def test_seeds_are_averaged_in_tables_of_other_columns():
    table = study(0.0, runs=12).rename(columns={"train_flops": "C", "loss": "L"})
    plain = forecast(table, x="C", y="L", at=AT)
    seeds = [table.assign(seed=seed, L=table["L"] * (1 + 0.02 * (seed - 1))) for seed in range(3)]
    assert forecast(pd.concat(seeds), x="C", y="L", at=AT).value == pytest.approx(plain.value)
    # A seed that appears twice at one x does not tell its rows apart: something else does.
    again = pd.concat([table.assign(seed=0), table.assign(seed=0, L=table["L"] * 1.3)])
    assert forecast(again, x="C", y="L", at=AT).value == pytest.approx(plain.value)


def test_the_chance_of_a_study_is_known():
    """So the command, a seal and the page of one study forecast the same."""
    table = study(0.02, 3).assign(loss=lambda t: t["loss"] * 0.9)
    found = ask(table.assign(loss_candidates=256))
    assert found == ask(table, chance=chance_loss(256))
    assert found != ask(table)
    assert found.chance == pytest.approx(np.log(256))


@settings(max_examples=10, deadline=None)
@given(
    scale=st.floats(1e-3, 1e3),
    unit=st.floats(1e-6, 1e6),
    seed=st.integers(0, 5),
    reach=st.floats(1.5, 9),
)
def test_units_do_not_matter(scale, unit, seed, reach):
    table = study(0.01, seed)
    at = float(table["train_flops"].max()) * reach
    here = ask(table, at)
    there = ask(
        {"train_flops": table["train_flops"] * unit, "loss": table["loss"] * scale}, at * unit
    )
    assert there.value == pytest.approx(here.value * scale, rel=1e-6)
    assert there.interval(0.9) == pytest.approx(
        [end * scale for end in here.interval(0.9)], rel=1e-6
    )
    low, high = here.interval(0.5)
    assert low <= here.value <= high
    assert here.interval(0.95)[0] <= low


def test_no_prediction_exceeds_chance():
    made = ask(study(0.05, 3), chance=4.0)
    assert made.interval(0.99)[1] <= 4.0
    assert made.value <= 4.0


@pytest.mark.parametrize(
    ("table", "options", "words"),
    [
        (study(runs=4), {}, "Only 4 settings have a finished run"),
        (study().assign(loss=3.0), {}, "loss does not fall along train_flops"),
        (study().assign(loss=np.linspace(3, 4, 24)), {}, "does not fall along"),
        (study().assign(loss=np.repeat([3.0, 2.5], 12)), {}, "loss falls only once along"),
        (
            study().assign(loss=lambda t: abs(np.log10(t["train_flops"]) - 15.3) + 3),
            {},
            "does not fall",
        ),
        (study(), {"at": 1e15}, "not beyond the best run"),
        (study(), {"at": float("nan")}, "at is nan; give a positive"),
        (study(), {"at": "far"}, "at is 'far'"),
        (study(), {"chance": -1}, "chance is -1"),
        (study(), {"x": ["train_flops"]}, "takes the name of one column"),
        (study(), {"chance": 2.0}, "is not below chance, 2: these runs learned nothing"),
        (study().assign(loss_candidates=8), {}, "is not below chance, 2.079"),
    ],
)
def test_what_carries_no_forecast_is_refused(table, options, words):
    with pytest.raises(FitError, match=words):
        ask(table, **{"at": AT, **options})


def test_rows_that_cannot_be_read_are_refused():
    with pytest.raises(RunsError, match="loss"):
        ask(study().assign(loss=np.nan))
    with pytest.raises(RunsError, match="candidates"):
        ask(study().assign(loss_candidates=[256] * 23 + [512]))
    with pytest.raises(FitError, match=r"level is 1\.5"):
        ask(study()).interval(1.5)


def test_a_forecast_says_when_to_trust_it_less():
    assert "times beyond the best run" in " ".join(ask(study(), at=1e20).warnings)
    assert "span 0.4 decades" in " ".join(ask(study(decades=0.5)).warnings)
    assert "rests on 7 settings" in " ".join(ask(study(runs=7)).warnings)
    rising = study()
    rising.loc[22:, "loss"] = 4.0
    assert "Settings with more training compute" in " ".join(ask(rising).warnings)
    assert "have a held-out loss above chance, 5 (" in " ".join(ask(study(), chance=5.0).warnings)
    assert ask(study()).warnings == ()


@pytest.fixture
def sealed(tmp_path):
    table = study(0.003, 4).assign(status="done", width=range(24), seed=0)
    table["run_id"] = [f"r{i:02d}" for i in range(24)]
    runs = Runs(table)
    made = ask(runs)
    return (
        runs,
        made,
        seal_forecast(runs, made, x="train_flops", y="loss", folder=tmp_path),
        tmp_path,
    )


def later(runs, loss):
    row = runs.table.iloc[[-1]].assign(run_id="new", train_flops=AT * 1.02, width=99, loss=loss)
    return Runs(pd.concat([runs.table, row]))


def test_a_seal_is_compared_with_the_run_that_tests_it(sealed):
    runs, made, file, folder = sealed
    ((found, seal),) = read_seals(folder)
    assert found == file
    assert open_card(seal, runs).outcome == "open"
    assert open_card(seal, later(runs, made.value)).outcome == "hit"
    missed = open_card(seal, later(runs, made.value * 1.5))
    assert missed.outcome == "miss"
    assert missed.measured == pytest.approx(made.value * 1.5)
    verify_seal(file, seal, later(runs, made.value))
    with pytest.raises(FitError, match="is sealed already"):
        seal_forecast(runs, made, x="train_flops", y="loss", folder=folder)
    with pytest.raises(FitError, match="sealed before the run"):
        seal_forecast(later(runs, 3.0), made, x="train_flops", y="loss", folder=folder)


def test_a_changed_seal_and_changed_runs_are_noticed(sealed):
    runs, _, file, folder = sealed
    seal = json.loads(file.read_text())
    with pytest.raises(RunsError, match="changed after it was sealed"):
        verify_seal(file, {**seal, "value": seal["value"] * 0.99}, runs)
    changed = runs.table.assign(loss=runs.table["loss"] * 1.001)
    with pytest.raises(RunsError, match="have other values"):
        verify_seal(file, seal, Runs(changed))
    with pytest.raises(RunsError, match="r00, which the table does not hold"):
        verify_seal(file, seal, Runs(runs.table.iloc[1:]))
    file.write_text("{")
    with pytest.raises(RunsError, match="damaged"):
        list(read_seals(folder))
