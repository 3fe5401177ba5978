"""Forecast the loss of a run that is larger than all that were trained.

One value and one interval for any level, from laws weighted by how they predicted the runs in turn
(`hypotheses.py`), calibrated by backtest (`combine.py`). The parameters of a law and their
intervals are another question: see `fit_law`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clue_ray.errors import FitError
from clue_ray.runs import chance_loss
from clue_ray.scaling.fitting.frontier import Y, settings_of
from clue_ray.scaling.fitting.table import Table, candidates_of, finished, is_number, select
from clue_ray.scaling.forecasting.checks import (
    chance_warnings,
    check_columns,
    check_learned,
    check_number,
    check_runs,
    reach_warnings,
)
from clue_ray.scaling.forecasting.combine import Distribution, Record
from clue_ray.scaling.forecasting.hypotheses import Posterior
from clue_ray.scaling.laws.law import Floats
from clue_ray.storage.files import read_json

BIN_DECADES = 0.08
"""At most one frontier run per bin is kept, so that a thousand cheap runs do not outweigh ten
expensive ones."""
SLACK = 1e-9
FURTHEST_SEARCH, BISECTIONS = 1e4, 30
"""Factor beyond the frontier up to which a value of y is searched, and halvings of the range."""
BACKTEST = ["cut", "at", "reach", "predicted", "measured", "low80", "high80", "low95", "high95"]
"""Of a backtest: x of the last run used and of the run forecast, their ratio, y, intervals."""
LEVELS = (0.5, 0.8, 0.95)
"""Levels of the intervals that are written down."""
PUBLIC_RECORD = Path(__file__).with_name("public_record.json")
"""How forecasts fared on public runs, written by `python -m benchmarks.forecasts --record`."""


@dataclass(frozen=True)
class Forecast:
    """The predicted y of a run at x = `at`.

    Attributes:
        value: median of the prediction.
        at: where, in the unit of x.
        reach: `at` over the largest x on the frontier.
        laws: weight of each kind of law, sum 1.
        warnings: reasons to trust it less, one sentence each.
    """

    value: float
    at: float
    reach: float
    laws: Mapping[str, float]
    warnings: tuple[str, ...]
    distribution: Distribution = field(repr=False, compare=False)
    "of ln y, without chance"
    earlier: Record = field(repr=False, compare=False)
    "the forecasts at earlier cuts of the same runs"
    chance: float | None = field(default=None, repr=False)

    @cached_property
    def backtest(self) -> pd.DataFrame:
        """One row per earlier forecast on these runs, with the columns `BACKTEST`."""
        return _backtest(self.earlier)

    def interval(self, level: float = 0.8) -> tuple[float, float]:
        """Return the interval that holds y with probability `level`; ends never exceed chance.

        Raises:
            FitError: `level` is not between 0 and 1.
        """
        if not (is_number(level) and 0 < level < 1):
            raise FitError(f"level is {level!r}; give a number between 0 and 1, such as 0.8.")
        ends = self.distribution.quantiles((1 - level) / 2, (1 + level) / 2)[:, 0]
        low, high = map(float, np.exp(ends))
        limit = np.inf if self.chance is None else self.chance
        return min(low, limit), min(high, limit)

    def sentence(self, x: str, y: str) -> str:
        """State the forecast, its 80 % interval, its reach, and how earlier ones fared."""
        low, high = self.interval(0.8)
        return (
            f"{y} at {x} {self.at:.3g}, {self.reach:.3g} times beyond the best run, is forecast to "
            f"be {self.value:.4g} (80 % interval: {low:.4g} to {high:.4g}). {self.record()}"
        )

    def record(self) -> str:
        """State how forecasts from fewer of these runs, and those of public runs, fared."""
        made = self.backtest
        own = "These runs allow no backtest."
        if len(made):
            error = (made["predicted"] / made["measured"] - 1).abs().median()
            inside = made["measured"].between(made["low80"], made["high80"]).sum()
            near, far = made["reach"].min(), made["reach"].max()
            span = f"{near:.2g}" if f"{near:.2g}" == f"{far:.2g}" else f"{near:.2g} to {far:.2g}"
            own = (
                f"From fewer of these runs, {inside} of {len(made)} "
                f"forecast{'s' * (len(made) != 1)} {span} times further were inside their 80 % "
                f"interval, with a median error of {error:.1%}."
            )
        return f"{own} {_public_record()}"

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as JSON-able values."""
        return {
            "at": self.at,
            "value": self.value,
            "intervals": {str(level): list(self.interval(level)) for level in LEVELS},
            "reach": self.reach,
            "laws": dict(self.laws),
            "backtest": self.backtest.to_dict("records"),
            "warnings": list(self.warnings),
        }


