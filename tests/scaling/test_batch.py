"""Laws of the batch size: planted surfaces, their slices, steps to a loss."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clue_ray.errors import RunsError
from clue_ray.scaling.deciding.critical_batch import steps_to_loss
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.laws.batch import (
    batch_loss,
    critical_batch,
    loss_at_equal_examples,
    loss_at_equal_steps,
)

BATCHES = 2.0 ** np.arange(3, 12)
TRUTH = {"irreducible_loss": 1.8, "coefficient": 9.0, "exponent": 0.3, "critical_batch_size": 300.0}


def curves(points: int = 60) -> pd.DataFrame:
    """Draw a curve of loss over steps for each batch size."""
    steps, batch = (grid.ravel() for grid in np.meshgrid(np.logspace(1, 6, points), BATCHES))
    loss = batch_loss(steps, batch, *TRUTH.values())
    return pd.DataFrame({"steps": steps, "global_batch_size": batch, "loss": loss})


def test_batch_surface_is_recovered() -> None:
    found = fit_law("batch_loss", curves(6), x=["steps", "global_batch_size"], y="loss")
    assert found.parameters == pytest.approx(TRUTH, rel=1e-6)


def test_critical_batch_is_the_hyperbola_of_steps_and_examples() -> None:
    """(S / Smin - 1)(E / Emin - 1) = 1, McCandlish et al. 2018."""
    steps = critical_batch(BATCHES, 500.0, 300.0)
    np.testing.assert_allclose((steps / 500 - 1) * (steps * BATCHES / (500 * 300) - 1), 1)
    assert (
        critical_batch(300.0, 500.0, 300.0) == 1000
    )  # the critical batch takes twice the least of both


def test_slices_of_the_surface() -> None:
    floor, coefficient, exponent, critical = TRUTH.values()
    equal = loss_at_equal_steps(BATCHES, floor, coefficient * 1e4**-exponent, exponent, critical)
    np.testing.assert_allclose(equal, batch_loss(1e4, BATCHES, *TRUTH.values()))
    examples = 1e7
    height = coefficient * (examples / critical) ** -exponent
    spent = loss_at_equal_examples(BATCHES, floor, height, exponent, critical)
    np.testing.assert_allclose(spent, batch_loss(examples / BATCHES, BATCHES, *TRUTH.values()))
    assert (np.diff(equal) < 0).all()
    assert (np.diff(spent) > 0).all()


def test_critical_batch_is_found_from_curves() -> None:
    target = 2.5
    reached = steps_to_loss(curves(2000), target)
    found = fit_law("critical_batch", reached, x="global_batch_size", y="steps")
    assert found.parameters["critical_batch_size"] == pytest.approx(
        300, rel=1e-3
    )  # curves are interpolated between points
    least = (9.0 / (target - 1.8)) ** (1 / 0.3)
    assert found.parameters["min_steps"] == pytest.approx(least, rel=1e-3)
    low, high = found.interval("critical_batch_size")
    assert low <= found.parameters["critical_batch_size"] <= high
    assert high / low < 1.01


def test_noisy_intervals_cover_the_truth() -> None:
    steps = critical_batch(BATCHES, 500.0, 300.0) * np.exp(
        0.05 * np.random.default_rng(0).normal(size=len(BATCHES))
    )
    found = fit_law("critical_batch", {"b": BATCHES, "s": steps}, x="b", y="s")
    low, high = found.interval("critical_batch_size")
    assert low <= 300 <= high
    assert high / low < 2
    assert found.identified("critical_batch_size")


def test_curves_that_never_cross_are_left_out_or_refused() -> None:
    table = curves().query("steps < 3000")
    reached = steps_to_loss(table, 2.9)
    assert 2 <= len(reached) < len(BATCHES)
    assert reached["global_batch_size"].is_monotonic_increasing
    with pytest.raises(RunsError, match=r"0 of 9 batch sizes cross a loss of 0\.5"):
        steps_to_loss(table, 0.5)
    with pytest.raises(RunsError, match="no column 'steps'"):
        steps_to_loss(table.rename(columns={"steps": "updates"}), 2.9)


def test_steps_that_do_not_depend_on_the_batch_leave_it_at_an_edge() -> None:
    steps = 500 * np.exp(0.01 * np.random.default_rng(0).normal(size=len(BATCHES)))
    found = fit_law("critical_batch", {"b": BATCHES, "s": steps}, x="b", y="s")
    assert any(
        "critical batch size is at the edge of the range searched" in warning
        for warning in found.fit_warnings
    )


@pytest.mark.parametrize(
    ("law", "truth"),
    [
        (loss_at_equal_examples, (1.7503, 0.83845, 0.65307, 1345.3)),
        (loss_at_equal_steps, (2.0992, 0.34685, 0.70281, 158.58)),
        (loss_at_equal_steps, (2.8943, 1.935, 0.61699, 85.169)),
    ],
)
def test_slices_of_exact_losses_are_recovered(
    law: Callable[..., Any], truth: tuple[float, ...]
) -> None:
    batches = 2.0 ** np.arange(3, 14)
    found = fit_law(law.__name__, {"b": batches, "y": law(batches, *truth)}, x="b", y="y")
    assert list(found.parameters.values()) == pytest.approx(truth, rel=1e-6)
