"""What `--grow` added to a study beyond its grids: kept in grown.json, part of the study like its
grids.

Runs beyond the grid: `--grow BUDGET` continues the study's axes where that most narrows one
    prediction.

Candidates are the points of the same grids, each axis of scale continued by two steps; those count
that a joint law over the axes expects on the compute frontier. Which of them to train is chosen by
`scaling/growth.py`, a few at a time: the laws are fitted anew after each round.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clue_ray.corpus.store import Corpus
from clue_ray.errors import ClueRayError, StudyError
from clue_ray.runs import Runs
from clue_ray.scaling.answering.analysis import analyse
from clue_ray.scaling.answering.axes import joint_fit
from clue_ray.scaling.deciding.add_runs import choose_runs
from clue_ray.scaling.fitting.fit import Fit
from clue_ray.scaling.fitting.frontier import MIN_FITTED_RUNS
from clue_ray.spec.columns import scale_fields
from clue_ray.spec.compute import train_flops
from clue_ray.spec.grid import BUDGETS, Point, list_points
from clue_ray.spec.specs import LADDER, RunSpec, StudySpec
from clue_ray.storage.files import read_json, write_json
from clue_ray.study.costs import Workload
from clue_ray.study.planner import check_batch, check_run
from clue_ray.training.counters import describe_run


@dataclass
class AddedRuns:
    """What was added so far, as grown.json holds it."""

    at: float = 0.0
    runs: list[dict[str, Any]] = field(default_factory=list)
    "point and train_flops of each"
    intervals: list[list[float]] = field(default_factory=list)
    "of the loss at `at`, before the first round and after each"

    @classmethod
    def read(cls, directory: Path) -> "AddedRuns":
        """Read what an earlier command added; nothing where none did."""
        file = directory / "grown.json"
        return cls(**read_json(file)) if file.exists() else cls()

    @property
    def points(self) -> list[Point]:
        """Points beyond the grids."""
        return [run["point"] for run in self.runs]

    @property
    def spent(self) -> float:
        """FLOP of the added runs."""
        return float(sum(run["train_flops"] for run in self.runs))

    def predict(self, preferred_fit: Fit, at: float) -> None:
        """Note the interval of the loss at some compute; intervals at another compute are not
        comparable and go.
        """
        if at != self.at:
            self.at, self.intervals = at, []
        prediction = preferred_fit.predict(train_flops=at)
        if [prediction.low, prediction.high] not in self.intervals[-1:]:
            self.intervals.append([prediction.low, prediction.high])

    def sentence(self) -> str:
        """Say what was added and what it brought."""
        added = f"Grown by {len(self.runs)} runs, {self.spent:.2e} FLOP"
        if not self.intervals:
            return f"{added}."
        (low, high), (new_low, new_high) = self.intervals[0], self.intervals[-1]
        return (
            f"{added}: the 95% interval of loss at {self.at:.2e} FLOP went from [{low:.3f}, "
            f"{high:.3f}] to "
            f"[{new_low:.3f}, {new_high:.3f}]."
        )


DEFAULT_LOOK_AHEAD = 100.0
"""How far beyond the largest run of the grid the prediction lies, as a factor on compute, where
none is named."""
STEPS_BEYOND = 2


class AddRunsRequest(NamedTuple):
    """What is asked: a budget for all added runs together, and the compute whose loss is to be
    predicted; FLOP.
    """

    budget: float
    at: float | None = None


def add_runs(
    study: StudySpec,
    corpus: Corpus,
    directory: Path,
    growth: AddRunsRequest,
    train: Callable[[bool], tuple[Runs, int]],
    retry_failed: bool = False,
) -> Runs:
    """Add runs in rounds until the budget is spent or no run within it helps; return the runs
    table.

    Args:
        train: trains what the study lacks, what failed before too where it is told so; returns the
            runs table and how many runs go at once.
        retry_failed: what the first round tells it; what then fails again is not tried in every
            round.

    Raises:
        StudyError: the runs so far support no prediction to narrow.
    """
    runs, at_once = train(retry_failed)
    candidates = list_candidates(study, corpus)
    while True:
        grown, analysis = (
            AddedRuns.read(directory),
            analyse(runs, study.fit.laws, study.fit.hold_out),
        )
        if analysis.no_answer_reason:
            raise StudyError(f"--grow has no prediction to narrow. {analysis.no_answer_reason}")
        preferred_fit = analysis.fits[analysis.preferred]
        grown.predict(
            preferred_fit,
            growth.at
            or grown.at
            or DEFAULT_LOOK_AHEAD * float(analysis.points["train_flops"].max()),
        )
        left = candidates[
            ~candidates["run_id"].isin(runs.table["run_id"])
        ]  # a run that failed is not paid for again
        chosen = next_runs(
            analysis.points, preferred_fit, left, growth.budget - grown.spent, grown.at
        )[:at_once]
        grown.runs += chosen
        write_json(directory / "grown.json", asdict(grown))
        if not chosen:
            return runs
        runs, at_once = train(False)


def next_runs(
    points: pd.DataFrame, preferred_fit: Fit, candidates: pd.DataFrame, budget: float, at: float
) -> list[dict[str, Any]]:
    """Choose runs to add within a budget, the most telling first: point and train_flops of each.

    Args:
        points: the runs that are done, as `Analysis.points`.
        preferred_fit: the law that predicts.
        candidates: columns run_id, point, train_flops and the study's axes, a row a run that was
            not tried yet.
    """
    table = _on_frontier(candidates, points)
    best = points[points["frontier"]]
    fitted = best if (~best["held_out"]).sum() >= MIN_FITTED_RUNS else points
    x, places = (frame["train_flops"].to_numpy(dtype=float) for frame in (fitted, table))
    chosen, _ = choose_runs(preferred_fit, x, places, budget, at)
    return [dict(row) for row in table.iloc[chosen][["point", "train_flops"]].to_dict("records")]


def list_candidates(study: StudySpec, corpus: Corpus) -> pd.DataFrame:
    """List the runs of the continued grids: columns known before training, point, steps and
    train_flops.
    """
    workload, rows = Workload(corpus), []
    for point, run in list_points(_continue_axes(study)):
        try:
            check_batch(run)
            check_run(run, workload)
        except ClueRayError:  # the log ends before the axis does
            continue
        rows.append(
            {
                **describe_run(run, corpus, study.evaluation, study.name).model_dump(),
                "point": point,
                **_count(run, workload),
            }
        )
    return pd.DataFrame(rows).drop_duplicates("run_id")


def _count(run: RunSpec, workload: Workload) -> dict[str, float]:
    """Count a run's steps and FLOPs before it is trained."""
    steps = workload.steps(run)
    return {
        "steps": steps,
        "train_flops": float(train_flops(run.encoder, workload.step(run).asked) * steps),
    }


