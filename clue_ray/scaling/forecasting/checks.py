"""What supports a forecast: the reasons to refuse one, and the reasons to trust it less."""

import numpy as np

from clue_ray.errors import FitError
from clue_ray.runs import SCORES
from clue_ray.scaling.fitting.table import is_number
from clue_ray.scaling.forecasting.combine import FEWEST_POINTS
from clue_ray.scaling.laws.law import Floats
from clue_ray.spec.columns import short_label

FEWEST_RUNS = 5
ENOUGH_RUNS, ENOUGH_DECADES = 8, 1.0
"""Settings, and decades of x on the frontier, from which forecasts were checked on public runs."""
CHECKED_REACH = 10.5
"""Factor beyond the largest run up to which forecasts were checked on public runs."""
TURNED = 10.0
"""Factor in x between the best run and the largest one from which the loss no longer falls."""
HIGHER_IS_BETTER = ("recall_at_10", "mrr", "tokens_per_second")
"""Columns of a runs table, besides scores on downstream tasks, that a better run raises."""
ABOVE = 10**0.08
"""Factor beyond the frontier from which a worse setting is worth a warning."""


def check_runs(spent: Floats, loss: Floats, points: np.ndarray, x: str, y: str) -> None:
    """Raise FitError for runs that do not support a forecast.

    Raises:
        FitError: they are too few, or the loss does not fall along them.
    """
    if len(spent) < FEWEST_RUNS:
        have = f"Only {len(spent)} settings have" if len(spent) > 1 else "Only 1 setting has"
        raise FitError(
            f"{have if len(spent) else 'No setting has'} a finished run; "
            f"a forecast needs {FEWEST_RUNS} or more: add runs."
        )
    if len(points) == 1:
        raise FitError(
            f"{y} does not fall along {x}: no run is below the {loss[points[0]]:.4g} of the one "
            f"with the least {x}; forecast a loss, of which lower is better, or tune the larger "
            "runs."
        )
    if len(points) < FEWEST_POINTS:
        raise FitError(
            f"{y} falls only once along {x}, from {loss[points[0]]:.4g} to "
            f"{loss[points[-1]]:.4g}; a forecast needs {FEWEST_POINTS - 1} falls or more: add runs "
            f"at other values of {x}."
        )
    end, largest = float(spent[points[-1]]), float(spent[-1])
    if largest > TURNED * end:
        raise FitError(
            f"{y} does not fall beyond {x} {end:.3g}: no run up to {largest:.3g}, "
            f"{largest / end:.2g} times as much, is lower; tune or regularise the larger runs, or "
            "leave them out if they failed."
        )


def check_learned(best: Floats, y: str, chance: float | None) -> None:
    """Raise FitError where not even the best run is below chance."""
    if chance is not None and best[-1] >= chance:
        raise FitError(
            f"The lowest {y}, {best[-1]:.4g}, is not below chance, {chance:.4g}: these runs "
            "learned nothing that could be extrapolated; train longer, or correct chance."
        )


def check_columns(x: str, y: str) -> None:
    """Raise FitError for what is no column, and for a score, of which the lowest y is the worst."""
    for name, column in {"x": x, "y": y}.items():
        if not isinstance(column, str):
            raise FitError(f"{name} is {column!r}; a forecast takes the name of one column.")
    if y in HIGHER_IS_BETTER or y.startswith(SCORES):
        raise FitError(
            f"{y} is a score, of which higher is better; forecast the loss, or a column of errors, "
            "such as 1 minus the score."
        )


def reach_warnings(spent: Floats, points: np.ndarray, at: float, x: str) -> list[str]:
    """List the reasons to trust a forecast less."""
    end, name, found = float(spent[points[-1]]), short_label(x), []
    decades = float(np.log10(end / spent[points[0]]))
    if len(spent) < ENOUGH_RUNS:
        found.append(
            f"The forecast rests on {len(spent)} settings; forecasts were checked on studies of "
            f"{ENOUGH_RUNS} runs or more."
        )
    if decades < ENOUGH_DECADES:
        found.append(
            f"The best runs span {decades:.1f} decades of {name}; forecasts were checked on "
            f"studies of {ENOUGH_DECADES:g} or more."
        )
    if at > CHECKED_REACH * end:
        found.append(
            f"The forecast reaches {at / end:.3g} times beyond the best run; forecasts were "
            f"checked up to {CHECKED_REACH:g} times."
        )
    above = int((spent > ABOVE * end).sum())
    if above:
        found.append(
            f"Settings with more {name} than {end:.3g} have a higher loss than the run there "
            f"({above} of {len(spent)}); the forecast assumes that larger runs are tuned as well "
            "as the best ones."
        )
    return found


def chance_warnings(best: Floats, y: str, chance: float | None) -> list[str]:
    """Warn where runs of the frontier are worse than a model that learns nothing."""
    above = 0 if chance is None else int((best > chance).sum())
    if not above:
        return []
    return [
        f"Settings on the frontier have a {short_label(y)} above chance, {chance:.4g} ({above} of "
        f"{len(best)}), so no law with a ceiling there was tried."
    ]


def check_number(name: str, value: float) -> None:
    """Raise FitError for what is not a positive finite number."""
    if not (is_number(value) and np.isfinite(value) and value > 0):
        raise FitError(f"{name} is {value!r}; give a positive finite number.")
