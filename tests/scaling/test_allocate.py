"""Allocation: closed form, brute force, serving, free axes, inverses, refusals."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from clue_ray.errors import FitError
from clue_ray.scaling.deciding.allocate import Cost, allocate, best_loss, calibrate_cost, token_cost
from clue_ray.scaling.deciding.budget import budget_for_loss, marginal_returns
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.result import Fit
from clue_ray.scaling.laws.law import Law

AXES = ["non_embedding_params", "train_tokens"]


def tokens_fit(noise: float = 0.003) -> Fit:
    size, tokens = np.array(list(product(np.logspace(4, 6, 4), np.logspace(6, 8, 4)))).T
    loss = 1.8 + 30 * size**-0.34 + 120 * tokens**-0.37
    loss = loss * np.exp(noise * np.random.default_rng(1).normal(size=len(loss)))
    return fit_law(
        "parametric_loss", {AXES[0]: size, AXES[1]: tokens, "loss": loss}, x=AXES, y="loss"
    )


@pytest.fixture(scope="module")
def fit() -> Fit:
    return tokens_fit()


@pytest.fixture(scope="module")
def exact() -> Fit:
    return tokens_fit(noise=0)


def study_law() -> Law:
    """A user-defined law over a size and two more axes, as a sum of power laws."""

    def total(n, u, s, E, A, B, C, alpha, beta, gamma):  # type: ignore[no-untyped-def]
        return E + A * n**-alpha + B * u**-beta + C * s**-gamma

    names = ("E", "A", "B", "C", "alpha", "beta", "gamma")
    terms = (("A", "alpha"), ("B", "beta"), ("C", "gamma"))
    return Law("three_axes", "sum", names, 3, total, terms=terms, floor="E")


def study_table(third: str) -> pd.DataFrame:
    """Draw a grid over size, users and a third axis; histories cost compute, batches do not."""
    columns = ["non_embedding_params", "users_seen", third]
    table = pd.DataFrame(
        list(product([1e4, 1e5, 1e6], [1e4, 1e5, 1e6], [4, 16, 64])), columns=columns, dtype=float
    )
    n, u, s = (table[column] for column in columns)
    paid = s if third == "sequence_length" else 16
    loss = 1.5 + 20 * n**-0.3 + 30 * u**-0.35 + 1.5 * s**-0.5
    return table.assign(loss=loss, train_flops=6 * 24 * n * u * paid)


def study_fit(third: str) -> tuple[Fit, Cost]:
    table = study_table(third)
    columns = list(table.columns[:3])
    found = fit_law(study_law(), table, x=columns, y="loss", loss="log_least_squares")
    return found, calibrate_cost(table, columns)


@settings(max_examples=20)
@given(budget=st.floats(12, 24))
def test_two_axes_follow_hoffmanns_closed_form(exact: Fit, budget: float) -> None:
    recipe, p = allocate(exact, 10**budget), exact.parameters
    alpha, beta = p["alpha"], p["beta"]
    g = (alpha * p["A"] / (beta * p["B"])) ** (1 / (alpha + beta))
    size = g * (10**budget / 6) ** (beta / (alpha + beta))
    assert recipe.non_embedding_params.value == pytest.approx(size, rel=1e-9)
    assert 6 * size * recipe.train_tokens.value == pytest.approx(10**budget, rel=1e-9)
    assert recipe.axes == {AXES[0]: recipe.non_embedding_params, AXES[1]: recipe.train_tokens}


def test_serving_shrinks_the_encoder_to_the_brute_force_optimum(exact: Fit) -> None:
    budget, read = 1e15, 3e8
    recipe = allocate(exact, budget, Cost(AXES[0], {AXES[1]: 1.0}).with_inference(read))

    def loss(log_size: float) -> float:
        size = np.exp(log_size)
        tokens = (budget - 2 * size * read) / (6 * size)
        return float(exact.predict(**{AXES[0]: size, AXES[1]: tokens}).value)

    best = minimize_scalar(
        loss, bounds=(np.log(1e4), np.log(budget / (2 * read)) - 0.01), method="bounded"
    )
    assert recipe.non_embedding_params.value == pytest.approx(np.exp(best.x), rel=2e-3)
    assert recipe.non_embedding_params.value < allocate(exact, budget).non_embedding_params.value
    spent = 6 * recipe.non_embedding_params.value * recipe.train_tokens.value
    assert spent + recipe.inference_flops == pytest.approx(budget, rel=1e-9)


def test_intervals_of_a_recipe_hold_the_planted_optimum(fit: Fit, exact: Fit) -> None:
    truth = allocate(exact, 1e13)
    found = allocate(fit, 1e13)
    for name in ("non_embedding_params", "train_tokens", "loss"):
        value, low, high = getattr(found, name)
        assert low < value < high
        assert low < getattr(truth, name).value < high
    assert found.warnings == ()
    assert any("above any run" in warning for warning in allocate(fit, 1e20).warnings)


def test_study_axes_are_spent_where_they_pay() -> None:
    found, cost = study_fit("sequence_length")
    assert found.parameters["gamma"] == pytest.approx(0.5, rel=1e-3)
    assert cost.powers == {
        "users_seen": 1.0,
        "sequence_length": 1.0,
    }
    assert cost.scale == pytest.approx(144)
    recipe = allocate(found, 1e13, cost)
    best = {column: place.value for column, place in recipe.axes.items()}
    assert 144 * np.prod(list(best.values())) == pytest.approx(1e13, rel=1e-9)
    assert recipe.held == ()
    for one, other in (("non_embedding_params", "users_seen"), ("users_seen", "sequence_length")):
        for factor in (0.9, 1.1):
            moved = best | {one: best[one] * factor, other: best[other] / factor}
            assert found.predict(**moved).value > recipe.loss.value
    with pytest.raises(FitError, match="encoder size and train_tokens"):
        allocate(found, 1e13)


def test_an_axis_that_costs_nothing_is_held_with_a_warning() -> None:
    found, cost = study_fit("global_batch_size")
    recipe = allocate(found, 1e13, cost)
    assert recipe.held == ("global_batch_size",)
    assert recipe.axes["global_batch_size"] == (
        64,
        64,
        64,
    )
    assert any("costs no compute" in warning for warning in recipe.warnings)
    spent = 144 * 16 * recipe.axes["users_seen"].value * recipe.non_embedding_params.value
    assert spent == pytest.approx(1e13, rel=1e-9)


def test_budget_for_loss_inverts_both_kinds_of_law(fit: Fit) -> None:
    recipe = allocate(fit, 1e15)
    back = budget_for_loss(fit, recipe.loss.value)
    assert back.value == pytest.approx(1e15, rel=1e-5)
    assert back.low < 1e15 < back.high
    x = np.logspace(10, 13, 8)
    loss = (1.8 + 3.5 * (x / 1e10) ** -0.25) * np.exp(
        0.004 * np.random.default_rng(0).normal(size=8)
    )
    one = fit_law(
        "power_law_plus_constant", {"train_flops": x, "loss": loss}, x="train_flops", y="loss"
    )
    ahead = one.predict(train_flops=1e14)
    found = budget_for_loss(one, ahead.value)
    assert found.value == pytest.approx(1e14, rel=1e-5)
    # The ends are the budgets whose own interval just holds the loss asked for.
    assert one.predict(train_flops=found.low).low == pytest.approx(ahead.value, rel=1e-5)
    if np.isfinite(found.high):
        assert one.predict(train_flops=found.high).high == pytest.approx(ahead.value, rel=1e-5)
    with pytest.raises(FitError, match="the floor of the law is"):
        budget_for_loss(one, 0.9 * one.parameters["irreducible_loss"])
    with pytest.raises(FitError, match="does not reach"):
        budget_for_loss(one, 1e9)
    with pytest.raises(FitError, match="positive finite"):
        budget_for_loss(one, float("nan"))


def test_marginal_returns_are_equal_where_the_recipe_is_best(exact: Fit) -> None:
    """At the optimum a small step buys as much a FLOP along every axis; a doubling, nearly so."""
    recipe = allocate(exact, 1e15)
    at = {AXES[0]: recipe.non_embedding_params.value, AXES[1]: recipe.train_tokens.value}
    returns = marginal_returns(exact, **at)
    for row in returns.itertuples():
        doubled = exact.predict(**(at | {row.axis: 2 * at[row.axis]})).value
        assert row.gain == pytest.approx(recipe.loss.value - doubled, rel=1e-6)
        assert row.cost_factor == 2
    assert returns["gain"].max() / returns["gain"].min() < 1.05
    starved = marginal_returns(exact, **(at | {AXES[1]: at[AXES[1]] / 100}))
    assert starved["axis"][0] == AXES[1]
    assert starved["gain"][0] > 4 * returns["gain"][0]
    with pytest.raises(FitError, match="predicts from"):
        marginal_returns(exact, tokens=1.0)


def test_gain_has_an_interval_that_holds_the_truth(fit: Fit) -> None:
    row = marginal_returns(fit, **{AXES[0]: 1e5, AXES[1]: 1e7}).set_index("axis").loc[AXES[0]]
    truth = 30 * (1e5**-0.34 - 2e5**-0.34)
    assert row["low"] < truth < row["high"] < 2 * truth


def test_what_cannot_be_allocated_is_refused(fit: Fit) -> None:
    with pytest.raises(FitError, match="positive finite number of FLOP"):
        allocate(fit, -1.0)
    with pytest.raises(FitError, match="0 or more"):
        Cost(AXES[0], {}).with_inference(-1)
    with pytest.raises(FitError, match="1 axes that cost compute"):
        allocate(fit, 1e15, Cost(AXES[0], {}))
    size = np.logspace(4, 6, 8)
    line = {
        AXES[0]: size,
        AXES[1]: 20 * size,
        "loss": 1.8 + 30 * size**-0.34 + 120 * (20 * size) ** -0.37,
    }
    along = fit_law("parametric_loss", line, x=AXES, y="loss")
    with pytest.raises(FitError, match=r"rise together in all runs|exponent of .* is 0"):
        allocate(along, 1e15)


def test_costs_that_are_no_product_are_refused() -> None:
    table = study_table("sequence_length")
    columns = list(table.columns[:3])
    with pytest.raises(FitError, match="whole powers"):
        calibrate_cost(table.assign(train_flops=table["train_flops"] ** 1.5), columns)
    with pytest.raises(FitError, match="A cost needs one size"):
        calibrate_cost(table, columns[1:])


EPOCH = Path(__file__).parents[2].parent / "shared" / "fitdata" / "epoch_chinchilla" / "points.csv"


def test_five_epoch_points_move_the_optimum_as_published() -> None:
    """At 5.76e23 FLOP the best size is 73.2B without the five outliers, 118.7B with them
    (reference/fitting.md)."""
    if not EPOCH.is_file():
        pytest.skip(f"{EPOCH} is not next to this checkout")
    points = pd.read_csv(EPOCH)
    kept = points[points["L"] < points["L"].nlargest(5).min()]
    for table, published in ((kept, 73.2e9), (points, 118.7e9)):
        found = fit_law("parametric_loss", table, x=["N", "D"], y="L")
        assert allocate(found, 5.76e23).non_embedding_params.value == pytest.approx(
            published, rel=5e-3
        )


def test_a_joint_law_by_name_is_allocated_over_its_columns() -> None:
    columns = ["non_embedding_params", "train_tokens", "sequence_length"]
    grid = np.array(list(product([1e4, 1e5, 1e6], [1e6, 1e7, 1e8], [4, 16, 64])), dtype=float).T
    loss = 1.5 + 20 * grid[0] ** -0.3 + 120 * grid[1] ** -0.37 + 1.5 * grid[2] ** -0.5
    table = dict(zip(columns, grid, strict=True)) | {"loss": loss}
    found = fit_law("joint_power_law", table, x=columns, y="loss")
    recipe = allocate(found, 1e13)
    assert 6 * recipe.non_embedding_params.value * recipe.train_tokens.value == pytest.approx(
        1e13, rel=1e-9
    )
    g = (0.3 * 20 / (0.37 * 120)) ** (1 / 0.67)
    assert recipe.non_embedding_params.value == pytest.approx(
        g * (1e13 / 6) ** (0.37 / 0.67), rel=1e-3
    )
    assert recipe.held == ("sequence_length",)
    assert recipe.axes["sequence_length"].value == 64


def test_the_best_loss_alone_is_that_of_the_recipe(exact: Fit) -> None:
    assert best_loss(exact, 1e15, token_cost(exact)) == allocate(exact, 1e15).loss
