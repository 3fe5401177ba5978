"""Laws of several predictors: encoder size, data, sequence length and batch together, and repeated
data.

Takes nothing; gives `JOINT_LAWS`, and `_joint_power_law` for any columns. The one idea: what the
axes leave to be learnt adds up, so each axis has a term of its own that vanishes as it grows.


Laws of the batch size: what a batch costs in steps and in examples.

Takes nothing; gives `BATCH_LAWS`. The one idea: with a batch of B, S steps do as much as S / (1 +
B* / B) steps with an endless batch; B* is the critical batch size.

Batch means users a step whose losses are contrasted with each other. B* is taken as one number;
where it grows as the loss falls (Kaplan et al. 2020, equation 5.3), fit one loss at a time.


The laws of one predictor, and every law by name.

Takes nothing; gives `LAWS`. The one idea: see `law.py`; laws of several predictors live in
`joint.py`, laws of the batch size in `batch.py`.
"""

import math
from typing import Any

import numpy as np

from clue_ray.errors import FitError, nearest
from clue_ray.scaling.laws.law import EXPONENTS, Law, decay


def _parametric_loss(n: Any, d: Any, E: Any, A: Any, B: Any, alpha: Any, beta: Any) -> Any:
    """Give E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, arXiv 2203.15556, approach 3)."""
    return E + A * decay(n, alpha) + B * decay(d, beta)


def _joint_power_law(columns: tuple[str, ...]) -> Law:
    """Build the law irreducible_loss + sum over columns c of coefficient_c * c ** -exponent_c.

    Hoffmann et al. 2022 (approach 3) with a term for any axis: encoder size, data, sequence length,
    batch size. Its parameters carry the columns' names, so any subset in any order can be fitted
    and read.
    """
    count = len(columns)
    terms = tuple((f"coefficient_{column}", f"exponent_{column}") for column in columns)

    def sum_of_powers(*arguments: Any) -> Any:
        x, floor, rest = arguments[:count], arguments[count], arguments[count + 1 :]
        return floor + sum(
            a * decay(column, b) for column, a, b in zip(x, rest[::2], rest[1::2], strict=True)
        )

    return Law(
        name="joint_power_law",
        formula="E + " + " + ".join(f"a{i} {column}^-b{i}" for i, column in enumerate(columns, 1)),
        parameters=("irreducible_loss", *(name for term in terms for name in term)),
        num_predictors=count,
        function=sum_of_powers,
        terms=terms,
        floor="irreducible_loss",
        linear=("irreducible_loss", *(coefficient for coefficient, _ in terms)),
        widen=_joint_power_law,
    )


def data_constrained_loss(
    n: Any,
    unique: Any,
    seen: Any,
    E: Any,
    A: Any,
    B: Any,
    alpha: Any,
    beta: Any,
    useful_repeats: Any,
) -> Any:
    """Give E + A N^-alpha + B D'^-beta with D' = U + U R* (1 - exp(-R / R*)): data seen R times
    more is worth less.

    Muennighoff et al. 2023 (arXiv 2305.16264, equation 5), N taken as it is: U is `unique` data, R
    = seen / unique - 1 its repeats (0 where not all is seen), R* = `useful_repeats` the number
    after which repeating is worth little.
    """
    once = np.minimum(unique, seen)
    repeats = np.maximum(seen / unique - 1, 0)
    worth = once * (1 + useful_repeats * -np.expm1(-repeats / useful_repeats))
    return E + A * decay(n, alpha) + B * decay(worth, beta)


_CHINCHILLA = ("E", "A", "B", "alpha", "beta")


JOINT_LAWS = (
    Law(
        name="parametric_loss",
        formula="E + A N^-alpha + B D^-beta",
        parameters=_CHINCHILLA,
        num_predictors=2,
        function=_parametric_loss,
        terms=(("A", "alpha"), ("B", "beta")),
        floor="E",
        template="{E:.4g} + {A:.4g} N^-{alpha:.3g} + {B:.4g} D^-{beta:.3g}",
        linear=("E", "A", "B"),
    ),
    _joint_power_law(("x",)),
    Law(
        name="data_constrained_loss",
        formula="E + A N^-alpha + B (U (1 + R* (1 - exp(-R / R*))))^-beta",
        parameters=(*_CHINCHILLA, "useful_repeats"),
        num_predictors=3,
        function=data_constrained_loss,
        terms=(("A", "alpha"), ("B", "beta")),
        floor="E",
        template="{E:.4g} + {A:.4g} N^-{alpha:.3g} + {B:.4g} D'^-{beta:.3g}, R* = "
        "{useful_repeats:.3g}",
        linear=("E", "A", "B"),
        units=(0, 1, 1),
        bounds={"useful_repeats": (0.01, 1000.0)},
        guesses={"useful_repeats": (0.3, 1.0, 3.0, 10.0, 30.0)},
    ),
)
"""Laws of two predictors and more; `_joint_power_law` is made anew for the columns that it is fitted
to."""


