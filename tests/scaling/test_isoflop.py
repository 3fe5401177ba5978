"""The parabola method: planted optima, weights, levels without a minimum."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clue_ray.errors import FitError, RunsError
from clue_ray.scaling.isoflop import fit_isoflop, fit_line

COMPUTE = np.array([1e12, 1e13, 1e14])


def planted(exponent: float = 0.5, shift: float = 0.0, sizes: int = 7) -> pd.DataFrame:
    """Draw exact parabolas about n = 0.1 C^exponent, the sizes tried moved off by `shift` decades."""
    rows = []
    for compute in COMPUTE:
        best = np.log10(0.1 * compute**exponent)
        tried = best + shift + np.linspace(-1, 1, sizes)
        rows += [(compute, 10**n, 3 - 0.1 * np.log10(compute) + 0.2 * (n - best) ** 2) for n in tried]
    return pd.DataFrame(rows, columns=["train_flops", "n", "loss"])


@settings(max_examples=20, deadline=None)
@given(exponent=st.floats(0.2, 0.9), shift=st.floats(-0.9, 0.9))
def test_planted_line_is_recovered(exponent: float, shift: float) -> None:
    found = fit_isoflop(planted(exponent, shift), size="n")
    assert found.line.exponent == pytest.approx(exponent, rel=1e-6)
    assert found.line.coefficient == pytest.approx(0.1, rel=1e-5)
    assert not found.warnings and found.levels["used"].all()
    np.testing.assert_allclose(found.levels["optimum"], 0.1 * COMPUTE**exponent, rtol=1e-6)
    np.testing.assert_allclose(found.levels["loss"], 3 - 0.1 * np.log10(COMPUTE), rtol=1e-9)
    np.testing.assert_allclose(found.levels["curvature"], 0.2, rtol=1e-6)


def test_runs_of_nearly_equal_compute_share_a_level() -> None:
    table = planted()
    table["train_flops"] *= np.tile(np.linspace(0.99, 1.01, 7), 3)
    assert fit_isoflop(table, size="n").levels["num_runs"].tolist() == [7, 7, 7]


def test_a_minimum_at_the_edge_is_said_and_left_out() -> None:
    table = planted()
    beyond = planted(shift=1.5)
    with pytest.raises(FitError, match="0 of 3 levels of train_flops have a minimum"):
        fit_isoflop(beyond, size="n")
    mixed = pd.concat([table[table["train_flops"] < 1e14], beyond[beyond["train_flops"] == 1e14]])
    found = fit_isoflop(mixed, size="n")
    assert found.levels["used"].tolist() == [True, True, False]
    assert "At 1e+14 FLOP the minimum lies at or beyond the smallest n tried" in found.warnings[0]
    assert "Only two levels" in found.warnings[1] and np.isnan(found.line.error)
    assert found.line.exponent == pytest.approx(0.5, rel=1e-6)


def test_few_sizes_and_upside_down_levels_are_said() -> None:
    table = planted(sizes=4)
    assert sum("rests on 4 runs" in warning for warning in fit_isoflop(table, size="n").warnings) == 3
    table.loc[table["train_flops"] == 1e14, "loss"] *= -1
    table["loss"] += 4
    found = fit_isoflop(table, size="n")
    assert "the loss has no minimum in n" in " ".join(found.warnings) and not found.levels["used"][2]
    thin = pd.concat([table[table["train_flops"] < 1e14], table.tail(3)])
    assert "fewer than 4 sizes" in " ".join(fit_isoflop(thin, size="n").warnings)


def test_bad_rows_are_named() -> None:
    table = planted()
    table.loc[5, "loss"] = np.nan
    with pytest.raises(RunsError, match="holds nan in row 5 "):
        fit_isoflop(table, size="n")


def test_weights_count_as_their_inverse_variance() -> None:
    """A point of half the standard deviation is worth four of it; the textbook's matrix says the same."""
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
    assert weighted == pytest.approx((np.exp(height), exponent, np.sqrt(bread[1, 1] * residual @ residual / 6)))
    assert weighted.exponent != pytest.approx(fit_line(compute, optimum).exponent)


def test_lines_through_too_little_are_refused() -> None:
    with pytest.raises(FitError, match="through 1 optima"):
        fit_line([1e15], [3.0])
    with pytest.raises(FitError, match="different compute"):
        fit_line([1e15, 1e15], [3.0, 4.0])
    with pytest.raises(FitError, match="positive and finite"):
        fit_line([1e15, 1e16], [3.0, np.nan])
