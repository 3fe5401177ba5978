"""The laws of one predictor, and every law by name.

Takes nothing; gives `LAWS`. The one idea: see `law.py`; laws of several predictors live in `joint.py`, laws of the
batch size in `batch.py`.
"""

import math
from typing import Any

import numpy as np

from clue_ray.errors import FitError, nearest
from clue_ray.scaling.batch import BATCH_LAWS
from clue_ray.scaling.joint import JOINT_LAWS
from clue_ray.scaling.law import EXPONENTS, Floats, Law, decay

__all__ = ["LAWS", "Floats", "Law", "find_law"]


def power_law(x: Any, coefficient: Any, exponent: Any) -> Any:
    """Give coefficient * x ** -exponent (Kaplan et al. 2020, arXiv 2001.08361)."""
    return coefficient * decay(x, exponent)


def power_law_plus_constant(x: Any, irreducible_loss: Any, coefficient: Any, exponent: Any) -> Any:
    """Give irreducible_loss + coefficient * x ** -exponent (Henighan et al. 2020, arXiv 2010.14701)."""
    return irreducible_loss + coefficient * decay(x, exponent)


def log_linear(x: Any, intercept: Any, slope: Any) -> Any:
    """Give intercept - slope * log10 x; slope is nats a decade (the shape in CLUE, arXiv 2111.11294)."""
    return intercept - slope * np.log10(x)


def bounded_power_law(x: Any, irreducible_loss: Any, coefficient: Any, exponent: Any, *, ceiling: float) -> Any:
    """Give E + (ceiling - E) u / (1 + u), u = coefficient * x ** -exponent: from a guess to a floor E.

    M4 of Alabdulmohsin et al. 2022 (arXiv 2209.06640), (L - E) / (ceiling - L)^a = u, at a = 1, where it has
    a closed form: a power law off the ceiling at small x and onto the floor at large x.
    """
    above = coefficient * decay(x, exponent)
    return irreducible_loss + (ceiling - irreducible_loss) * above / (1 + above)


def broken_power_law(
    x: Any, irreducible_loss: Any, coefficient: Any, exponent: Any, late_exponent: Any, break_at: Any, smoothness: Any
) -> Any:
    """Give E + a x^-b (1 + (x / break_at)^(1/s))^(-(late_exponent - b) s): slope b before the break, another after.

    One break of Caballero et al. 2022 (arXiv 2210.14891), c1 written as the change of exponent. `smoothness` s is the
    share of an e-fold of x that the bend takes. Falls throughout, but has no inverse in closed form.
    """
    beyond = np.log(x / break_at) / smoothness
    ahead = beyond.real > 0
    # log(1 + exp(beyond)) without overflow
    bend = np.where(ahead, beyond, 0) + np.log1p(np.exp(np.where(ahead, -beyond, beyond)))
    return irreducible_loss + coefficient * decay(x, exponent) * np.exp((exponent - late_exponent) * smoothness * bend)


def _power_law_at(loss: Any, coefficient: Any, exponent: Any) -> Any:
    return (loss / coefficient) ** (-1 / exponent)


def _power_law_plus_constant_at(loss: Any, irreducible_loss: Any, coefficient: Any, exponent: Any) -> Any:
    return ((loss - irreducible_loss) / coefficient) ** (-1 / exponent)


def _log_linear_at(loss: Any, intercept: Any, slope: Any) -> Any:
    return 10 ** ((intercept - loss) / slope)


def _bounded_power_law_at(loss: Any, irreducible_loss: Any, coefficient: Any, exponent: Any, *, ceiling: float) -> Any:
    odds = (loss - irreducible_loss) / (ceiling - loss)
    return (odds / coefficient) ** (-1 / exponent)


_TERM = (("coefficient", "exponent"),)
_FLOORED = ("irreducible_loss", "coefficient", "exponent")

_LAWS = (
    Law(
        name="power_law",
        formula="a x^-b",
        parameters=("coefficient", "exponent"),
        num_predictors=1,
        function=power_law,
        terms=_TERM,
        template="{coefficient:.4g} x^-{exponent:.3g}",
        linear=("coefficient",),
        inverse=_power_law_at,
    ),
    Law(
        name="power_law_plus_constant",
        formula="E + a x^-b",
        parameters=_FLOORED,
        num_predictors=1,
        function=power_law_plus_constant,
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
        function=log_linear,
        template="{intercept:.4g} - {slope:.3g} log10 x",
        title="log-linear law",
        inverse=_log_linear_at,
    ),
    Law(
        name="bounded_power_law",
        formula="E + (ln K - E) / (1 + x^b / a)",
        parameters=_FLOORED,
        num_predictors=1,
        function=bounded_power_law,
        terms=_TERM,
        floor="irreducible_loss",
        ceiling=math.nan,
        template="{irreducible_loss:.4g} + ({ceiling:.4g} - {irreducible_loss:.4g})"
        " / (1 + x^{exponent:.3g} / {coefficient:.4g})",
        inverse=_bounded_power_law_at,
    ),
    Law(
        name="broken_power_law",
        formula="E + a x^-b (1 + (x / c)^(1/s))^((b - b2) s)",
        parameters=(*_FLOORED, "late_exponent", "break_at", "smoothness"),
        num_predictors=1,
        function=broken_power_law,
        terms=_TERM,
        floor="irreducible_loss",
        template="{irreducible_loss:.4g} + {coefficient:.4g} x^-{exponent:.3g} (1 + (x / {break_at:.3g})"
        "^(1/{smoothness:.2g}))^(({exponent:.3g} - {late_exponent:.3g}) {smoothness:.2g})",
        linear=("irreducible_loss", "coefficient"),
        places={"break_at": 0},
        bounds={"late_exponent": (0.0, 5.0), "smoothness": (0.02, 3.0)},
        guesses={"late_exponent": EXPONENTS, "smoothness": (0.1, 0.5)},
    ),
    *JOINT_LAWS,
    *BATCH_LAWS,
)
LAWS: dict[str, Law] = {law.name: law for law in _LAWS}
"""Every law that can be named."""


def find_law(law: str | Law) -> Law:
    """Look a law up by name, or pass a Law through; raise FitError naming the nearest when there is none."""
    if isinstance(law, Law):
        return law
    if law not in LAWS:
        raise FitError(f"There is no law {law!r}; {nearest(law, list(LAWS))}")
    return LAWS[law]
