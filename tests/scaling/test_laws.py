"""Laws as plain functions: limits, inverses, lookup."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clue_ray.errors import FitError
from clue_ray.scaling.laws.catalogue import LAWS, find_law
from clue_ray.scaling.laws.law import Law

X = np.logspace(0, 12, 25)
CEILING = float(np.log(256))


def test_every_law_takes_its_predictors_and_parameters_and_describes_itself() -> None:
    for law in LAWS.values():
        known = law.with_ceiling(CEILING) if law.lacks_ceiling else law
        numbers = {name: 1.0 + 0.1 * place for place, name in enumerate(law.parameters)}
        values = known([X] * law.num_predictors, list(numbers.values()))
        assert values.shape == X.shape
        assert np.isfinite(values).all()
        assert "1" in known.describe(numbers)
        assert "{" not in known.describe(numbers)


@settings(max_examples=30)
@given(floor=st.floats(0, 5), centre=st.floats(0, 12), exponent=st.floats(0.05, 2))
def test_bounded_power_law_falls_from_ceiling_to_floor_and_inverts(
    floor: float, centre: float, exponent: float
) -> None:
    law = LAWS["bounded_power_law"].with_ceiling(CEILING)
    values = law([X], [floor, 10 ** (centre * exponent), exponent])
    assert (np.diff(values) <= 1e-12).all()
    assert (values >= floor - 1e-9).all()
    assert (values <= CEILING + 1e-9).all()
    inside = (values > floor + 1e-3) & (values < CEILING - 1e-3)
    odds = (values[inside] - floor) / (CEILING - values[inside])
    found = 10**centre * odds ** (-1 / exponent)
    np.testing.assert_allclose(found, X[inside], rtol=1e-6)


def test_bounded_power_law_is_a_power_law_off_both_ends() -> None:
    law = LAWS["bounded_power_law"].with_ceiling(CEILING)
    early, late = (
        law([np.array([1.0, 10.0])], [2.0, 1e6, 0.5]),
        law([np.array([1e20, 1e21])], [2.0, 1e6, 0.5]),
    )
    assert (CEILING - early[1]) / (CEILING - early[0]) == pytest.approx(10**0.5, rel=1e-3)
    assert (late[1] - 2) / (late[0] - 2) == pytest.approx(10**-0.5, rel=1e-3)


INVERTED = {
    "power_law": [30.0, 0.08],
    "power_law_plus_constant": [1.8, 900.0, 0.25],
    "log_linear": [7.5, 0.21],
    "bounded_power_law": [3.0, 2000.0, 0.35],
    "critical_batch": [500.0, 300.0],
    "loss_at_equal_steps": [1.8, 0.9, 0.5, 300.0],
    "loss_at_equal_examples": [1.8, 0.9, 0.5, 300.0],
}


def test_inverses_round_trip() -> None:
    assert {law.name for law in LAWS.values() if law.inverse} == set(INVERTED)
    x = np.logspace(1, 6, 11)
    for name, parameters in INVERTED.items():
        law = LAWS[name].with_ceiling(CEILING) if LAWS[name].lacks_ceiling else LAWS[name]
        np.testing.assert_allclose(
            law.invert(law([x], parameters), parameters), x, rtol=1e-6, err_msg=name
        )
    assert np.isnan(
        LAWS["power_law_plus_constant"].invert(1.0, INVERTED["power_law_plus_constant"])
    )
    with pytest.raises(FitError, match="no inverse in closed form"):
        LAWS["broken_power_law"].invert(2.0, [1.5, 40, 0.15, 0.4, 1e10, 0.3])


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if law.linear])
def test_linear_parameters_are_linear(name: str) -> None:
    law = LAWS[name]
    rng = np.random.default_rng(0)
    x = [rng.uniform(1, 100, 7) for _ in range(law.num_predictors)]
    one = dict(zip(law.parameters, rng.uniform(0.2, 0.9, len(law.parameters)), strict=True))
    other = one | {key: rng.uniform(0.2, 0.9) for key in law.linear}
    both = one | {key: 2 * one[key] + 3 * other[key] for key in law.linear}
    sides = [law(x, list(parameters.values())) for parameters in (one, other, both)]
    np.testing.assert_allclose(2 * sides[0] + 3 * sides[1], sides[2], rtol=1e-12)


def test_broken_power_law_has_one_slope_on_either_side() -> None:
    law, parameters = LAWS["broken_power_law"], [0.0, 40.0, 0.15, 0.4, 1e6, 0.3]
    early, late = (
        law([np.array([1.0, 10.0])], parameters),
        law([np.array([1e12, 1e13])], parameters),
    )
    assert early[1] / early[0] == pytest.approx(10**-0.15, rel=1e-3)
    assert late[1] / late[0] == pytest.approx(10**-0.4, rel=1e-3)
    sharp = law(
        [X], [0.0, 40.0, 0.15, 0.4, 1e6, 0.02]
    )  # (x / break)^50 overflows if computed directly
    np.testing.assert_allclose(
        sharp,
        np.where(X < 1e6, 40 * X**-0.15, 40 * 1e6**0.25 * X**-0.4),
        rtol=0.25 * 0.02 * np.log(2) * 1.01,
    )


def test_hints_about_unknown_parameters_are_refused() -> None:
    with pytest.raises(FitError, match="no parameter 'c', which its hints name; it has a, b"):
        Law("mine", "a x^-b", ("a", "b"), 1, lambda x, a, b: a * x**-b, bounds={"c": (0, 1)})
    with pytest.raises(FitError, match="coefficient 'a' of a term of mine takes no bounds"):
        Law(
            "mine",
            "a x^-b",
            ("a", "b"),
            1,
            lambda x, a, b: a * x**-b,
            terms=(("a", "b"),),
            bounds={"a": (0, 1)},
        )


def test_unknown_law_names_the_nearest() -> None:
    with pytest.raises(FitError, match="no law 'power_low'; did you mean 'power_law'"):
        find_law("power_low")
