"""The top of a page: the answer in words, the gravest doubt, the headline plot.

Takes what was read and found, gives sentences and a picture. One idea: where the runs support no
law, the first sentence says so, and nothing is predicted.
"""

from functools import partial
from typing import Any

import pandas as pd

from clue_ray.report import numbers, tables
from clue_ray.report.figures.files import OF_A_RUN, Picture, picture
from clue_ray.report.figures.headline import Band, clipped_runs, interval_band, loss_against_compute
from clue_ray.report.figures.style import law_label
from clue_ray.report.read import StudyFiles
from clue_ray.scaling.answering.analysis import Analysis
from clue_ray.scaling.answering.sentences import number

CLIPPED = "An arrow at the upper edge marks a run worse than a guess, with its loss."


def answer(analysis: Analysis | None, error: str) -> str:
    """Say what the runs support, in two or three sentences; `error` is why there is no analysis."""
    if analysis is None:
        return f"There is no answer yet. {error}"
    return analysis.answer()


def against_floor(files: StudyFiles, analysis: Analysis | None) -> list[str]:
    """Say where runs or the prediction lie below what any encoder of a planted log can reach."""
    floor = min(files.floor.values(), default=None)
    if floor is None or analysis is None:
        return []
    best, ahead = float(analysis.points["loss"].min()), analysis.law_table()[0]["loss_at_10x"]
    said = []
    if best < floor:
        said.append(
            f"The best run's {best:.3f} nats lie below the lowest loss that any encoder of this "
            f"planted log can reach, "
            f"{floor:.3f}: the pool is small, or the floor is another log's."
        )
    if not analysis.no_answer_reason and ahead is not None and ahead < floor:
        said.append(
            f"The predicted {ahead:.2f} nats lie below the lowest loss that any encoder of this "
            f"planted log can reach, "
            f"{floor:.3f}, so the law does not hold that far."
        )
    return said


def caution(warnings: tuple[str, ...]) -> str:
    """Give the gravest reason for doubt, and how many more there are."""
    if not warnings:
        return ""
    more = len(warnings) - 1
    rest = (
        f" ({number(more).capitalize()} more reason{'s' if more > 1 else ''} for caution below.)"
        if more
        else ""
    )
    return f"{warnings[0]}{rest}"


def headline(files: StudyFiles, analysis: Analysis | None) -> Picture | None:
    """Draw every finished run's loss against its compute, with the laws where there are any."""
    points = files.done[files.done["train_flops"].notna()]
    if points.empty:
        return None
    titles = {
        f"{mark}{run['run_id']}": pointed_at(run)
        for _, run in points.iterrows()
        for mark in OF_A_RUN
    }
    band = interval_band(analysis) if analysis else None
    baselines = [(str(baseline["name"]), float(baseline["loss"])) for baseline in files.baselines]
    draw = partial(
        loss_against_compute,
        analysis or points,
        baselines=[(numbers.shortened(name), loss) for name, loss in baselines],
        band=band,
        floor=min(files.floor.values(), default=None),
    )
    caption = _caption(points, [loss for _, loss in baselines], analysis, band)
    return picture("loss-against-compute", caption, draw, titles=titles)


def _caption(
    points: pd.DataFrame, levels: list[float], analysis: Analysis | None, band: Band | None
) -> str:
    caption = "Every finished run: held-out loss against training compute."
    if analysis:
        caption += (
            f" The thick line is the {law_label(analysis.preferred)} with its 95% interval, thin "
            f"lines "
            "its rivals. Outlined runs are on the frontier: none does better with as much compute, "
            "nor far better with "
            "a little more."
        )
    if len(clipped_runs(analysis.points if analysis else points, levels)):
        caption += f" {CLIPPED}"
    return f"{caption} {_reach(band)}" if band is not None and len(band.low) else caption


def _reach(band: Band) -> str:
    """Say where the interval ends at the right edge, which the loss axis may cut."""
    low, high = float(band.low[-1]), float(band.high[-1])
    ends = [
        numbers.significant(low) if low > 0 else "unbounded",
        numbers.significant(high) if high < 1e3 else "unbounded",
    ]
    return f"At {numbers.flop(band.train_flops[-1])} FLOP the interval is {' to '.join(ends)} nats."


def pointed_at(run: Any) -> str:
    """Say what a pointer shows of a run: its settings, loss and compute, or how it ended."""
    compute = (
        ""
        if numbers.is_absent(run["train_flops"])
        else f" at {numbers.flop(run['train_flops'])} FLOP"
    )
    ended = (
        str(run["status"])
        if numbers.is_absent(run["loss"])
        else f"loss {tables.number(run['loss'], 'loss').text}"
    )
    return f"{tables.describe(run)}: {ended}{compute} (run {run['run_id']})"
