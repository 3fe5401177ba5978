"""Add runs beyond a study's grids: `--grow BUDGET`.

The candidates are the points of the same grids, with each axis of scale continued by two values.
Only those count that a joint law over the axes expects on the compute frontier.
`scaling/deciding/add_runs.py` chooses among them, a few at a time; the laws are fitted again after
each round. The added runs are kept in grown.json and belong to the study like its grids.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
from annotated_types import Len
from pydantic import BaseModel, ConfigDict, ValidationError

from clue_ray.corpus.store import Corpus
from clue_ray.errors import ClueRayError, RunsError, StudyError
from clue_ray.runs import Runs
from clue_ray.scaling.answering.analysis import analyse
from clue_ray.scaling.answering.axes import joint_fit
from clue_ray.scaling.deciding.add_runs import choose_runs
from clue_ray.scaling.fitting.frontier import MIN_FITTED_RUNS
from clue_ray.scaling.fitting.result import Fit
from clue_ray.scaling.forecasting.forecast import Forecaster
from clue_ray.spec.columns import scale_fields
from clue_ray.spec.compute import train_flops
from clue_ray.spec.grid import BUDGETS, Point, list_points
from clue_ray.spec.ladder import LADDER
from clue_ray.spec.specs import RunSpec, StudySpec
from clue_ray.storage.files import read_json, write_json
from clue_ray.study.checks import check_batch, check_run
from clue_ray.study.costs import Workload
from clue_ray.training.counters import describe_run

DEFAULT_LOOK_AHEAD = 100.0
"""Compute of the default prediction, as a multiple of the largest run's."""
LEVEL = 0.8
"""Of the interval that is told."""
STEPS_BEYOND = 2
"""Values by which each axis of scale is continued."""
REMEDY = "restore it, or delete it and its runs no longer belong to the study"
"""The end of an error message about grown.json."""


class _GrownRun(BaseModel):
    """An added run in grown.json."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    point: dict[str, Any]
    train_flops: float


class _Grown(BaseModel):
    """What grown.json must hold."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    at: float
    runs: list[_GrownRun]
    intervals: list[Annotated[list[float], Len(2, 2)]]


@dataclass
class AddedRuns:
    """The runs added so far, as grown.json stores them.

    Attributes:
        predict_at: Compute of the prediction that the runs narrow, FLOP (`at` in the file).
        runs: Point and train_flops of each added run.
        intervals: 80% interval that is forecast for the loss at `predict_at`, before the first
            round and after each.
    """

    predict_at: float = 0.0
    runs: list[dict[str, Any]] = field(default_factory=list)
    intervals: list[list[float]] = field(default_factory=list)

    @classmethod
    def read(cls, directory: Path) -> "AddedRuns":
        """Read what earlier commands added to a study; nothing where there is no grown.json.

        Raises:
            RunsError: The file is damaged.
        """
        file = directory / "grown.json"
        if not file.exists():
            return cls()
        document = read_json(file, REMEDY)
        try:
            _Grown.model_validate(document)
        except ValidationError as error:
            wrong = error.errors()[0]
            place = ".".join(map(str, wrong["loc"]))
            raise RunsError(f"{file} is damaged ({place}: {wrong['msg']}); {REMEDY}.") from None
        return cls(document["at"], document["runs"], document["intervals"])

    def write(self, directory: Path) -> None:
        """Write grown.json."""
        document = {"at": self.predict_at, "runs": self.runs, "intervals": self.intervals}
        write_json(directory / "grown.json", document)

    @property
    def points(self) -> list[Point]:
        """Points beyond the grids."""
        return [run["point"] for run in self.runs]

    @property
    def spent(self) -> float:
        """Training compute of the added runs, FLOP."""
        return float(sum(run["train_flops"] for run in self.runs))

    def add_interval(self, forecaster: Forecaster, predict_at: float) -> None:
        """Append the interval that is forecast for the loss at some compute.

        Intervals at another compute cannot be compared with it, so they are removed.
        """
        if predict_at != self.predict_at:
            self.predict_at, self.intervals = predict_at, []
        if predict_at <= forecaster.end:  # it was measured by an added run
            return
        interval = list(forecaster.at(predict_at).interval(LEVEL))
        if interval not in self.intervals[-1:]:
            self.intervals.append(interval)

    def sentence(self) -> str:
        """Describe what was added and how it changed the interval."""
        added = f"Added {len(self.runs)} runs, {self.spent:.2e} FLOP"
        if not self.intervals:
            return f"{added}."
        (low, high), (new_low, new_high) = self.intervals[0], self.intervals[-1]
        return (
            f"{added}: the 80% interval of loss at {self.predict_at:.2e} FLOP went from "
            f"[{low:.3f}, {high:.3f}] to [{new_low:.3f}, {new_high:.3f}]."
        )


class AddRunsRequest(NamedTuple):
    """What is asked of `add_in_rounds`.

    Attributes:
        budget: Training compute of all added runs together, FLOP.
        predict_at: Compute at which the prediction of the loss is to be narrowed, FLOP.
    """

    budget: float
    predict_at: float | None = None


def add_in_rounds(
    study: StudySpec,
    corpus: Corpus,
    directory: Path,
    request: AddRunsRequest,
    train: Callable[[bool], tuple[Runs, int]],
    retry_failed: bool = False,
) -> Runs:
    """Add runs in rounds until the budget is spent or no run within it helps.

    Args:
        train: Trains what the study lacks, and runs that failed before if its argument is true.
            Returns the runs table and the number of concurrent runs.
        retry_failed: The argument of `train` in the first round. Later rounds pass False, so that a
            run that fails again is not tried in every round.

    Returns:
        The runs table.

    Raises:
        StudyError: The runs so far support no prediction that could be narrowed.
    """
    runs, concurrency = train(retry_failed)
    candidates = list_candidates(study, corpus)
    while True:
        added = AddedRuns.read(directory)
        chosen = _choose_round(study, added, request, runs, candidates)[:concurrency]
        added.runs += chosen
        added.write(directory)
        if not chosen:
            return runs
        runs, concurrency = train(False)


