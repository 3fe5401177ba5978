"""Answer one question by the law that speaks for a study: the loss of a compute, or the compute of
a loss.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clue_ray.errors import FitError, RunsError
from clue_ray.report.figures.style import law_label
from clue_ray.report.numbers import flop, significant
from clue_ray.report.read import read_directory
from clue_ray.runs import Runs
from clue_ray.scaling.answering.analysis import analyse
from clue_ray.scaling.answering.sentences import listing
from clue_ray.scaling.deciding.budget import budget_for_loss

NEEDED = ("train_flops", "loss", "loss_candidates")


@dataclass(frozen=True)
class Answer:
    """A prediction with its 95 % interval: `loss` in nats at `train_flops`, one of them asked for,
    the other found.

    Attributes:
        train_flops: infinite, or 0, where the law itself never takes the loss but its interval does
            not exclude it.
        low, high: ends of what was found; infinite where nothing bounds it.
        beyond: `train_flops` over the largest run's.
    """

    law: str
    train_flops: float
    loss: float
    low: float
    high: float
    beyond: float
    asked: str

    def sentence(self) -> str:
        """Say it in one sentence."""
        law = f"by the {law_label(self.law)}, {significant(self.beyond)} times the largest run's compute"
        if self.asked == "train_flops":
            ends = f"95 % {self.low:.2f} to {self.high:.2f}"
            return f"{flop(self.train_flops)} FLOP reach {self.loss:.3f} nats ({ends}) {law}."
        if not 0 < self.train_flops < math.inf:
            return self._open_sentence()
        ends = f"95 % {_bound(self.low)} to {_bound(self.high)}"
        return f"{self.loss:g} nats take {flop(self.train_flops)} FLOP ({ends}) {law}."

    def _open_sentence(self) -> str:
        """Say at what compute the interval holds a loss that the law itself never takes."""
        end, side = (self.high, "up to") if self.train_flops == 0 else (self.low, "from")
        where = (
            f"{side} {flop(end)} FLOP{' on' if side == 'from' else ''}"
            if 0 < end < math.inf
            else "at any compute"
        )
        return (
            f"By the {law_label(self.law)} no training compute takes the loss to {self.loss:g} "
            f"nats, but its 95 % "
            f"interval does not exclude them {where}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values; None where an end is infinite."""
        values = asdict(self)
        return {
            key: None if isinstance(v, float) and not math.isfinite(v) else v
            for key, v in values.items()
        }


def _bound(value: float) -> str:
    return flop(value) if math.isfinite(value) and value > 0 else "without bound"


def predict_study(
    directory: Path, *, train_flops: float | None = None, loss: float | None = None
) -> Answer:
    """Predict held-out loss at `train_flops`, or the training compute that `loss` takes; give one
    of the two.

    Raises:
        FitError: neither or both are given, no law speaks for the study, or the law never takes the
            loss.
        RunsError: the directory holds no runs that can be fitted.
    """
    if (train_flops is None) == (loss is None):
        raise FitError(
            "Ask for the loss of a --train-flops or for the compute of a --loss; give one of the "
            "two."
        )
    files = read_directory(directory)
    empty = [column for column in NEEDED if files.table[column].isna().all()]
    if empty:
        raise RunsError(
            f"{directory} holds no {listing(empty)}; predict takes a study, or a runs table with "
            f"{listing(NEEDED)}: "
            "add them, or fit other columns with `clue-ray fit`."
        )
    analysis = analyse(Runs(files.table), files.fit.laws, files.fit.hold_out)
    if analysis.no_answer_reason:
        raise FitError(analysis.no_answer_reason)
    fit, largest = analysis.fits[analysis.preferred], float(analysis.points["train_flops"].max())
    if loss is not None:
        found = budget_for_loss(fit, loss)
        return Answer(
            analysis.preferred,
            found.value,
            loss,
            found.low,
            found.high,
            found.value / largest,
            "loss",
        )
    assert train_flops is not None
    if not (math.isfinite(train_flops) and train_flops > 0):
        raise FitError(f"--train-flops is {train_flops:g}; give a positive number.")
    found = fit.predict(train_flops=train_flops)
    beyond = train_flops / largest
    return Answer(
        analysis.preferred, train_flops, found.value, found.low, found.high, beyond, "train_flops"
    )
