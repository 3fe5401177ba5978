"""The parabola method: planted optima, weights, levels without a minimum."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clue_ray.errors import FitError, RunsError
from clue_ray.scaling.deciding.isoflop import fit_isoflop, fit_line

COMPUTE = np.array([1e12, 1e13, 1e14])


def planted(exponent: float = 0.5, shift: float = 0.0, sizes: int = 7) -> pd.DataFrame:
    """Draw exact parabolas about n = 0.1 C^exponent, the sizes tried moved off by `shift`
    decades."""
    rows = []
    for compute in COMPUTE:
        best = np.log10(0.1 * compute**exponent)
        tried = best + shift + np.linspace(-1, 1, sizes)
        rows += [
            (compute, 10**n, 3 - 0.1 * np.log10(compute) + 0.2 * (n - best) ** 2) for n in tried
        ]
    return pd.DataFrame(rows, columns=["train_flops", "n", "loss"])


@settings(max_examples=20)
@given(exponent=st.floats(0.2, 0.9), shift=st.floats(-0.9, 0.9))
def test_planted_line_is_recovered(exponent: float, shift: float) -> None:
    found = fit_isoflop(planted(exponent, shift), size="n")
    assert found.line.exponent == pytest.approx(exponent, rel=1e-6)
    assert found.line.coefficient == pytest.approx(0.1, rel=1e-5)
    assert not found.warnings
    assert found.levels["used"].all()
    np.testing.assert_allclose(found.levels["optimum"], 0.1 * COMPUTE**exponent, rtol=1e-6)
    np.testing.assert_allclose(found.levels["loss"], 3 - 0.1 * np.log10(COMPUTE), rtol=1e-9)
    np.testing.assert_allclose(found.levels["curvature"], 0.2, rtol=1e-6)


def test_runs_of_nearly_equal_compute_share_a_level() -> None:
    table = planted()
    table["train_flops"] *= np.tile(np.linspace(0.99, 1.01, 7), 3)
    assert fit_isoflop(table, size="n").levels["num_runs"].tolist() == [7, 7, 7]


def test_a_minimum_at_the_edge_is_left_out_with_a_warning() -> None:
    table = planted()
    beyond = planted(shift=1.5)
    with pytest.raises(FitError, match="0 of 3 levels of train_flops have a minimum"):
        fit_isoflop(beyond, size="n")
    mixed = pd.concat([table[table["train_flops"] < 1e14], beyond[beyond["train_flops"] == 1e14]])
    found = fit_isoflop(mixed, size="n")
    assert found.levels["used"].tolist() == [True, True, False]
    assert (
        "At 1e+14 FLOP the minimum lies at or beyond the smallest n of the runs"
        in found.warnings[0]
    )
    assert "Only two levels" in found.warnings[1]
    assert np.isnan(found.line.error)
    assert found.line.exponent == pytest.approx(0.5, rel=1e-6)


def test_few_sizes_and_upside_down_levels_are_warnings() -> None:
    table = planted(sizes=4)
    assert (
        sum("rests on 4 runs" in warning for warning in fit_isoflop(table, size="n").warnings) == 3
    )
    table.loc[table["train_flops"] == 1e14, "loss"] *= -1
    table["loss"] += 4
    found = fit_isoflop(table, size="n")
    assert "the loss has no minimum in n" in " ".join(found.warnings)
    assert not found.levels["used"][2]
    thin = pd.concat([table[table["train_flops"] < 1e14], table.tail(3)])
    assert "fewer than 4 sizes" in " ".join(fit_isoflop(thin, size="n").warnings)


def test_bad_rows_are_named() -> None:
    table = planted()
    table.loc[5, "loss"] = np.nan
    with pytest.raises(RunsError, match="holds nan in row 5 "):
        fit_isoflop(table, size="n")


def test_weights_count_as_their_inverse_variance() -> None:
    """A point of half the standard deviation is worth four of it; the textbook's matrix says the
    same."""
    rng = np.random.default_rng(0)
    compute, std = np.logspace(15, 19, 8), rng.choice([0.1, 0.2], 8)
    optimum = 0.3 * compute**0.5 * np.exp(std * rng.normal(size=8))
    weighted = fit_line(compute, optimum, std)
    times = np.where(std == 0.1, 4, 1)
    repeated = fit_line(np.repeat(compute, times), np.repeat(optimum, times))
    assert weighted[:2] == pytest.approx(repeated[:2])
    design = np.stack([np.ones(8), np.log(compute)], 1)
    bread = np.linalg.inv(design.T @ (design / std[:, None] ** 2))
    height, exponent = bread @ design.T @ (np.log(optimum) / std**2)
    residual = (np.log(optimum) - design @ [height, exponent]) / std
    assert weighted == pytest.approx(
        (np.exp(height), exponent, np.sqrt(bread[1, 1] * residual @ residual / 6))
    )
    assert weighted.exponent != pytest.approx(fit_line(compute, optimum).exponent)


def test_lines_through_too_little_are_refused() -> None:
    with pytest.raises(FitError, match="through 1 optima"):
        fit_line([1e15], [3.0])
    with pytest.raises(FitError, match="different compute"):
        fit_line([1e15, 1e15], [3.0, 4.0])
    with pytest.raises(FitError, match="positive and finite"):
        fit_line([1e15, 1e16], [3.0, np.nan])


def noisy(levels: int, seed: int) -> pd.DataFrame:
    """Draw runs of E + A N^-.34 + B D^-.34 about the best size of each level, which grows as
    C^.5."""
    rng, rows = np.random.default_rng(seed), []
    for compute in np.logspace(14, 17, levels):
        for n in (compute / 6) ** 0.5 * 1.53 * np.logspace(-0.6, 0.6, 6):
            exact = 1.8 + 400 * n**-0.34 + 300 * (compute / 6 / n) ** -0.34
            rows.append((compute, n, exact * np.exp(0.003 * rng.normal())))
    return pd.DataFrame(rows, columns=["train_flops", "n", "loss"])


def test_interval_of_the_line_is_students_and_covers() -> None:
    """Three levels leave one degree of freedom, whose t is 12.7; 1.96 held the truth in 66 % of
    such studies."""
    found = fit_isoflop(noisy(3, 1), size="n")
    low, high = found.interval()
    assert (high - low) / 2 == pytest.approx(12.7062 * found.line.error, rel=1e-4)
    held = [
        low <= 0.5 <= high
        for low, high in (fit_isoflop(noisy(3, s), size="n").interval() for s in range(60))
    ]
    assert np.mean(held) > 0.85
    assert fit_isoflop(noisy(2, 1), size="n").interval() == (-np.inf, np.inf)


def test_parametric_exponent_agrees_with_the_line() -> None:
    """Whatever a token costs: with data = compute / size the best size grows as C^(beta / (alpha +
    beta))."""
    best = (0.3 * 400 / (0.4 * 300)) ** (1 / 0.7) * (np.array([1e14, 1e15, 1e16]) / 9) ** (4 / 7)
    compute, size = (
        np.repeat([1e14, 1e15, 1e16], 6),
        np.outer(best, np.logspace(-0.6, 0.6, 6)).ravel(),
    )
    loss = 1.8 + 400 * size**-0.3 + 300 * (compute / 9 / size) ** -0.4
    found = fit_isoflop({"train_flops": compute, "n": size, "loss": loss}, size="n")
    assert found.parametric == pytest.approx((4 / 7,) * 3, abs=1e-3)
    value, low, high = fit_isoflop(noisy(4, 0), size="n").parametric
    assert low < 0.5 < high
    assert low < value < high
    assert high - low < 0.1


def test_where_no_parametric_law_can_be_fitted_it_says_so() -> None:
    """A valley alike at all compute tells nothing of data."""
    table = planted()
    alike = fit_isoflop(table.assign(loss=np.tile(table["loss"].iloc[:7], 3)), size="n")
    assert alike.line.exponent == pytest.approx(0.5, rel=1e-6)
    with pytest.raises(FitError, match="bound neither exponent"):
        _ = alike.parametric