def _choose_round(
    study: StudySpec,
    added: AddedRuns,
    request: AddRunsRequest,
    runs: Runs,
    candidates: pd.DataFrame,
) -> list[dict[str, Any]]:
    """Fit the laws again, append the interval to `added`, and choose what to add next."""
    analysis = analyse(runs, study.fit.laws, study.fit.hold_out)
    if analysis.forecaster is None:
        raise StudyError(f"--grow has no forecast to narrow. {analysis.no_answer_reason}")
    law = analysis.fits[analysis.preferred]
    furthest = float(analysis.points["train_flops"].max())
    predict_at = request.predict_at or added.predict_at or DEFAULT_LOOK_AHEAD * furthest
    added.add_interval(analysis.forecaster, predict_at)
    # A run that failed is in the table, so it is neither chosen nor paid for again.
    # Laws describe the whole encoder, which runs of one part would not narrow.
    left = candidates[
        ~candidates["run_id"].isin(runs.table["run_id"])
        & candidates["encoder_parts"].isin(analysis.points["encoder_parts"])
    ]
    return next_runs(analysis.points, law, left, request.budget - added.spent, predict_at)


def next_runs(
    points: pd.DataFrame, law: Fit, candidates: pd.DataFrame, budget: float, predict_at: float
) -> list[dict[str, Any]]:
    """Choose runs to add within a budget, the most informative first.

    Args:
        points: The runs that are done, as `Analysis.points`.
        law: The preferred law, whose prediction is to be narrowed.
        candidates: One row per run that has not been tried, with the columns run_id, point,
            train_flops and the study's axes.
        predict_at: Compute of the prediction, FLOP.

    Returns:
        Point and train_flops of each chosen run.
    """
    table = _on_frontier(candidates, points)
    best = points[points["frontier"]]
    fitted = best if (~best["held_out"]).sum() >= MIN_FITTED_RUNS else points
    x, places = (frame["train_flops"].to_numpy(dtype=float) for frame in (fitted, table))
    chosen, _ = choose_runs(law, x, places, budget, predict_at)
    rows = table.iloc[chosen]
    return [
        {"point": point, "train_flops": flops}
        for point, flops in zip(rows["point"], rows["train_flops"].tolist(), strict=True)
    ]


def list_candidates(study: StudySpec, corpus: Corpus) -> pd.DataFrame:
    """List the runs of the continued grids.

    Returns:
        One row per run, with the columns known before training, its point, steps and train_flops.
    """
    workload, rows = Workload(corpus), []
    for point, run in list_points(_continue_axes(study)):
        try:
            check_batch(run)
            check_run(run, workload)
        except ClueRayError:  # the corpus is too small for this value of an axis
            continue
        known = describe_run(run, corpus, study.evaluation, study.name)
        rows.append({**known.model_dump(), "point": point, **_count(run, workload)})
    return pd.DataFrame(rows).drop_duplicates("run_id")


def _count(run: RunSpec, workload: Workload) -> dict[str, float]:
    """Count a run's steps and training FLOPs."""
    steps = workload.steps(run)
    return {
        "steps": steps,
        "train_flops": float(train_flops(run.encoder, workload.step(run).required) * steps),
    }


def _on_frontier(candidates: pd.DataFrame, done: pd.DataFrame) -> pd.DataFrame:
    """Keep the candidates whose expected loss no run of at most the same compute has reached.

    Raises:
        StudyError: No joint law over the axes can be fitted.
    """
    found = joint_fit(done)
    if found is None:
        raise StudyError(
            "--grow needs a law over the study's axes, and the runs support none; add runs to "
            "the grid."
        )
    expected = found[0].expected(candidates)
    flops = done["train_flops"].to_numpy(dtype=float)
    best = [float(done["loss"][flops <= flop].min()) for flop in candidates["train_flops"]]
    return candidates[expected <= np.array(best, dtype=float)]


def _continue_axes(study: StudySpec) -> StudySpec:
    """Continue every axis of scale; other axes, and zipped axes, stay as they are."""
    grids = [
        {axis: continue_axis(axis, values) for axis, values in grid.items()} for grid in study.grids
    ]
    return study.model_copy(update={"axes": grids})


def continue_axis(axis: str, values: list[Any]) -> list[Any]:
    """Continue an axis of scale by two values.

    Encoder sizes continue with the next rungs of the ladder, numbers with their last ratio.
    """
    if axis == "encoder.size":
        rungs = [
            name
            for name in LADDER
            if name.startswith("clue-") == str(values[-1]).startswith("clue-")
        ]
        top = max((rungs.index(value) for value in values if value in rungs), default=len(rungs))
        return [*values, *rungs[top + 1 : top + 1 + STEPS_BEYOND]]
    scales = {**scale_fields(), BUDGETS: False}
    if axis not in scales or len(values) < 2:
        return values
    if None in values:  # all users of the corpus: there are no more
        return values
    *_, below, last = sorted(map(float, values))
    further = [last * (last / below) ** step for step in range(1, STEPS_BEYOND + 1)]
    if not scales[axis]:
        return [*values, *further]
    # The number of heads divides each of these widths, so it divides multiples of their divisor.
    grain = math.gcd(*map(int, values)) if axis == "encoder.width" else 1
    return [*values, *(grain * round(value / grain) for value in further)]
