"""Joint laws: planted surfaces over any columns, units, repeated data."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from clue_ray.errors import FitError
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.laws.catalogue import LAWS
from clue_ray.scaling.laws.joint import data_constrained_loss

VALUES = {
    "non_embedding_params": np.logspace(3, 6, 4),
    "corpus_users": np.logspace(3, 6, 4),
    "sequence_length": np.array([4.0, 8, 16, 32]),
    "global_batch_size": np.array([16.0, 64, 256, 1024]),
}
TERMS = {
    "non_embedding_params": (9.0, 0.3),
    "corpus_users": (20.0, 0.4),
    "sequence_length": (1.0, 0.5),
    "global_batch_size": (0.8, 0.6),
}
FLOOR = 1.8


def surface(columns: list[str]) -> pd.DataFrame:
    """Plant a floor and one term per column on a full grid."""
    table = pd.DataFrame(product(*(VALUES[column] for column in columns)), columns=columns)
    loss = FLOOR + sum(
        a * table[column] ** -b for column, (a, b) in TERMS.items() if column in columns
    )
    return table.assign(loss=loss)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("loss", ["log_huber", "log_least_squares"])
def test_planted_surface_over_any_columns_is_recovered(count: int, loss: str) -> None:
    for columns in (list(VALUES)[:count], list(VALUES)[::-1][:count]):
        found = fit_law("joint_power_law", surface(columns), x=columns, y="loss", loss=loss)
        truth = {"irreducible_loss": FLOOR}
        for column in columns:
            truth |= dict(
                zip((f"coefficient_{column}", f"exponent_{column}"), TERMS[column], strict=True)
            )
        assert found.parameters == pytest.approx(truth, rel=1e-6)
        assert list(found.parameters) == list(truth)


def test_it_is_the_parametric_loss_on_two_columns() -> None:
    columns = ["non_embedding_params", "corpus_users"]
    table = surface(columns)
    table["loss"] *= np.exp(0.002 * np.random.default_rng(0).normal(size=len(table)))
    joint = fit_law("joint_power_law", table, x=columns, y="loss")
    chinchilla = fit_law("parametric_loss", table, x=columns, y="loss")
    assert joint.objective == pytest.approx(chinchilla.objective, rel=1e-9)
    assert joint.parameters["exponent_corpus_users"] == pytest.approx(
        chinchilla.parameters["beta"], rel=1e-5
    )
    at = {"non_embedding_params": 1e7, "corpus_users": 1e7}
    assert joint.predict(**at) == pytest.approx(chinchilla.predict(**at), rel=1e-4)


def test_noisy_surface_of_four_columns_brackets_its_truth() -> None:
    columns = list(VALUES)
    table = surface(columns)
    table["loss"] *= np.exp(0.003 * np.random.default_rng(1).normal(size=len(table)))
    found = fit_law("joint_power_law", table.sample(60, random_state=0), x=columns, y="loss")
    for column, (_, exponent) in TERMS.items():
        low, high = found.interval(f"exponent_{column}", level=0.999)
        assert low <= exponent <= high, column
    assert "non_embedding_params" in found.law.formula
    assert "{" not in found.law.describe(found.parameters)


def test_planted_value_of_repeated_data_is_recovered() -> None:
    size, unique, seen = (
        column.ravel()
        for column in np.meshgrid(np.logspace(4, 6, 3), np.logspace(3, 5, 4), np.logspace(3, 7, 6))
    )
    truth = {"E": 1.8, "A": 9.0, "B": 40.0, "alpha": 0.3, "beta": 0.35, "useful_repeats": 5.3}
    loss = data_constrained_loss(size, unique, seen, *truth.values())
    runs = {"n": size, "unique": unique, "seen": seen, "loss": loss}
    for stretch in (1.0, 1e6):  # users or tokens: the answer must not depend on the unit of data
        table = runs | {"unique": unique * stretch, "seen": seen * stretch}
        found = fit_law("data_constrained_loss", table, x=["n", "unique", "seen"], y="loss")
        wanted = truth | {"B": truth["B"] * stretch ** truth["beta"]}
        assert found.parameters == pytest.approx(wanted, rel=1e-6)


def test_limits_of_repeated_data() -> None:
    """One pass is the parametric loss, few repeats are nearly new data, many are worth 1 + R*."""
    numbers = {"E": 1.8, "A": 9.0, "B": 40.0, "alpha": 0.3, "beta": 0.35}
    fresh = LAWS["parametric_loss"].function
    once = data_constrained_loss(1e5, 1e4, 1e4, *numbers.values(), 15.0)
    assert once == pytest.approx(fresh(1e5, 1e4, *numbers.values()))
    part = data_constrained_loss(1e5, 1e4, 2e3, *numbers.values(), 15.0)
    assert part == pytest.approx(fresh(1e5, 2e3, *numbers.values()))
    twice = data_constrained_loss(1e5, 1e4, 2e4, *numbers.values(), 1e4)
    assert twice == pytest.approx(fresh(1e5, 2e4, *numbers.values()), rel=1e-5)
    endless = data_constrained_loss(1e5, 1e4, 1e9, *numbers.values(), 15.0)
    assert endless == pytest.approx(fresh(1e5, 16e4, *numbers.values()))


def test_too_few_runs_for_a_joint_law_are_refused() -> None:
    columns = list(VALUES)
    with pytest.raises(FitError, match="joint_power_law has 9 parameters but only 8 runs"):
        fit_law("joint_power_law", surface(columns).head(8), x=columns, y="loss")
    with pytest.raises(FitError, match=r"distinct values of non_embedding_params \(1000\) cannot"):
        fit_law("joint_power_law", surface(columns).head(40), x=columns, y="loss")
