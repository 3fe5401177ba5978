"""Fits: planted truths, published numbers, invariances, refusals."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clue_ray.errors import ClueRayError
from clue_ray.runs import Runs
from clue_ray.scaling.deciding.allocate import allocate
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.problem import minimise
from clue_ray.scaling.fitting.result import Fit
from clue_ray.scaling.laws.catalogue import LAWS
from clue_ray.scaling.laws.law import Law

COMPUTE = np.logspace(10, 14, 9)
CEILING = float(np.log(256))
PLANTED = {
    "power_law": (COMPUTE, [30.0, 0.08]),
    "power_law_plus_constant": (COMPUTE, [1.8, 900.0, 0.25]),
    "log_linear": (COMPUTE, [7.5, 0.21]),
    "bounded_power_law": (np.logspace(6, 14, 12), [3.0, 2000.0, 0.35]),
}
SURFACES = PLANTED | {
    "broken_power_law": (np.logspace(6, 14, 17), [1.5, 40.0, 0.15, 0.4, 1e10, 0.3]),
    "critical_batch": (2.0 ** np.arange(4, 13), [500.0, 300.0]),
    "loss_at_equal_steps": (2.0 ** np.arange(4, 13), [1.8, 0.9, 0.5, 300.0]),
    "loss_at_equal_examples": (2.0 ** np.arange(4, 13), [1.8, 0.9, 0.5, 300.0]),
}
LOSSES = ["log_huber", "log_least_squares"]


def table(name: str, noise: float = 0.0, scale: float = 1.0, seed: int = 0) -> pd.DataFrame:
    """Draw runs from a planted law of one predictor, with x multiplied by `scale`."""
    x, truth = SURFACES[name]
    law = LAWS[name].with_ceiling(CEILING) if LAWS[name].lacks_ceiling else LAWS[name]
    loss = law([x], truth) * np.exp(noise * np.random.default_rng(seed).normal(size=len(x)))
    return pd.DataFrame({"train_flops": x * scale, "loss": loss, "loss_candidates": 256})


def fit(name: str, runs: pd.DataFrame, **options: str) -> Fit:
    return fit_law(name, runs, x="train_flops", y="loss", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", SURFACES)
def test_planted_truth_is_recovered(name: str, loss: str) -> None:
    found = fit(name, table(name), loss=loss)
    np.testing.assert_allclose(list(found.parameters.values()), SURFACES[name][1], rtol=1e-6)
    np.testing.assert_allclose(found.curve(SURFACES[name][0]), table(name)["loss"], rtol=1e-8)
    assert found.rivals == (1, 1)


def test_breaks_are_recovered_wherever_they_lie() -> None:
    """The law is steeper after the break, or flatter as with a second floor.

    It has six parameters, and its cost several minima."""
    x, rng = np.logspace(6, 14, 17), np.random.default_rng(1)
    for trial in range(16):
        slopes = [rng.uniform(0.08, 0.3), rng.uniform(0.4, 0.9)][:: 1 if trial % 2 else -1]
        place = 10 ** rng.uniform(8.5, 11.5)
        truth = [
            1.5,
            0.5 * place ** slopes[0],
            *slopes,
            place,
            rng.uniform(0.1, 0.6),
        ]  # half a nat above the floor
        loss = LAWS["broken_power_law"]([x], truth)
        found = fit("broken_power_law", pd.DataFrame({"train_flops": x, "loss": loss}))
        np.testing.assert_allclose(
            list(found.parameters.values()), truth, rtol=1e-6, err_msg=str(truth)
        )


@settings(max_examples=15)
@given(floor=st.floats(0.5, 4), height=st.floats(0.5, 5), exponent=st.floats(0.06, 0.6))
def test_floor_and_exponent_are_recovered_anywhere(
    floor: float, height: float, exponent: float
) -> None:
    loss = floor + height * (COMPUTE / COMPUTE[0]) ** -exponent
    found = fit("power_law_plus_constant", pd.DataFrame({"train_flops": COMPUTE, "loss": loss}))
    assert found.parameters["irreducible_loss"] == pytest.approx(floor, rel=1e-4)
    assert found.parameters["exponent"] == pytest.approx(exponent, rel=1e-4)


def test_parametric_loss_is_recovered_and_allocated() -> None:
    size, tokens = (
        grid.ravel() for grid in np.meshgrid(np.logspace(3, 6, 5), np.logspace(5, 8, 5))
    )
    loss = 1.8 + 9 * size**-0.3 + 40 * tokens**-0.35
    runs = {"non_embedding_params": size, "train_tokens": tokens, "loss": loss}
    found = fit_law("parametric_loss", runs, x=["non_embedding_params", "train_tokens"], y="loss")
    np.testing.assert_allclose(list(found.parameters.values()), [1.8, 9, 40, 0.3, 0.35], rtol=1e-4)
    recipe = allocate(found, 1e15)
    best, seen = recipe.non_embedding_params.value, recipe.train_tokens.value
    assert 6 * best * seen == pytest.approx(1e15)
    for other in (0.9 * best, 1.1 * best):
        worse = found.predict(non_embedding_params=other, train_tokens=1e15 / 6 / other)
        assert worse.value > recipe.loss.value


def test_rival_optima_are_counted() -> None:
    """The law is even in b, so b and -b have the same cost."""
    law = Law(
        "even", "a + (b^2 - 1)^2 x", ("a", "b"), 1, lambda x, a, b: a + (b * b - 1) ** 2 + 0 * x
    )
    found = fit_law(law, {"x": [1.0, 2, 3, 4], "y": [2.0, 2.1, 2.2, 2.3]}, x="x", y="y")
    assert found.rivals[0] > 1
    assert "distinct optima" in " ".join(found.warnings)


def test_custom_law_with_bounds_and_guesses() -> None:
    """Positions in the unit of x, linear parameters, ranges and starts are hints."""
    law = Law(
        name="saturating",
        formula="E + a / (1 + (x / k)^h)",
        parameters=("E", "a", "k", "h"),
        num_predictors=1,
        function=lambda x, E, a, k, h: E + a / (1 + (x / k) ** h),
        floor="E",
        linear=("E", "a"),
        places={"k": 0},
        bounds={"h": (0.1, 4.0)},
        guesses={"h": (0.5, 1.0, 2.0)},
    )
    x, truth = np.logspace(3, 9, 13), {"E": 1.2, "a": 3.0, "k": 2e6, "h": 0.7}
    runs = {"x": x, "y": law([x], list(truth.values()))}
    for loss in LOSSES:
        assert fit_law(law, runs, x="x", y="y", loss=loss).parameters == pytest.approx(
            truth, rel=1e-6
        )
    noisy = runs | {"y": runs["y"] * np.exp(0.001 * np.random.default_rng(0).normal(size=13))}
    found = fit_law(law, noisy, x="x", y="y")
    for name, value in truth.items():
        low, high = found.interval(name)
        assert low <= value <= high, name
        assert found.identified(name), name
    narrow = replace(law, bounds={"h": (1.0, 4.0)})
    held = fit_law(narrow, runs, x="x", y="y")
    assert held.parameters["h"] == pytest.approx(1.0)
    assert held.interval("h")[0] == 1.0


def test_custom_law_of_one_line_is_fitted() -> None:
    law = Law("stretched", "a exp(-b x)", ("a", "b"), 1, lambda x, a, b: a * np.exp(-b * x))
    x = np.linspace(0.1, 3, 8)
    found = fit_law(law, {"x": x, "y": 2.5 * np.exp(-0.7 * x)}, x="x", y="y")
    assert found.parameters == pytest.approx({"a": 2.5, "b": 0.7}, rel=1e-6)
    assert found.law.describe(found.parameters) == "a exp(-b x), a = 2.5, b = 0.7"


@pytest.mark.parametrize("name", PLANTED)
def test_order_of_runs_and_units_of_x_do_not_matter(name: str) -> None:
    runs = table(name, noise=0.01)
    plain, turned = fit(name, runs), fit(name, runs.iloc[::-1])
    stretched = fit(name, table(name, noise=0.01, scale=1e6))
    assert turned.parameters == pytest.approx(plain.parameters, rel=1e-5)
    at = float(COMPUTE[-1]) * 10
    assert stretched.predict(train_flops=at * 1e6) == pytest.approx(
        plain.predict(train_flops=at), rel=1e-4
    )
    kept = [p for p in plain.parameters if p not in ("coefficient", "intercept")]
    assert [stretched.parameters[p] for p in kept] == pytest.approx(
        [plain.parameters[p] for p in kept], rel=1e-5
    )
    if "exponent" in kept:
        grown = plain.parameters["coefficient"] * 1e6 ** plain.parameters["exponent"]
        assert stretched.parameters["coefficient"] == pytest.approx(grown, rel=1e-4)


@pytest.mark.parametrize("factor", [1e-12, 1e12])
@pytest.mark.parametrize("name", ["power_law", "power_law_plus_constant", "log_linear"])
def test_units_of_the_loss_do_not_matter(name: str, factor: float) -> None:
    runs = table(name, noise=0.01).drop(columns="loss_candidates")
    plain = fit(name, runs).parameters
    scaled = fit(name, runs.assign(loss=runs["loss"] * factor)).parameters
    for parameter, value in plain.items():
        expected = value if parameter == "exponent" else value * factor
        assert scaled[parameter] == pytest.approx(expected, rel=1e-6, abs=0)


def test_one_outlier_hardly_moves_a_robust_fit() -> None:
    runs = table("power_law_plus_constant", noise=0.001)
    clean = fit("power_law_plus_constant", runs).parameters["exponent"]
    runs.loc[4, "loss"] *= 1.2
    assert fit("power_law_plus_constant", runs).parameters["exponent"] == pytest.approx(
        clean, rel=0.1
    )


def test_runs_that_are_not_done_are_left_out_and_counted() -> None:
    runs = table("power_law").assign(status="done")
    runs.loc[2, ["status", "loss"]] = ["failed", np.nan]
    found = fit_law("power_law", Runs(runs), x="train_flops", y="loss")
    assert found.num_runs == 8
    assert found.warnings == ("1 of 9 runs is not done and was left out.",)


def test_weak_data_raise_warnings() -> None:
    close = pd.DataFrame(
        {"train_flops": [1.0, 1, 2, 2, 4, 4], "loss": [3.0, 3.1, 2.5, 2.6, 2.2, 2.1]}
    )
    warnings = " ".join(fit("power_law_plus_constant", close).warnings)
    assert "only 3 distinct values" in warnings
    assert "span 0.6 decades" in warnings
    pure = fit("power_law_plus_constant", table("power_law", noise=0.02, seed=3))
    assert pure.parameters["irreducible_loss"] >= 0
    steep = pd.DataFrame({"train_flops": COMPUTE, "loss": 9 * (COMPUTE / 1e10) ** -0.3 - 0.2})
    assert "at its bound 0" in " ".join(fit("power_law_plus_constant", steep).warnings)


def test_a_fit_prints_its_law_intervals_and_warnings() -> None:
    lines = str(fit("power_law_plus_constant", table("power_law_plus_constant"))).splitlines()
    assert lines[0] == "power law plus constant of train_flops, fitted to 9 runs"
    assert lines[1] == "  loss = E + a x^-b"
    assert lines[2] == "  irreducible_loss = 1.8         95 % interval 1.8 to 1.8"
    assert [line.split()[0] for line in lines[2:]] == [
        "irreducible_loss",
        "coefficient",
        "exponent",
    ]
    pure = fit("power_law_plus_constant", table("power_law", noise=0.02, seed=3))
    assert any(line.startswith("  irreducible_loss") for line in str(pure).splitlines())
    assert [line for line in str(pure).splitlines() if "warning: " in line] == [
        f"  warning: {warning}" for warning in pure.warnings
    ]


def test_the_minimiser_says_whether_it_converged() -> None:
    found = fit("power_law_plus_constant", table("power_law_plus_constant", noise=0.01))
    assert found.converged
    assert found.likelihood.converged
    problem, delta = found.problem, np.full(9, 1e-3)
    starts = found.theta[None] + [[0.0, 0.1, 0.1]]
    short = minimise(problem.rows(), starts, delta, problem.bounds, iterations=1)
    assert not short.converged.any()
    assert "did not converge" in str(replace(found, converged=False))


def test_bad_questions_are_refused() -> None:
    found = fit("power_law", table("power_law"))
    with pytest.raises(ClueRayError, match="did you mean 'exponent'"):
        found.interval("exponents")
    with pytest.raises(ClueRayError, match="predicts from train_flops"):
        found.predict(flops=1e12)
    with pytest.raises(ClueRayError, match="Cannot predict"):
        found.predict(train_flops=-1.0)
    with pytest.raises(ClueRayError, match="between 0 and 1"):
        found.predict(level=95, train_flops=1e12)
    with pytest.raises(ClueRayError, match="not positive"):
        fit("log_linear", table("log_linear")).predict(train_flops=1e90)
    with pytest.raises(ClueRayError, match="parametric_loss"):
        allocate(found, 1e12)


def test_delta_follows_the_noise_between_seeds() -> None:
    """delta is twice the noise of six configurations of three seeds, unless it is passed."""
    x = np.repeat(np.logspace(0, 3, 6), 3)
    noise = 0.02 * np.random.default_rng(0).normal(size=18)
    runs = {"x": x, "y": 4 * x**-0.15 * np.exp(noise)}
    apart = noise.reshape(6, 3) - noise.reshape(6, 3).mean(axis=1, keepdims=True)
    found = fit_law("power_law", runs, x="x", y="y")
    assert found.delta == pytest.approx(2 * np.sqrt((apart**2).sum() / 12))
    assert found.to_dict()["delta"] == found.delta
    assert found.to_dict()["loss"] == "log_huber"
    assert fit_law("power_law", runs, x="x", y="y", delta=1e-3).delta == 1e-3
    assert (
        fit_law(
            "power_law", {name: values[::3] for name, values in runs.items()}, x="x", y="y"
        ).delta
        == 1e-3
    )
    squares = fit_law("power_law", runs, x="x", y="y", loss="log_least_squares").to_dict()
    assert squares["loss"] == "log_least_squares"
    assert squares["delta"] is None


def kaplan() -> tuple[Law, dict[str, np.ndarray]]:
    """L(N, D) of Kaplan et al. 2020, equation 1.5, without hints, and its exact losses."""

    def function(
        n: np.ndarray, d: np.ndarray, nc: float, an: float, dc: float, ad: float
    ) -> np.ndarray:
        return ((nc / n) ** (an / ad) + dc / d) ** ad

    size, tokens = (
        grid.ravel() for grid in np.meshgrid(np.logspace(6, 9, 4), np.logspace(8, 11, 4))
    )
    law = Law("kaplan", "((Nc / N)^(aN / aD) + Dc / D)^aD", ("nc", "an", "dc", "ad"), 2, function)
    return law, {"N": size, "D": tokens, "L": function(size, tokens, 8.8e13, 0.076, 5.4e13, 0.095)}


def test_a_custom_law_without_hints_is_found_far_from_its_starts() -> None:
    law, runs = kaplan()
    found = fit_law(law, runs, x=["N", "D"], y="L")
    assert found.parameters == pytest.approx(
        {"nc": 8.8e13, "an": 0.076, "dc": 5.4e13, "ad": 0.095}, rel=1e-6
    )
    assert found.fit_warnings == ()


def test_a_custom_law_worse_than_a_power_law_is_warned_of() -> None:
    law = Law("far", "a + log(b x)", ("a", "b"), 1, lambda x, a, b: a + np.log(b * x))
    x = np.logspace(0, 3, 8)
    said = fit_law(law, {"x": x, "y": 3 * x**-0.1}, x="x", y="y").fit_warnings[0]
    assert said.startswith("far: it misses the runs by")
    assert said.endswith("places for a, b.")
    assert not fit(
        "log_linear", table("power_law")
    ).fit_warnings  # a catalogue law that does not suit is not a missed optimum
