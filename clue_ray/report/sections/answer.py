"""The top of a page: the answer, the most serious warning, the headline plot.

Where the runs support no law, the first sentence says so and nothing is predicted.
"""

from functools import partial
from typing import Any

import pandas as pd

from clue_ray.report import numbers, tables
from clue_ray.report.figures.files import OF_A_RUN, Picture, picture
from clue_ray.report.figures.headline import Band, clipped_runs, loss_against_compute
from clue_ray.report.figures.style import law_label
from clue_ray.report.read import StudyFiles
from clue_ray.report.rivals import headline_rivals
from clue_ray.scaling.answering.analysis import Analysis
from clue_ray.scaling.answering.sentences import flop_words, number
from clue_ray.spec.columns import in_unit, noun, short_label

CLIPPED = "An arrow at the upper edge marks a run above the plotted range, with its loss."


def answer(analysis: Analysis | None, error: str) -> str:
    """Return the answer in a few sentences; `error` is the reason where there is no analysis."""
    if analysis is None:
        return f"There is no answer yet. {error}"
    return analysis.answer()


def against_floor(files: StudyFiles, analysis: Analysis | None) -> list[str]:
    """Warn where the best run or the prediction lies below the Bayes loss of a planted log."""
    floor = min(files.floor.values(), default=None)
    if floor is None or analysis is None:
        return []
    best, ahead = float(analysis.points["loss"].min()), analysis.forecast
    warnings = []
    if best < floor:
        warnings.append(
            f"The loss of the best run, {best:.3f} nats, is below the lowest loss that an encoder "
            f"of this planted log can reach, {floor:.3f} nats: the evaluation pool is small, or "
            "the bound belongs to another log."
        )
    if ahead is not None and ahead.value < floor:
        warnings.append(
            f"The forecast loss, {ahead.value:.2f} nats, is below the lowest loss that an encoder "
            f"of this planted log can reach, {floor:.3f} nats, so it is impossible."
        )
    return warnings


def main_warning(warnings: tuple[str, ...]) -> str:
    """Return the most serious warning, with the number of the other warnings."""
    if not warnings:
        return ""
    more = len(warnings) - 1
    rest = f" ({number(more).capitalize()} more warning{'s' * (more > 1)} below.)" if more else ""
    return f"{warnings[0]}{rest}"


def headline(
    files: StudyFiles, analysis: Analysis | None, band: Band | None = None
) -> Picture | None:
    """Draw the loss of every finished run against its compute, with the laws of the analysis.

    Args:
        band: the forecast, which the dial of the page shares.
    """
    points = files.done[files.done["train_flops"].notna()]
    if points.empty:
        return None
    ablations = files.ablations[files.ablations["train_flops"].notna()]
    titles = {
        f"{mark}{run['run_id']}": run_title(run)
        for _, run in pd.concat([points, ablations]).iterrows()
        for mark in OF_A_RUN
    }
    rivals = headline_rivals(files)
    draw = partial(
        loss_against_compute,
        analysis or points,
        baselines=[(numbers.shortened(name), loss) for name, loss in rivals],
        band=band,
        floor=min(files.floor.values(), default=None),
        ablations=ablations,
    )
    shown = pd.concat([analysis.points if analysis else points, ablations])
    caption = _caption(shown, [loss for _, loss in rivals], analysis, band)
    return picture("loss-against-compute", caption, draw, titles=titles)


def _caption(
    points: pd.DataFrame, levels: list[float], analysis: Analysis | None, band: Band | None
) -> str:
    caption = f"Every finished run: {short_label('loss')} against {short_label('train_flops')}."
    if analysis:
        caption += (
            " The thick line is the forecast with its 80% interval; thin lines are single laws, "
            f"fitted without the held-out runs (black: the {law_label(analysis.preferred)}, which "
            f"is preferred). Outlined runs are on the frontier: no run has a lower {noun('loss')} "
            f"at the same {noun('train_flops')}, or a much lower {noun('loss')} at slightly more."
        )
    if len(clipped_runs(points, levels)):
        caption += f" {CLIPPED}"
    return f"{caption} {_reach(band)}" if band is not None and len(band.low) else caption


def _reach(band: Band) -> str:
    """State the interval at the right edge, where the loss axis may clip it."""
    low, high = float(band.low[-1]), float(band.high[-1])
    ends = [
        numbers.significant(low) if low > 0 else "unbounded",
        numbers.significant(high) if high < 1e3 else "unbounded",
    ]
    at = flop_words(float(band.train_flops[-1]))
    return f"At {at} the interval is {' to '.join(ends)}{in_unit('loss')}."


def run_title(run: Any) -> str:
    """Describe a run for its tooltip: settings, loss and compute, or its status."""
    compute = (
        ""
        if numbers.is_absent(run["train_flops"])
        else f" at {flop_words(float(run['train_flops']))}"
    )
    ended = (
        str(run["status"])
        if numbers.is_absent(run["loss"])
        else f"loss {tables.number(run['loss'], 'loss').text}"
    )
    return f"{tables.describe(run)}: {ended}{compute} (run {run['run_id']})"