def _on_frontier(candidates: pd.DataFrame, done: pd.DataFrame) -> pd.DataFrame:
    """Keep the candidates that no run with at most as much compute is expected to beat.

    Raises:
        StudyError: no joint law over the axes can be fitted, so nothing can be expected.
    """
    found = joint_fit(done)
    if found is None:
        raise StudyError(
            "--grow needs a law over the study's axes, and the runs support none; add runs to the "
            "grid."
        )
    expected = found[0].expected(candidates)
    flops = done["train_flops"].to_numpy(dtype=float)
    best = [float(done["loss"][flops <= flop].min()) for flop in candidates["train_flops"]]
    return candidates[expected <= np.array(best, dtype=float)]


def _continue_axes(study: StudySpec) -> StudySpec:
    """Continue every axis of scale; other axes, and those that move together, stay."""
    grids = [
        {axis: continue_axis(axis, values) for axis, values in grid.items()} for grid in study.grids
    ]
    return study.model_copy(update={"axes": grids})


def continue_axis(axis: str, values: list[Any]) -> list[Any]:
    """Continue an axis of scale by two steps: the next rungs of the ladder, or the last ratio
    again.
    """
    if axis == "encoder.size":
        rungs = [
            name
            for name in LADDER
            if name.startswith("clue-") == str(values[-1]).startswith("clue-")
        ]
        last = max((rungs.index(value) for value in values if value in rungs), default=len(rungs))
        return [*values, *rungs[last + 1 : last + 1 + STEPS_BEYOND]]
    scales = {**scale_fields(), BUDGETS: False}
    if axis not in scales or len(values) < 2:
        return values
    if None in values:  # all users of the corpus: there are no more
        return values
    *_, below, last = sorted(map(float, values))
    further = [last * (last / below) ** step for step in range(1, STEPS_BEYOND + 1)]
    if not scales[axis]:
        return [*values, *further]
    grain = (
        math.gcd(*map(int, values)) if axis == "encoder.width" else 1
    )  # heads divide every width
    return [*values, *(grain * round(value / grain) for value in further)]
