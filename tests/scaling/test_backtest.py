"""The backtest prefers the planted law, uses only smaller runs and refuses small tables."""

import numpy as np
import pandas as pd
import pytest

from clue_ray.errors import FitError, RunsError
from clue_ray.scaling.deciding.critical_batch import steps_to_loss
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.judging.backtest import EQUAL_ERROR, _judge, backtest

LAWS = ["power_law", "power_law_plus_constant", "log_linear"]
COMPUTE = np.logspace(10, 14, 10)


def runs(loss: np.ndarray, noise: float = 0.001) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"train_flops": COMPUTE, "loss": loss * np.exp(noise * rng.normal(size=len(loss)))}
    )


@pytest.mark.parametrize(
    ("planted", "loss"),
    [
        ("log_linear", 7.5 - 0.4 * np.log10(COMPUTE / 1e6)),
        ("power_law_plus_constant", 1.8 + 3.5 * (COMPUTE / 1e10) ** -0.25),
    ],
)
def test_planted_law_is_preferred(planted: str, loss: np.ndarray) -> None:
    result = backtest(LAWS, runs(loss), x="train_flops", y="loss")
    assert result.preferred == planted == result.summary["law"][0]
    assert result.summary["mean_absolute_relative_error"].is_monotonic_increasing
    assert result.summary.set_index("law")["coverage"][planted] >= 0.7


def test_laws_that_agree_tie() -> None:
    result = backtest(LAWS[:2], runs(30 * COMPUTE**-0.08, noise=0.01), x="train_flops", y="loss")
    assert {result.preferred, *result.tied} == set(LAWS[:2])


@pytest.mark.slow
def test_preferred_law_never_loses_to_the_plain_power_law() -> None:
    """On pure power laws a floor often errs more, by chance; it is then not preferred."""
    preferred = []
    for seed in range(6):
        loss = (
            30
            * COMPUTE**-0.08
            * np.exp(0.004 * np.random.default_rng(seed).normal(size=len(COMPUTE)))
        )
        table = pd.DataFrame({"train_flops": COMPUTE, "loss": loss})
        result = backtest(LAWS, table, x="train_flops", y="loss")
        error = result.summary.set_index("law")["mean_absolute_relative_error"]
        assert error[result.preferred] <= error["power_law"] * (1 + EQUAL_ERROR)
        preferred.append(result.preferred)
    assert "power_law" in preferred


def test_cautious_of_tied_laws_is_preferred_and_errors_are_in_units_of_y() -> None:
    """The fitted constant is 0, so the errors are equal: the law with a constant is preferred."""
    flops = [
        57105722688.0,
        100590505248.0,
        168213130656.0,
        265207132128.0,
        902472242112.0,
        3295063832448.0,
    ]
    losses = [5.4698018, 5.4382663, 5.4062429, 5.2738598, 5.2665473, 5.2251193]
    table = pd.DataFrame({"train_flops": flops, "loss": losses})
    result = backtest(LAWS[:2], table, x="train_flops", y="loss")
    assert result.preferred == "power_law_plus_constant"
    assert result.tied == ("power_law",)
    missed = (
        (result.rows["predicted"] - result.rows["actual"]).abs().groupby(result.rows["law"]).mean()
    )
    assert result.summary.set_index("law")["mean_absolute_error"].to_dict() == pytest.approx(
        missed.to_dict()
    )


def test_predictions_use_only_smaller_runs() -> None:
    table = runs(1.8 + 3.5 * (COMPUTE / 1e10) ** -0.25)
    rows = backtest(LAWS, table.iloc[::-1], x="train_flops", y="loss").rows
    assert list(rows["num_fitted"].unique()) == [4, 5, 6, 7, 8, 9]
    row = rows[(rows["law"] == "power_law") & (rows["num_fitted"] == 6)].iloc[-1]
    alone = fit_law("power_law", table.iloc[:6], x="train_flops", y="loss").predict_run(
        train_flops=row["x"]
    )
    assert (row["predicted"], row["low"], row["high"]) == pytest.approx(alone, rel=1e-6)
    assert row["x"] == COMPUTE[7]
    assert row["actual"] == table["loss"].iloc[7]
    assert (
        rows.groupby("num_fitted")["x"].max()
        <= 10 * COMPUTE[rows["num_fitted"].unique() - 1] * (1 + 1e-9)
    ).all()
    assert row["relative_error"] == pytest.approx(alone.value / row["actual"] - 1, rel=1e-6)
    assert row["covered"] == (alone.low <= row["actual"] <= alone.high)


