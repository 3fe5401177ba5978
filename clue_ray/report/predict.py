"""Predict with the preferred law of a study: the loss at a compute, or the compute for a loss."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clue_ray.errors import FitError, RunsError
from clue_ray.report.figures.style import law_label
from clue_ray.report.numbers import flop, significant
from clue_ray.report.read import read_directory
from clue_ray.runs import Runs
from clue_ray.scaling.answering.analysis import Analysis, analyse
from clue_ray.scaling.answering.sentences import listing
from clue_ray.scaling.deciding.budget import budget_for_loss

NEEDED = ("train_flops", "loss", "loss_candidates")


@dataclass(frozen=True)
class Answer:
    """A prediction with its 95 % interval.

    Attributes:
        law: name of the preferred law.
        train_flops: the compute in FLOP; infinite or 0 where the law itself never takes the loss
            but its interval does not exclude it.
        loss: the held-out loss in nats.
        low, high: interval of the predicted one of the two; an unbounded end is infinite.
        beyond: `train_flops` over that of the largest run.
        asked: the given one of the two, `train_flops` or `loss`.
    """

    law: str
    train_flops: float
    loss: float
    low: float
    high: float
    beyond: float
    asked: str

    def sentence(self) -> str:
        """Format the prediction as one sentence."""
        law = (
            f"by the {law_label(self.law)}, {significant(self.beyond)} times the compute of the "
            "largest run"
        )
        if self.asked == "train_flops":
            ends = f"95 % interval: {self.low:.2f} to {self.high:.2f}"
            return f"{flop(self.train_flops)} FLOP reach {self.loss:.3f} nats ({ends}) {law}."
        if not 0 < self.train_flops < math.inf:
            return self._open_sentence()
        ends = f"95 % interval: {_bound(self.low)} to {_bound(self.high)}"
        return f"{self.loss:g} nats need {flop(self.train_flops)} FLOP ({ends}) {law}."

    def _open_sentence(self) -> str:
        """State where the interval contains a loss that the law itself never takes."""
        end, side = (self.high, "up to") if self.train_flops == 0 else (self.low, "from")
        where = (
            f"{side} {flop(end)} FLOP{' on' if side == 'from' else ''}"
            if 0 < end < math.inf
            else "at any compute"
        )
        return (
            f"By the {law_label(self.law)}, no training compute reaches a loss of {self.loss:g} "
            f"nats, but its 95 % interval does not exclude this loss {where}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON-able values; an infinite value is None."""
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
    """Predict the held-out loss at `train_flops`, or the training compute that reaches `loss`.

    Exactly one of the two is given.

    Raises:
        FitError: neither or both are given, the study has no preferred law, or the law never takes
            the loss.
        RunsError: the directory has no runs that a law can be fitted to.
    """
    if (train_flops is None) == (loss is None):
        raise FitError(
            "Predict takes either --train-flops, for the loss, or --loss, for the compute; give "
            "one of the two."
        )
    analysis = _analyse(directory)
    law, largest = analysis.preferred, float(analysis.points["train_flops"].max())
    if loss is not None:
        value, low, high = budget_for_loss(analysis.fits[law], loss)
        return Answer(law, value, loss, low, high, value / largest, "loss")
    assert train_flops is not None
    if not (math.isfinite(train_flops) and train_flops > 0):
        raise FitError(f"--train-flops is {train_flops:g}; give a positive number.")
    value, low, high = analysis.fits[law].predict(train_flops=train_flops)
    return Answer(law, train_flops, value, low, high, train_flops / largest, "train_flops")


def _analyse(directory: Path) -> Analysis:
    """Analyse a study; raise an error where it has no preferred law."""
    files = read_directory(directory)
    empty = [column for column in NEEDED if files.table[column].isna().all()]
    if empty:
        raise RunsError(
            f"{directory} has no {listing(empty)}; predict takes a study, or a runs table with "
            f"{listing(NEEDED)}: add them, or fit other columns with `clue-ray fit`."
        )
    analysis = analyse(Runs(files.table), files.fit.laws, files.fit.hold_out)
    if analysis.no_answer_reason:
        raise FitError(analysis.no_answer_reason)
    return analysis