def critical_batch(batch: Any, min_steps: Any, critical_batch_size: Any) -> Any:
    """Give the steps to a loss, min_steps * (1 + critical_batch_size / batch).

    McCandlish et al. 2018 (arXiv 1812.06162, equation 2.11), (S / Smin - 1)(E / Emin - 1) = 1 with
    E = B S examples, solved for S; critical_batch_size = Emin / Smin.
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
    """Give E + a (S / (1 + B* / B))^-b, the loss after S steps of B (Kaplan et al. 2020, arXiv
    2001.08361, eq. 5.4).
    """
    return irreducible_loss + coefficient * decay(
        steps / (1 + critical_batch_size / batch), exponent
    )


def loss_at_equal_steps(
    batch: Any, irreducible_loss: Any, coefficient: Any, exponent: Any, critical_batch_size: Any
) -> Any:
    """Give E + a (1 + B* / B)^b: `batch_loss` where every run takes as many steps; a larger batch
    sees more.
    """
    return irreducible_loss + coefficient * decay(1 + critical_batch_size / batch, -exponent)


def loss_at_equal_examples(
    batch: Any, irreducible_loss: Any, coefficient: Any, exponent: Any, critical_batch_size: Any
) -> Any:
    """Give E + a (1 + B / B*)^b: `batch_loss` where every run sees as many users; a larger batch
    takes fewer steps.

    This is also the law at equal compute, as long as an example costs the same in every batch.
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


_BATCH_PARAMETERS = ("irreducible_loss", "coefficient", "exponent", "critical_batch_size")
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
        parameters=_BATCH_PARAMETERS,
        num_predictors=2,
        function=batch_loss,
        terms=(("coefficient", "exponent"),),
        floor="irreducible_loss",
        template="{irreducible_loss:.4g} + {coefficient:.4g} (S / (1 + {critical_batch_size:.4g} / "
        "B))^-{exponent:.3g}",
        linear=_LINEAR,
        places={"critical_batch_size": 1},
    ),
    Law(
        name="loss_at_equal_steps",
        formula="E + a (1 + B* / B)^b",
        parameters=_BATCH_PARAMETERS,
        num_predictors=1,
        function=loss_at_equal_steps,
        floor="irreducible_loss",
        template="{irreducible_loss:.4g} + {coefficient:.4g} (1 + {critical_batch_size:.4g} / "
        "B)^{exponent:.3g}",
        linear=_LINEAR,
        places={"critical_batch_size": 0},
        bounds={"exponent": (0.0, 5.0)},
        guesses={"exponent": EXPONENTS},
        inverse=_equal_steps_at,
    ),
    Law(
        name="loss_at_equal_examples",
        formula="E + a (1 + B / B*)^b",
        parameters=_BATCH_PARAMETERS,
        num_predictors=1,
        function=loss_at_equal_examples,
        floor="irreducible_loss",
        template="{irreducible_loss:.4g} + {coefficient:.4g} (1 + B / "
        "{critical_batch_size:.4g})^{exponent:.3g}",
        linear=_LINEAR,
        places={"critical_batch_size": 0},
        bounds={"exponent": (0.0, 5.0)},
        guesses={"exponent": EXPONENTS},
        inverse=_equal_examples_at,
    ),
)
"""Laws of the batch size; `critical_batch` predicts steps, the others loss."""


def _power_law(x: Any, coefficient: Any, exponent: Any) -> Any:
    """Give coefficient * x ** -exponent (Kaplan et al. 2020, arXiv 2001.08361)."""
    return coefficient * decay(x, exponent)


def _power_law_plus_constant(x: Any, irreducible_loss: Any, coefficient: Any, exponent: Any) -> Any:
    """Give irreducible_loss + coefficient * x ** -exponent (Henighan et al. 2020, arXiv
    2010.14701).
    """
    return irreducible_loss + coefficient * decay(x, exponent)


def _log_linear(x: Any, intercept: Any, slope: Any) -> Any:
    """Give intercept - slope * log10 x; slope is nats a decade (the shape in CLUE, arXiv
    2111.11294).
    """
    return intercept - slope * np.log10(x)


def _bounded_power_law(
    x: Any, irreducible_loss: Any, coefficient: Any, exponent: Any, *, ceiling: float
) -> Any:
    """Give E + (ceiling - E) u / (1 + u), u = coefficient * x ** -exponent: from a guess to a floor
    E.

    M4 of Alabdulmohsin et al. 2022 (arXiv 2209.06640), (L - E) / (ceiling - L)^a = u, at a = 1,
    where it has
    a closed form: a power law off the ceiling at small x and onto the floor at large x.
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
    """Give E + a x^-b (1 + (x / break_at)^(1/s))^(-(late_exponent - b) s): slope b before the
    break, another after.

    One break of Caballero et al. 2022 (arXiv 2210.14891), c1 written as the change of exponent.
    `smoothness` s is the share of an e-fold of x that the bend takes. Falls throughout, but has no
    inverse in closed form.
    """
    beyond = np.log(x / break_at) / smoothness
    ahead = beyond.real > 0
    # log(1 + exp(beyond)) without overflow
    bend = np.where(ahead, beyond, 0) + np.log1p(np.exp(np.where(ahead, -beyond, beyond)))
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
_FLOORED = ("irreducible_loss", "coefficient", "exponent")


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
        parameters=_FLOORED,
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
        inverse=_log_linear_at,
    ),
    Law(
        name="bounded_power_law",
        formula="E + (ln K - E) / (1 + x^b / a)",
        parameters=_FLOORED,
        num_predictors=1,
        function=_bounded_power_law,
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
        function=_broken_power_law,
        terms=_TERM,
        floor="irreducible_loss",
        template="{irreducible_loss:.4g} + {coefficient:.4g} x^-{exponent:.3g} (1 + (x / "
        "{break_at:.3g})"
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
    """Look a law up by name, or pass a Law through; raise FitError naming the nearest when there is
    none.
    """
    if isinstance(law, Law):
        return law
    if law not in LAWS:
        raise FitError(f"There is no law {law!r}; {nearest(law, list(LAWS))}")
    return LAWS[law]
