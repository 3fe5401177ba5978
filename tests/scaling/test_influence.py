"""Influence: the run that was moved is found, and every row equals a refit without it."""

import numpy as np
import pandas as pd
import pytest

from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.judging.panels import influence

COMPUTE = np.logspace(10, 13, 8)
PLACE = {"x": "train_flops", "y": "loss"}
AT = {"train_flops": 1e14}


def runs(noise: float = 0.002) -> pd.DataFrame:
    loss = (1.8 + 3.5 * (COMPUTE / 1e10) ** -0.25) * np.exp(
        noise * np.random.default_rng(4).normal(size=8)
    )
    return pd.DataFrame(
        {"run_id": [f"run{i}" for i in range(8)], "train_flops": COMPUTE, "loss": loss}
    )


def test_rows_are_refits_without_a_run_the_largest_move_first() -> None:
    table = runs()
    found = influence("power_law_plus_constant", table, **PLACE, at=AT)
    whole = fit_law("power_law_plus_constant", table, **PLACE)
    assert set(found["run"]) == set(table["run_id"])
    assert found["change"].abs().is_monotonic_decreasing
    for row in found.iloc[[0, 3, 7]].itertuples():
        refit = fit_law("power_law_plus_constant", table[table["run_id"] != row.run], **PLACE)
        assert row.predicted == pytest.approx(refit.predict(train_flops=1e14).value, rel=1e-6)
        assert row.change == pytest.approx(
            row.predicted / whole.predict(train_flops=1e14).value - 1, abs=1e-6
        )
        assert row.exponent == pytest.approx(refit.parameters["exponent"], rel=1e-6)


def test_a_single_run_far_from_the_others_comes_first() -> None:
    """Leverage, not the residual, makes a run influential: the law passes close to it."""
    x = np.append(np.logspace(10, 10.7, 9), 1e13)
    loss = 30 * x**-0.08 * np.exp(0.01 * np.random.default_rng(1).normal(size=10))
    found = influence("power_law", {"train_flops": x, "loss": loss}, **PLACE, at=AT)
    assert found["run"][0] == 9
    assert abs(found["change"][0]) > 3 * abs(found["change"][1])


def test_a_run_needed_for_the_fit_has_no_change() -> None:
    found = influence("power_law", runs().iloc[[0, 3, 7]].drop(columns="run_id"), **PLACE, at=AT)
    assert found["predicted"].isna().all()
    assert set(found["run"]) == {0, 1, 2}