@pytest.mark.slow
def test_a_law_that_becomes_negative_is_scored() -> None:
    """The log-linear law of the steep start of a strong floor falls below 0 before the end."""
    x = np.logspace(10, 14, 25)
    table = pd.DataFrame({"train_flops": x, "loss": 0.5 + 5 * (x / 1e10) ** -0.8})
    result = backtest(LAWS, table, x="train_flops", y="loss")
    below = result.rows[result.rows["predicted"] <= 0]
    assert set(below["law"]) == {"log_linear"}
    assert not below["covered"].any()
    assert below["low"].isna().all()
    assert result.preferred == "power_law_plus_constant"


def test_runs_of_one_size_are_never_on_both_sides() -> None:
    table = runs(30 * COMPUTE**-0.08)
    doubled = pd.concat([table, table.assign(loss=table["loss"] * 1.01)])
    rows = backtest(["power_law"], doubled, x="train_flops", y="loss").rows
    assert set(rows["num_fitted"]) == {4, 6, 8, 10, 12, 14, 16, 18}


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e9])
def test_seeds_stay_together_in_any_unit_of_compute(unit: float) -> None:
    """Below 1 the logs of compute are negative, so a factor above 1 would make them smaller."""
    x = unit * np.repeat(np.logspace(-6, -2, 6), 2)
    loss = 3 * (x / unit) ** -0.08 * np.exp(0.002 * np.random.default_rng(0).normal(size=12))
    rows = backtest(["power_law"], {"x": x, "y": loss}, x="x", y="y").rows
    assert sorted(set(rows["num_fitted"])) == [4, 6, 8, 10]


def test_a_run_listed_twice_is_named_by_its_rows_however_far_apart() -> None:
    table = runs(30 * COMPUTE**-0.08).iloc[::-1].assign(run_id=["a", *"bcdefghi", "a"])
    with pytest.raises(RunsError, match=r"rows 0, 9\), first 'a'"):
        backtest(["power_law"], table, x="train_flops", y="loss")


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), ("n/a", "the text 'n/a'")])
def test_a_value_that_is_not_a_number_is_named_by_its_row(value: object, shown: str) -> None:
    table = runs(30 * COMPUTE**-0.08).astype({"loss": object})
    table.loc[3, "loss"] = value
    with pytest.raises(RunsError, match=f"holds {shown} in row 3 "):
        backtest(["power_law"], table, x="train_flops", y="loss")
    curve = table.assign(global_batch_size=8, steps=range(1, 11))
    with pytest.raises(RunsError, match=f"holds {shown} in row 3 "):
        steps_to_loss(curve, 3.0)


def test_too_small_or_bad_tables_are_refused() -> None:
    table = runs(30 * COMPUTE**-0.08)
    with pytest.raises(FitError, match="needs more than 4 finished runs"):
        backtest(LAWS, table.iloc[:4], x="train_flops", y="loss")
    with pytest.raises(RunsError, match="positive finite"):
        backtest(LAWS, table.assign(loss=-1.0), x="train_flops", y="loss")
    with pytest.raises(FitError, match="no law 'nothing'"):
        backtest(["nothing"], table, x="train_flops", y="loss")
    with pytest.raises(FitError, match="not a NoneType"):
        backtest([None], table, x="train_flops", y="loss")  # type: ignore[list-item]


def test_the_next_run_is_predicted_however_far() -> None:
    table = {"x": np.logspace(0, 12, 7), "y": 30 * np.logspace(0, 12, 7) ** -0.08}
    assert list(backtest(["power_law"], table, x="x", y="y").rows["num_fitted"]) == [3, 4, 5, 6]


def test_seeds_of_one_size_count_as_one_size() -> None:
    x = np.repeat(np.logspace(0, 3, 6), 3)
    loss = (1.8 + x**-0.3) * np.exp(0.002 * np.random.default_rng(0).normal(size=18))
    rows = backtest(["power_law_plus_constant"], {"x": x, "y": loss}, x="x", y="y").rows
    assert rows["num_fitted"].min() == 9  # three sizes of three seeds


def test_the_tied_law_with_a_floor_and_the_lowest_error_is_preferred() -> None:
    names = ["power_law", "power_law_plus_constant", "bounded_power_law"]
    errors = {"power_law": 0.05, "power_law_plus_constant": 0.04, "bounded_power_law": 0.03}
    shaken = [
        {
            "law": law,
            "relative_error": size * factor,
            "actual": 1.0,
            "predicted": 1 + size * factor,
            "covered": True,
        }
        for law, size in errors.items()
        for factor in ((0.1, 2.0, 0.5) if law == "power_law" else (2.0, 0.1, 0.5))
    ]
    judged = _judge(pd.DataFrame(shaken), {*names[1:]})
    assert judged.preferred == "bounded_power_law"
    assert "power_law_plus_constant" in judged.tied
