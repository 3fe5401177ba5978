"""Sensitivity: every variant equals the fit that it names, or has a reason."""

import numpy as np
import pandas as pd
import pytest

from clue_ray.errors import FitError
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.judging.panels import sensitivity

COMPUTE = np.logspace(10, 13, 9)
PLACE = {"x": "train_flops", "y": "loss"}
AT = {"train_flops": 1e14}


def runs(noise: float = 0.004) -> pd.DataFrame:
    loss = (1.8 + 3.5 * (COMPUTE / 1e10) ** -0.25) * np.exp(
        noise * np.random.default_rng(2).normal(size=9)
    )
    size = np.logspace(3, 5, 9)
    table = pd.DataFrame({"train_flops": COMPUTE, "loss": loss, "non_embedding_params": size})
    return table.assign(total_params=size + 2e4)


@pytest.fixture(scope="module")
def panel() -> pd.DataFrame:
    laws = ["power_law_plus_constant", "power_law", "log_linear"]
    return sensitivity("power_law_plus_constant", runs(), **PLACE, at=AT, laws=laws).set_index(
        ["variant", "law"]
    )


def predicted(law: str, table: pd.DataFrame, at: float = 1e14, **options: object) -> float:
    # type: ignore[arg-type]
    return fit_law(law, table, **PLACE, **options).predict(train_flops=at).value


def test_every_variant_is_the_refit_it_names(panel: pd.DataFrame) -> None:
    name, table = "power_law_plus_constant", runs()
    fit = fit_law(name, table, **PLACE)
    missed = np.abs(np.log(table["loss"] / fit.curve(COMPUTE)))
    rest = table.drop(index=int(missed.argmax()))
    wanted = {
        ("as fitted", name): predicted(name, table),
        ("log least squares", name): predicted(name, table, loss="log_least_squares"),
        ("delta x 10", name): predicted(name, table, delta=1e-2),
        ("delta / 10", name): predicted(name, table, delta=1e-4),
        ("without the worst run", name): predicted(name, rest),
        ("another law", "power_law"): predicted("power_law", table),
        ("another law", "log_linear"): predicted("log_linear", table),
    }
    for variant, value in wanted.items():
        row = panel.loc[variant]
        assert row["predicted"] == pytest.approx(value, rel=1e-6), variant
        assert row["change"] == pytest.approx(value / wanted["as fitted", name] - 1, abs=1e-6)
    assert set(panel.index) == {*wanted, ("embeddings counted", name)}
    assert panel.loc[("without the worst run", name), "num_runs"] == 8
    assert (panel["reason"] == "").all()


def test_embeddings_are_counted_in_rows_and_place(panel: pd.DataFrame) -> None:
    table = runs()
    ratio = table["total_params"] / table["non_embedding_params"]
    grown = table.assign(train_flops=table["train_flops"] * ratio)
    value = predicted("power_law_plus_constant", grown, at=1e14 * ratio.iloc[-1])
    row = panel.loc[("embeddings counted", "power_law_plus_constant")]
    assert row["predicted"] == pytest.approx(value, rel=1e-6)
    assert abs(row["change"]) > 1e-4


def test_embeddings_are_left_out_where_the_table_lacks_them() -> None:
    found = sensitivity("power_law_plus_constant", runs().assign(total_params=None), **PLACE, at=AT)
    assert "embeddings counted" not in set(found["variant"])


def test_exact_data_have_one_prediction_under_every_cost() -> None:
    found = sensitivity("power_law_plus_constant", runs(noise=0), **PLACE, at=AT).set_index(
        "variant"
    )
    same = found.drop(index="embeddings counted")
    assert same["change"].abs().max() < 1e-6
    assert same["exponent"].to_numpy() == pytest.approx(0.25, rel=1e-5)


def test_variants_that_cannot_be_fitted_have_a_reason() -> None:
    few = runs().iloc[[0, 2, 4, 8]]
    found = sensitivity("power_law_plus_constant", few, **PLACE, at=AT).set_index("variant")
    assert np.isnan(found.loc["without the worst run", "predicted"])
    assert "it needs 4" in found.loc["without the worst run", "reason"]
    with pytest.raises(FitError, match="it needs 4"):
        sensitivity("power_law_plus_constant", runs().iloc[:3], **PLACE, at=AT)