def forecast(table: Table, *, x: str, y: str, at: float, chance: float | None = None) -> Forecast:
    """Forecast y at x = `at` from the best runs of a table at each x.

    Args:
        table: finished runs; lower y is better.
        x: column of compute, or of any quantity that the loss falls with.
        y: column of the loss or error.
        at: value of x beyond the runs.
        chance: y of a model that learns nothing, where it is known: no prediction exceeds it. For
            the column `loss` of a table with `loss_candidates`, it is known.

    Raises:
        RunsError: a column is missing or holds something other than positive finite numbers.
        FitError: the runs do not support a forecast; the message says why.
    """
    check_number("at", at)
    return Forecaster.build(table, x=x, y=y, chance=chance).at(at)


@dataclass(frozen=True)
class Forecaster:
    """The frontier of a table with its backtest, from which a forecast at any place follows.

    Attributes:
        x, y: columns.
        spent, loss: x and y of each setting, in order of x, (settings,).
        points: indices of the frontier's settings, (n,).
        record: the forecasts at earlier cuts of the frontier.
        posterior: the hypotheses after all points.
        factor: by which intervals are stretched, see `Record.factor`.
        chance: y that no prediction exceeds.
    """

    x: str
    y: str
    spent: Floats
    loss: Floats
    points: np.ndarray
    record: Record
    posterior: Posterior
    factor: float
    chance: float | None

    @classmethod
    def build(cls, table: Table, *, x: str, y: str, chance: float | None = None) -> "Forecaster":
        """Read a table and backtest it; arguments and errors are those of `forecast`."""
        check_columns(x, y)
        if chance is not None:
            check_number("chance", chance)
        spent, loss = _settings(table, x, y)
        points = _frontier(spent, loss)
        check_runs(spent, loss, points, x, y)
        chance = _known_chance(table, y) if chance is None else chance
        check_learned(loss[points], y, chance)
        best = np.log10(spent[points]), np.log(loss[points])
        record, posterior = Record.build(*best, chance), Posterior.build(*best, chance)
        return cls(x, y, spent, loss, points, record, posterior, record.factor(), chance)

    @property
    def end(self) -> float:
        """Largest x on the frontier."""
        return float(self.spent[self.points[-1]])

    def at(self, at: float) -> Forecast:
        """Forecast y at a place beyond the frontier.

        Raises:
            FitError: it is not beyond it.
        """
        check_number("at", at)
        if at <= self.end:
            raise FitError(
                f"{self.x} is {at:.3g}, which is not beyond the best run at {self.end:.3g}; "
                f"forecast a larger {self.x}, or read a smaller one off the runs."
            )
        distribution = Distribution(self.posterior, np.log10([at]), self.factor)
        value = float(np.exp(distribution.quantiles(0.5)[0, 0]))
        return Forecast(
            value=value if self.chance is None else min(value, self.chance),
            at=float(at),
            reach=at / self.end,
            laws=self.posterior.laws,
            warnings=(
                *reach_warnings(self.spent, self.points, at, self.x),
                *chance_warnings(self.loss[self.points], self.y, self.chance),
            ),
            distribution=distribution,
            earlier=self.record,
            chance=self.chance,
        )

    def reach_of(self, y: float, level: float = 0.8) -> tuple[float, float, float]:
        """Return the x at which the forecast takes a value, and the ends of its interval.

        The interval holds the places whose own interval at `level` contains y. Its lower end is at
        least the frontier's end; its upper end is infinite where the interval never excludes y.

        Raises:
            FitError: y is not below the best run, or the forecast does not reach it within
                `FURTHEST_SEARCH` times the x of the frontier's end.
        """
        check_number("y", y)
        best = float(self.loss[self.points[-1]])
        if y >= best:
            raise FitError(f"{self.y} {y:g} is not below the best run's {best:.4g}; it is reached.")
        place = self._first(lambda made: made.value <= y)
        if place is None:
            limit = self.at(self.end * FURTHEST_SEARCH)
            raise FitError(
                f"The forecast does not reach {self.y} {y:g} within {FURTHEST_SEARCH:g} times the "
                f"largest {self.x} of the frontier, where it is {limit.value:.4g}; give a value "
                "between that and the best run's."
            )
        low = self._first(lambda made: made.interval(level)[0] <= y)
        high = self._first(lambda made: made.interval(level)[1] <= y)
        return place, self.end if low is None else low, np.inf if high is None else high

    def _first(self, reached: Callable[[Forecast], bool]) -> float | None:
        """Find the least place beyond the frontier at which a condition holds, by bisection."""
        low, high = np.log(self.end * (1 + SLACK)), np.log(self.end * FURTHEST_SEARCH)
        if not reached(self.at(float(np.exp(high)))):
            return None
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if reached(self.at(float(np.exp(middle)))) else (middle, high)
        return float(np.exp(high))


