"""Forecast beyond the runs of a study: the loss at a compute, or the compute for a loss."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clue_ray.errors import FitError, RunsError
from clue_ray.report.numbers import flop, significant
from clue_ray.report.read import read_directory
from clue_ray.runs import Runs
from clue_ray.scaling.answering.analysis import analyse
from clue_ray.scaling.answering.sentences import listing
from clue_ray.scaling.forecasting.forecast import Forecaster

NEEDED = ("train_flops", "loss", "loss_candidates")


@dataclass(frozen=True)
class Answer:
    """A forecast with its 80 % interval.

    Attributes:
        train_flops: the compute in FLOP.
        loss: the held-out loss in nats.
        low, high: interval of the predicted one of the two; an unbounded end is infinite.
        beyond: `train_flops` over that of the largest run on the frontier.
        asked: the given one of the two, `train_flops` or `loss`.
        record: how such forecasts fared, in two sentences.
        warnings: reasons to trust it less, one sentence each.
    """

    train_flops: float
    loss: float
    low: float
    high: float
    beyond: float
    asked: str
    record: str
    warnings: tuple[str, ...] = ()

    def sentence(self) -> str:
        """State the forecast, its interval, its reach and its record."""
        reach = f"{significant(self.beyond)} times the compute of the largest run on the frontier"
        if self.asked == "train_flops":
            ends = f"80 % interval: {self.low:.2f} to {self.high:.2f}"
            found = f"{flop(self.train_flops)} FLOP reach {self.loss:.3f} nats ({ends}), {reach}."
        else:
            ends = f"80 % interval: {_bound(self.low)} to {_bound(self.high)}"
            found = f"{self.loss:g} nats need {flop(self.train_flops)} FLOP ({ends}), {reach}."
        return f"{found} {self.record}"

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as JSON-able values; an infinite value is None."""
        values = asdict(self)
        return {
            key: None if isinstance(v, float) and not math.isfinite(v) else v
            for key, v in values.items()
        }


def _bound(value: float) -> str:
    return flop(value) if math.isfinite(value) and value > 0 else "unbounded"


def predict_study(
    directory: Path, *, train_flops: float | None = None, loss: float | None = None
) -> Answer:
    """Forecast the held-out loss at `train_flops`, or the training compute that reaches `loss`.

    Exactly one of the two is given, and it lies beyond the runs.

    Raises:
        FitError: neither or both are given, the runs support no forecast, or it never takes the
            loss.
        RunsError: the directory has no runs that a law can be fitted to.
    """
    if (train_flops is None) == (loss is None):
        raise FitError(
            "Predict takes either --train-flops, for the loss, or --loss, for the compute; give "
            "one of the two."
        )
    forecaster = _forecaster(directory)
    if train_flops is not None:
        if not (math.isfinite(train_flops) and train_flops > 0):
            raise FitError(f"--train-flops is {train_flops:g}; give a positive number.")
        made = forecaster.at(train_flops)
        place, ends, value = train_flops, made.interval(0.8), made.value
        asked = "train_flops"
    else:
        assert loss is not None
        place, *found = forecaster.reach_of(loss, 0.8)
        ends = (found[0], found[1])
        made, value, asked = forecaster.at(place), loss, "loss"
    low, high = ends
    return Answer(place, value, low, high, made.reach, asked, made.record(), made.warnings)


def _forecaster(directory: Path) -> Forecaster:
    """Analyse a study; raise an error where its runs support no forecast."""
    files = read_directory(directory)
    empty = [column for column in NEEDED if files.table[column].isna().all()]
    if empty:
        raise RunsError(
            f"{directory} has no {listing(empty)}; predict takes a study, or a runs table with "
            f"{listing(NEEDED)}: add them, or forecast other columns with `clue-ray forecast`."
        )
    analysis = analyse(Runs(files.table), files.fit.laws, files.fit.hold_out)
    if analysis.forecaster is None:
        raise FitError(analysis.no_answer_reason)
    return analysis.forecaster
