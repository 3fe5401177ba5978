"""The budget of a loss: closed forms, rising laws, the end of a law's domain, and agreement with
`predict`."""

import numpy as np
import pytest

from clue_ray.errors import FitError
from clue_ray.scaling.deciding.budget import budget_for_loss
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.result import Fit
from clue_ray.scaling.laws.law import Law

X = np.logspace(0, 3, 8)


def fitted(
    law: str | Law, loss: np.ndarray, noise: float = 0.0, x: np.ndarray = X, seed: int = 0
) -> Fit:
    noisy = loss * np.exp(noise * np.random.default_rng(seed).normal(size=len(loss)))
    return fit_law(law, {"x": x, "loss": noisy}, x="x", y="loss")


@pytest.mark.parametrize("loss", [4.0, 1.0, 0.05])
def test_a_line_in_log_compute_is_inverted_up_to_the_end_of_its_domain(loss: float) -> None:
    """5 - log10 x is 0 at 1e5: a search in decades would step beyond."""
    assert budget_for_loss(fitted("log_linear", 5 - np.log10(X)), loss) == pytest.approx(
        (10 ** (5 - loss),) * 3
    )


def test_beyond_the_domain_of_the_fitted_line_budgets_are_still_told_apart() -> None:
    fit = fitted("log_linear", 5 - np.log10(X), noise=0.01, seed=1)
    zero = 10 ** (fit.parameters["intercept"] / fit.parameters["slope"])
    with pytest.raises(FitError, match="not positive"):
        fit.predict(x=1.01 * zero)
    found = budget_for_loss(fit, 0.02)
    assert found.low < found.value < zero < found.high < 2 * zero


@pytest.mark.parametrize("slope", [0.5, 0.05])
def test_rising_laws_are_inverted_too(slope: float) -> None:
    fit = fitted("log_linear", 2 + slope * np.log10(X), noise=0.002)
    wanted = 2 + 4 * slope
    found = budget_for_loss(fit, wanted)
    assert fit.predict(x=found.value).value == pytest.approx(wanted, rel=1e-6)
    # Rising, the interval of the smallest budget just reaches up to the loss, that of the largest
    # down to it.
    assert fit.predict(x=found.low).high == pytest.approx(wanted, rel=1e-5)
    assert fit.predict(x=found.high).low == pytest.approx(wanted, rel=1e-5)


def test_the_batch_of_a_loss_at_equal_examples() -> None:
    batch = 2.0 ** np.arange(4, 13)
    fit = fitted("loss_at_equal_examples", 1.8 + 0.9 * (1 + batch / 300) ** 0.5, x=batch)
    truth = 300 * ((1.4 / 0.9) ** 2 - 1)
    assert budget_for_loss(fit, 3.2) == pytest.approx((truth,) * 3, rel=1e-4)


def test_a_law_without_inverse_is_searched_where_it_turns_nearest_to_the_runs() -> None:
    valley = Law(
        "valley",
        "a + b (log10 x - m)^2",
        ("a", "b", "m"),
        1,
        lambda x, a, b, m: a + b * (np.log10(x) - m) ** 2,
    )
    fit = fitted(valley, 2 + 0.3 * (np.log10(X) - 1.2) ** 2)
    assert budget_for_loss(fit, 2.3).value == pytest.approx(10**2.2, rel=1e-4)
    with pytest.raises(FitError, match=r"does not reach loss 1\.9 within 12 decades"):
        budget_for_loss(fit, 1.9)


def test_a_loss_below_the_floor_that_no_interval_excludes_has_budgets() -> None:
    """The floor may be lower than fitted: `predict` at large budgets holds the loss, so these
    budgets are answered."""
    fit = fitted("power_law_plus_constant", 1.8 + 3 * X**-0.2, noise=0.004)
    floor, lowest = fit.parameters["irreducible_loss"], fit.interval("irreducible_loss")[0]
    asked = 0.8 * lowest + 0.2 * floor
    found = budget_for_loss(fit, asked)
    assert found.value == found.high == np.inf
    assert X[-1] < found.low < np.inf
    assert fit.predict(x=2 * found.low).low < asked < fit.predict(x=found.low / 2).low
    with pytest.raises(FitError, match="the floor of the law is"):
        budget_for_loss(fit, 0.99 * lowest)


def test_a_loss_that_is_no_number_is_refused() -> None:
    with pytest.raises(FitError, match="loss is '2'"):
        budget_for_loss(fitted("power_law", 3 * X**-0.1), "2")  # type: ignore[arg-type]