def _settings(table: Table, x: str, y: str) -> tuple[Floats, Floats]:
    """Return x and y of each setting, the means over its seeds, sorted by x.

    The best of three seeds of a cheap setting would otherwise compete with the only seed of an
    expensive one. Rows count as replicates only where nothing but the seed differs.
    """
    sample = select(table, (x,), y)
    frame = pd.DataFrame({"x": sample.x[0], "y": sample.y})
    means = frame.groupby(settings_of(finished(table), x)).mean().sort_values(["x", "y"])
    return means["x"].to_numpy(), means["y"].to_numpy()


def _known_chance(table: Table, y: str) -> float | None:
    """Return the loss at chance where the table says among how many candidates it was measured."""
    candidates = candidates_of(finished(table)) if y == Y else None
    return None if candidates is None else chance_loss(candidates)


def _frontier(spent: Floats, loss: Floats) -> np.ndarray:
    """Return the runs that no run with at most as much x beats, at most one per bin of log x."""
    before = np.minimum.accumulate(np.concatenate([[np.inf], loss[:-1]]))
    best = np.flatnonzero(loss < before)
    place = np.log10(spent[best])
    bins = np.floor((place - place[0]) / BIN_DECADES + SLACK)
    last_of_bin = np.append(bins[1:] != bins[:-1], True)  # losses fall, so the last is the lowest
    return best[last_of_bin]


def _backtest(record: Record) -> pd.DataFrame:
    """Tabulate the forecasts at every cut, with the intervals they would have had."""
    tables = [pd.DataFrame(columns=BACKTEST)]
    for cut, posterior, beyond in record.cuts:
        # Stretched by the errors that were known at the cut: not by those that are judged here.
        made = Distribution(posterior, record.x[beyond], record.factor(cut))
        from_x, to_x = 10.0 ** record.x[cut - 1], 10.0 ** record.x[beyond]
        known = np.full_like(to_x, from_x), to_x, to_x / from_x
        value, *ends = np.exp(made.quantiles(0.5, 0.1, 0.9, 0.025, 0.975))
        rows = np.array([*known, value, np.exp(record.y[beyond]), *ends])
        tables.append(pd.DataFrame(rows.T, columns=BACKTEST))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def _public_record() -> str:
    found = read_json(PUBLIC_RECORD)
    return (
        f"On {found['sets']} public sets of scaling runs, {found['tuned_sets']} of which were used "
        "to tune the method while the others were looked at three times, "
        f"{found['inside_80']:.0%} of {found['forecasts']} forecasts {found['nearest']:g} to "
        f"{found['furthest']:g} times further were inside their 80 % interval (mean over sets), "
        f"with a median error of {found['median_error']:.1%}."
    )
