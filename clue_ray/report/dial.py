"""The dial of a page: at each training compute the forecast, its interval, a recipe and a price.

Everything is computed here, at a few places between the runs and ten times the largest; the page
interpolates between them and needs no network. In Markdown the same places are a table.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from clue_ray.errors import ClueRayError
from clue_ray.report import numbers, tables
from clue_ray.report.figures.headline import EXTRAPOLATION, Band
from clue_ray.report.sections.downstream import main_scores, score_forecaster, task_of
from clue_ray.report.sections.next_step import is_bounded
from clue_ray.report.tables import Table, text, written
from clue_ray.scaling.answering.analysis import Analysis
from clue_ray.scaling.deciding.allocate import allocate
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.forecasting.forecast import Forecast
from clue_ray.scaling.laws.law import Floats
from clue_ray.spec.columns import in_unit, label, noun

SHOWN = (1.02, 2.0, 5.0, 10.0)
"""Places of the table, in multiples of the largest compute on the frontier."""
FEWEST_PLACES = 2
LEAST = {"MRR": 0.0, "AUC": 0.0}
"""Lowest value of a measure; R2 has none. The highest is 1."""


@dataclass(frozen=True)
class ScoreCurve:
    """The forecast of a downstream score, as its distance from 1, which falls as a loss does.

    Attributes:
        name: task and measure.
        compute, value, low, high: the forecast with its 80% interval, (places,).
        best: lowest measured distance.
        least: lowest score that the measure can have; None without one.
    """

    name: str
    compute: list[float]
    value: list[float]
    low: list[float]
    high: list[float]
    best: float
    least: float | None


@dataclass(frozen=True)
class Dial:
    """What the dial of a page shows, as JSON-able values.

    Attributes:
        compute, value, low, high: the forecast with its 80% interval, (places,).
        largest: compute of the largest run, where the marked part of the figure begins.
        reach: factor beyond it at which that part ends.
        best: lowest measured loss; a target is below it.
        sizes, tokens: the best split at each place, (places,); empty where it is not identified.
        settings: the best run in words, whose settings are scaled where no split is identified.
        flop_per_second: measured speed of the largest runs, per device; None where unknown.
        device: what they ran on.
        scores: the forecast of each downstream score.
        names: what compute, loss and their units are called.
    """

    compute: list[float]
    value: list[float]
    low: list[float]
    high: list[float]
    largest: float
    reach: float
    best: float
    sizes: list[float]
    tokens: list[float]
    settings: str
    flop_per_second: float | None
    device: str
    scores: list[ScoreCurve]
    names: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the values that the page reads."""
        return asdict(self)

    @property
    def is_priced(self) -> bool:
        """Whether compute is in FLOP, so that it can be turned into hours and money."""
        return self.names["compute_unit"] == " FLOP"

    @property
    def table(self) -> Table:
        """The same at a few places, for Markdown and for pages without scripts."""
        heads = (label("train_flops"), f"forecast {noun('loss')} [80%]", *self._recipe_heads)
        places = np.array(self.compute)
        far = (np.abs(np.log(places / (self.compute[0] * factor))) for factor in SHOWN)
        chosen = sorted({int(each.argmin()) for each in far})
        return Table(heads, tuple(self._row(place) for place in chosen))

    @property
    def _recipe_heads(self) -> tuple[str, ...]:
        return ("parameters", "tokens") if self.sizes else ()

    def _row(self, place: int) -> tuple[Any, ...]:
        made = numbers.interval(self.value[place], self.low[place], self.high[place])
        recipe = (self.sizes[place], self.tokens[place]) if self.sizes else ()
        return (
            text(numbers.flop(self.compute[place])), written(made),
            *(written(numbers.compact(each)) for each in recipe),
        )  # fmt: skip


