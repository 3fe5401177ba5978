"""Every law by name, and the laws of one predictor.

Laws of several predictors are in `joint.py`, laws of the batch size in `batch.py`.
"""

import math
from typing import Any

import numpy as np

from clue_ray.errors import FitError, nearest
from clue_ray.scaling.laws.batch import BATCH_LAWS
from clue_ray.scaling.laws.joint import JOINT_LAWS
from clue_ray.scaling.laws.law import EXPONENT_GUESSES, Law, decay


def _power_law(x: Any, coefficient: Any, exponent: Any) -> Any:
    """Compute coefficient * x ** -exponent (Kaplan et al. 2020, arXiv 2001.08361)."""
    return coefficient * decay(x, exponent)


def _power_law_plus_constant(x: Any, irreducible_loss: Any, coefficient: Any, exponent: Any) -> Any:
    """Compute irreducible_loss + coefficient * x ** -exponent.

    Source: Henighan et al. 2020, arXiv 2010.14701.
    """
    return irreducible_loss + coefficient * decay(x, exponent)


def _log_linear(x: Any, intercept: Any, slope: Any) -> Any:
    """Compute intercept - slope * log10 x, with the slope in nats per decade.

    Source: the shape in CLUE, arXiv 2111.11294.
    """
    return intercept - slope * np.log10(x)


def _bounded_power_law(
    x: Any, irreducible_loss: Any, coefficient: Any, exponent: Any, *, ceiling: float
) -> Any:
    """Compute E + (ceiling - E) u / (1 + u), with u = coefficient * x ** -exponent.

    The loss falls from chance level, the ceiling, to a floor E. It leaves the ceiling at small x
    and approaches the floor at large x as a power law. This is M4 of Alabdulmohsin et al. 2022
    (arXiv 2209.06640), (L - E) / (ceiling - L)^a = u, at a = 1, where it has a closed form.
    """
    above = coefficient * decay(x, exponent)
    return irreducible_loss + (ceiling - irreducible_loss) * above / (1 + above)


def _broken_power_law(
    x: Any,
    irreducible_loss: Any,
    coefficient: Any,
    exponent: Any,
    late_exponent: Any,
    break_at: Any,
    smoothness: Any,
) -> Any:
    """Compute E + a x^-b (1 + (x / c)^(1/s))^((b - b2) s): exponent b before c, b2 after it.

    This is one break of Caballero et al. 2022 (arXiv 2210.14891), their c1 being the change of
    exponent. `smoothness` s is the share of an e-fold of x that the bend takes. The law falls
    throughout, but has no inverse in closed form.
    """
    log_ratio = np.log(x / break_at) / smoothness
    after = log_ratio.real > 0
    # log(1 + exp(log_ratio)); exp of a positive number is avoided, as it would overflow.
    bend = np.where(after, log_ratio, 0) + np.log1p(np.exp(np.where(after, -log_ratio, log_ratio)))
    return irreducible_loss + coefficient * decay(x, exponent) * np.exp(
        (exponent - late_exponent) * smoothness * bend
    )


def _power_law_at(loss: Any, coefficient: Any, exponent: Any) -> Any:
    return (loss / coefficient) ** (-1 / exponent)


def _power_law_plus_constant_at(
    loss: Any, irreducible_loss: Any, coefficient: Any, exponent: Any
) -> Any:
    return ((loss - irreducible_loss) / coefficient) ** (-1 / exponent)


def _log_linear_at(loss: Any, intercept: Any, slope: Any) -> Any:
    return 10 ** ((intercept - loss) / slope)


def _bounded_power_law_at(
    loss: Any, irreducible_loss: Any, coefficient: Any, exponent: Any, *, ceiling: float
) -> Any:
    odds = (loss - irreducible_loss) / (ceiling - loss)
    return (odds / coefficient) ** (-1 / exponent)


_TERM = (("coefficient", "exponent"),)
_WITH_FLOOR = ("irreducible_loss", "coefficient", "exponent")

_LAWS = (
    Law(
        name="power_law",
        formula="a x^-b",
        parameters=("coefficient", "exponent"),
        num_predictors=1,
        function=_power_law,
        terms=_TERM,
        template="{coefficient:.4g} x^-{exponent:.3g}",
        linear=("coefficient",),
        inverse=_power_law_at,
    ),
    Law(
        name="power_law_plus_constant",
        formula="E + a x^-b",
        parameters=_WITH_FLOOR,
        num_predictors=1,
        function=_power_law_plus_constant,
        terms=_TERM,
        floor="irreducible_loss",
        template="{irreducible_loss:.4g} + {coefficient:.4g} x^-{exponent:.3g}",
        linear=("irreducible_loss", "coefficient"),
        inverse=_power_law_plus_constant_at,
    ),
    Law(
        name="log_linear",
        formula="a - b log10 x",
        parameters=("intercept", "slope"),
        num_predictors=1,
        function=_log_linear,
        template="{intercept:.4g} - {slope:.3g} log10 x",
        title="log-linear law",
        in_loss_units=("intercept", "slope"),
        inverse=_log_linear_at,
    ),
    Law(
        name="bounded_power_law",
        formula="E + (ln K - E) / (1 + x^b / a)",
        parameters=_WITH_FLOOR,
        num_predictors=1,
        function=_bounded_power_law,
        terms=_TERM,
        floor="irreducible_loss",
        ceiling=math.nan,
        template=(
            "{irreducible_loss:.4g} + ({ceiling:.4g} - {irreducible_loss:.4g})"
            " / (1 + x^{exponent:.3g} / {coefficient:.4g})"
        ),
        inverse=_bounded_power_law_at,
    ),
    Law(
        name="broken_power_law",
        formula="E + a x^-b (1 + (x / c)^(1/s))^((b - b2) s)",
        parameters=(*_WITH_FLOOR, "late_exponent", "break_at", "smoothness"),
        num_predictors=1,
        function=_broken_power_law,
        terms=_TERM,
        floor="irreducible_loss",
        template=(
            "{irreducible_loss:.4g} + {coefficient:.4g} x^-{exponent:.3g} "
            "(1 + (x / {break_at:.3g})^(1/{smoothness:.2g}))"
            "^(({exponent:.3g} - {late_exponent:.3g}) {smoothness:.2g})"
        ),
        linear=("irreducible_loss", "coefficient"),
        places={"break_at": 0},
        bounds={"late_exponent": (0.0, 5.0), "smoothness": (0.02, 3.0)},
        guesses={"late_exponent": EXPONENT_GUESSES, "smoothness": (0.1, 0.5)},
    ),
    *JOINT_LAWS,
    *BATCH_LAWS,
)
LAWS: dict[str, Law] = {law.name: law for law in _LAWS}
"""Every law that can be named."""


def find_law(law: str | Law) -> Law:
    """Look up a law by name, or return a Law as it is.

    Raises:
        FitError: there is no such law, or `law` is neither a name nor a Law.
    """
    if isinstance(law, Law):
        return law
    if not isinstance(law, str):
        raise FitError(
            f"A law is a name, such as 'power_law', or a Law, not a {type(law).__name__}; "
            f"build a Law from a function."
        )
    if law not in LAWS:
        raise FitError(f"There is no law {law!r}; {nearest(law, list(LAWS))}")
    return LAWS[law]
