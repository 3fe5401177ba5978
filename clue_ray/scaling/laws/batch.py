"""Laws of the batch size: the steps and the examples that a batch costs.

With a batch of B, S steps do as much as S / (1 + B* / B) steps with an infinite batch. B* is the
critical batch size. "Batch" means the users per step, all of them contrasted with each other.

B* is taken as one number. Where it grows as the loss falls (Kaplan et al. 2020, equation 5.3), fit
one loss at a time.
"""

from typing import Any

from clue_ray.scaling.laws.law import EXPONENT_GUESSES, Law, decay


def critical_batch(batch: Any, min_steps: Any, critical_batch_size: Any) -> Any:
    """Compute the steps to reach a loss, min_steps * (1 + critical_batch_size / batch).

    This is (S / Smin - 1)(E / Emin - 1) = 1 with E = B S examples, solved for S, where
    critical_batch_size = Emin / Smin (McCandlish et al. 2018, arXiv 1812.06162, equation 2.11).
    """
    return min_steps * (1 + critical_batch_size / batch)


def batch_loss(
    steps: Any,
    batch: Any,
    irreducible_loss: Any,
    coefficient: Any,
    exponent: Any,
    critical_batch_size: Any,
) -> Any:
    """Compute the loss after S steps of batch size B, E + a (S / (1 + B* / B))^-b.

    Source: Kaplan et al. 2020, arXiv 2001.08361, equation 5.4.
    """
    return irreducible_loss + coefficient * decay(
        steps / (1 + critical_batch_size / batch), exponent
    )


def loss_at_equal_steps(
    batch: Any, irreducible_loss: Any, coefficient: Any, exponent: Any, critical_batch_size: Any
) -> Any:
    """Compute E + a (1 + B* / B)^b: `batch_loss` for runs of equally many steps.

    A larger batch then sees more examples.
    """
    return irreducible_loss + coefficient * decay(1 + critical_batch_size / batch, -exponent)


def loss_at_equal_examples(
    batch: Any, irreducible_loss: Any, coefficient: Any, exponent: Any, critical_batch_size: Any
) -> Any:
    """Compute E + a (1 + B / B*)^b: `batch_loss` for runs that see equally many users.

    A larger batch then takes fewer steps. This is also the law at equal compute, as long as an
    example costs the same in every batch.
    """
    return irreducible_loss + coefficient * decay(1 + batch / critical_batch_size, -exponent)


def _critical_batch_at(steps: Any, min_steps: Any, critical_batch_size: Any) -> Any:
    return critical_batch_size / (steps / min_steps - 1)


def _equal_steps_at(
    loss: Any, irreducible_loss: Any, coefficient: Any, exponent: Any, critical_batch_size: Any
) -> Any:
    return critical_batch_size / (((loss - irreducible_loss) / coefficient) ** (1 / exponent) - 1)


def _equal_examples_at(
    loss: Any, irreducible_loss: Any, coefficient: Any, exponent: Any, critical_batch_size: Any
) -> Any:
    return critical_batch_size * (((loss - irreducible_loss) / coefficient) ** (1 / exponent) - 1)


_PARAMETERS = ("irreducible_loss", "coefficient", "exponent", "critical_batch_size")
_LINEAR = ("irreducible_loss", "coefficient")

BATCH_LAWS = (
    Law(
        name="critical_batch",
        formula="Smin (1 + B* / B)",
        parameters=("min_steps", "critical_batch_size"),
        num_predictors=1,
        function=critical_batch,
        template="{min_steps:.4g} (1 + {critical_batch_size:.4g} / B)",
        linear=("min_steps",),
        places={"critical_batch_size": 0},
        inverse=_critical_batch_at,
    ),
    Law(
        name="batch_loss",
        formula="E + a (S / (1 + B* / B))^-b",
        parameters=_PARAMETERS,
        num_predictors=2,
        function=batch_loss,
        terms=(("coefficient", "exponent"),),
        floor="irreducible_loss",
        template=(
            "{irreducible_loss:.4g} + {coefficient:.4g} "
            "(S / (1 + {critical_batch_size:.4g} / B))^-{exponent:.3g}"
        ),
        linear=_LINEAR,
        places={"critical_batch_size": 1},
    ),
    Law(
        name="loss_at_equal_steps",
        formula="E + a (1 + B* / B)^b",
        parameters=_PARAMETERS,
        num_predictors=1,
        function=loss_at_equal_steps,
        floor="irreducible_loss",
        template=(
            "{irreducible_loss:.4g} + {coefficient:.4g} "
            "(1 + {critical_batch_size:.4g} / B)^{exponent:.3g}"
        ),
        linear=_LINEAR,
        places={"critical_batch_size": 0},
        bounds={"exponent": (0.0, 5.0)},
        guesses={"exponent": EXPONENT_GUESSES},
        inverse=_equal_steps_at,
    ),
    Law(
        name="loss_at_equal_examples",
        formula="E + a (1 + B / B*)^b",
        parameters=_PARAMETERS,
        num_predictors=1,
        function=loss_at_equal_examples,
        floor="irreducible_loss",
        template=(
            "{irreducible_loss:.4g} + {coefficient:.4g} "
            "(1 + B / {critical_batch_size:.4g})^{exponent:.3g}"
        ),
        linear=_LINEAR,
        places={"critical_batch_size": 0},
        bounds={"exponent": (0.0, 5.0)},
        guesses={"exponent": EXPONENT_GUESSES},
        inverse=_equal_examples_at,
    ),
)
"""Laws of the batch size; `critical_batch` predicts steps, the others predict loss."""
