"""Laws as plain functions: limits, inverses, lookup."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clue_ray.errors import FitError
from clue_ray.scaling.laws import LAWS, find_law

X = np.logspace(0, 12, 25)
CEILING = float(np.log(256))


def test_every_law_takes_its_predictors_and_parameters_and_describes_itself() -> None:
    for law in LAWS.values():
        known = law.with_ceiling(CEILING) if law.lacks_ceiling else law
        numbers = {name: 1.0 + 0.1 * place for place, name in enumerate(law.parameters)}
        values = known([X] * law.num_predictors, list(numbers.values()))
        assert values.shape == X.shape and np.isfinite(values).all()
        assert "1" in known.describe(numbers) and "{" not in known.describe(numbers)


@settings(max_examples=30, deadline=None)
@given(floor=st.floats(0, 5), centre=st.floats(0, 12), exponent=st.floats(0.05, 2))
def test_bounded_power_law_falls_from_ceiling_to_floor_and_inverts(
    floor: float, centre: float, exponent: float
) -> None:
    law = LAWS["bounded_power_law"].with_ceiling(CEILING)
    values = law([X], [floor, 10 ** (centre * exponent), exponent])
    assert (np.diff(values) <= 1e-12).all()
    assert (values >= floor - 1e-9).all() and (values <= CEILING + 1e-9).all()
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


def test_unknown_law_names_the_nearest() -> None:
    with pytest.raises(FitError, match="no law 'power_low'; did you mean 'power_law'"):
        find_law("power_low")