def build_dial(analysis: Analysis, band: Band | None, table: pd.DataFrame) -> Dial | None:
    """Build the dial of a page; None where nothing is forecast.

    Args:
        table: the runs, with scores and times.
    """
    if band is None or len(band.value) < FEWEST_PLACES or not np.isfinite(band.high).all():
        return None
    points = analysis.points
    sizes, tokens = _splits(points, band)
    best = points.sort_values(["loss", "train_flops"], kind="stable").iloc[0]
    speed, device = _speed(points)
    return Dial(
        compute=band.train_flops.tolist(),
        value=band.value.tolist(),
        low=band.low.tolist(),
        high=band.high.tolist(),
        largest=float(points["train_flops"].max()),
        reach=EXTRAPOLATION,
        best=float(points["loss"].min()),
        sizes=sizes,
        tokens=tokens,
        settings=tables.describe(best),
        flop_per_second=speed,
        device=device,
        scores=_scores(table, band.train_flops),
        names={
            "compute": noun("train_flops"),
            "compute_unit": in_unit("train_flops"),
            "loss": noun("loss"),
            "loss_unit": in_unit("loss"),
        },
    )


def _splits(points: pd.DataFrame, band: Band) -> tuple[list[float], list[float]]:
    """Return the best size and tokens at each place; empty where the runs do not identify them.

    Under a law in size and tokens both optima are powers of the compute, so two places give all.
    """
    needed = ["non_embedding_params", "train_tokens"]
    if not set(needed) <= set(points) or points[needed].isna().any(axis=None):
        return [], []
    ends = [float(band.train_flops[0]), float(band.train_flops[-1])]
    try:
        fit = fit_law("parametric_loss", points, x=needed, y="loss")
        first, last = (allocate(fit, flops) for flops in ends)
    except ClueRayError:
        return [], []
    if not is_bounded(last, points):
        return [], []
    share = np.log(band.train_flops / ends[0]) / np.log(ends[1] / ends[0])
    found = []
    for name in needed:
        start, end = (float(getattr(recipe, name).value) for recipe in (first, last))
        found.append((start * (end / start) ** share).tolist())
    return found[0], found[1]


def _speed(points: pd.DataFrame) -> tuple[float | None, str]:
    """Return the median speed of the larger half of the runs, per worker, and their device.

    The runs of other tools do not say on how many devices they ran, so their speed is unknown.
    """
    if not {"wall_seconds", "num_workers"} <= set(points):
        return None, ""
    timed = points[points["wall_seconds"].notna() & (points["wall_seconds"] > 0)]
    larger = timed[timed["train_flops"] >= timed["train_flops"].median()]
    if larger.empty or larger["num_workers"].isna().any():
        return None, ""
    speed = larger["train_flops"] / larger["wall_seconds"] / larger["num_workers"]
    devices = larger["device"].dropna().unique().tolist() if "device" in larger else []
    return float(speed.median()), ", ".join(map(str, devices))


def _scores(done: pd.DataFrame, places: Floats) -> list[ScoreCurve]:
    """Forecast the main measure of each task, where its runs support it."""
    found = []
    for column in main_scores(done):
        runs = done.dropna(subset=[column])
        try:
            forecaster = score_forecaster(column, runs)
        except ClueRayError:
            continue  # the section on downstream tasks states the reason
        beyond = places[places > forecaster.end]
        if len(beyond) >= FEWEST_PLACES:
            found.append(_score_curve(column, runs, [forecaster.at(place) for place in beyond]))
    # Without infinite ends, which JSON cannot hold.
    return [curve for curve in found if np.isfinite([curve.low, curve.high]).all()]


def _score_curve(column: str, runs: pd.DataFrame, made: list[Forecast]) -> ScoreCurve:
    task, measure = task_of(column)
    low, high = zip(*(each.interval(0.8) for each in made), strict=True)
    return ScoreCurve(
        name=f"{task} {measure}",
        compute=[each.at for each in made],
        value=[each.value for each in made],
        low=list(low),
        high=list(high),
        best=1 - float(runs[column].max()),
        least=LEAST.get(measure),
    )
