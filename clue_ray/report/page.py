"""Write a study's report: one self-contained HTML page, the same in Markdown, and the figures as files.

Takes a study directory, gives the path of report/index.html and leaves fits.json beside the runs table. One
idea: the page says what is known and how well, shows every run behind it, and needs no law to stand.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from clue_ray.errors import ClueRayError
from clue_ray.report import figures, numbers, tables
from clue_ray.report.clipping import highest_shown
from clue_ray.report.directory import StudyFiles, read_directory
from clue_ray.report.headline import Band, interval_band
from clue_ray.report.rendering import HALF, Picture, picture
from clue_ray.report.style import law_label
from clue_ray.report.tables import Table
from clue_ray.runs import Runs, replacing, write_json
from clue_ray.scaling.analysis import Analysis, analyse
from clue_ray.scaling.axes import AxisEffect
from clue_ray.scaling.backtest import CAUTIOUS

CLIPPED = "An arrow at the upper edge marks a run worse than a guess, with its loss."


@dataclass(frozen=True)
class Content:
    """All that a report says, in the order it is read; None or empty where there is nothing to say."""

    name: str
    question: str
    answer: str
    headline: Picture | None
    laws: Table | None
    law_sentence: str
    comparison: Table | None
    axes: tuple[Picture, ...]
    heat: Picture | None
    curves: Picture | None
    runs: Table
    runs_sentence: str
    cost: Table | None
    warnings: tuple[str, ...]
    provenance: Table
    study_text: str

    @property
    def pictures(self) -> list[Picture]:
        """The figures that were drawn, in order."""
        return [p for p in (self.headline, *self.axes, self.heat, self.curves) if p is not None]


def write_report(directory: str | Path) -> Path:
    """Write fits.json and report/ into a study directory and return the path of index.html.

    Raises:
        RunsError: the directory holds no runs table. Nothing else stops a report: what cannot be fitted or
            read is said on the page.
    """
    home = Path(directory)
    files = read_directory(home)
    analysis, document = _analyse(files)
    content = build_content(files, analysis, document)
    write_json(home / "fits.json", document)
    for drawn in content.pictures:
        _write(home / "report" / "figures" / f"{drawn.name}.svg", drawn.svg.encode())
        _write(home / "report" / "figures" / f"{drawn.name}.png", drawn.png)
    _write(home / "report" / "report.md", render("report.md.j2", content).encode())
    _write(home / "report" / "index.html", render("index.html.j2", content).encode())
    return home / "report" / "index.html"


def build_content(files: StudyFiles, analysis: Analysis | None, document: dict[str, Any]) -> Content:
    """Put into words and pictures what was read and found; without analysis, document["error"] says why."""
    candidates = figures.candidates_of(files.table)
    return Content(
        name=files.name,
        question=files.question,
        answer=str(document["answer"]) if analysis else f"There is no answer yet. {document['error']}",
        headline=_headline(files, analysis),
        laws=tables.law_table(analysis) if analysis else None,
        law_sentence=law_sentence(analysis) if analysis else "",
        comparison=tables.comparison(files, candidates) if candidates else None,
        axes=_axes(analysis) if analysis else (),
        heat=_heat(files),
        curves=_curves(files),
        runs=tables.run_table(files.table),
        runs_sentence=runs_sentence(files),
        cost=tables.cost_table(files),
        warnings=(*files.warnings, *(analysis.warnings if analysis else ())),
        provenance=tables.provenance(files),
        study_text=files.study_text,
    )


def render(template: str, content: Content) -> str:
    """Set the content in one of the package's templates, everything escaped."""
    loader = PackageLoader("clue_ray.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(content=content)
    if template.endswith(".md.j2"):  # Markdown needs its tags escaped, but not its quotation marks
        text = text.replace("&#39;", "'").replace("&#34;", '"')
    return text


def law_sentence(analysis: Analysis) -> str:
    """Say which law the backtest prefers, by how much over the next best, and whether that means anything."""
    summary = analysis.backtest.summary
    errors = dict(zip(summary["law"], summary["mean_absolute_error"], strict=True))
    best, name = errors.pop(analysis.preferred, None), law_label(analysis.preferred)
    if best is None:
        return f"There were too few runs for a backtest; the {name} is shown: the simplest, then the closest fit."
    if analysis.silence:
        return f"No law speaks: the {name} is drawn, and missed more expensive runs by {_nats(best)} on average."
    prefers = all(best <= error for error in errors.values())
    start = f"The backtest prefers the {name}" if prefers else f"The {name} speaks"
    if tied := [law for law in analysis.backtest.tied if law != analysis.preferred]:
        others = " or ".join(f"the {law_label(law)}" for law in tied)
        cautious = "cautious " if analysis.preferred == CAUTIOUS else ""
        start = f"The backtest cannot tell the {name} from {others}, so the {cautious}{name} speaks"
    sentence = f"{start}: fitted to cheaper runs, it missed more expensive ones by {_nats(best)} on average"
    if errors:
        rival = min(errors, key=lambda law: errors[law])
        sentence += f", the {law_label(rival)} by {_nats(errors[rival])}"
    return f"{sentence}."


def _nats(error: float) -> str:
    return f"{numbers.significant(error, 2)} nats"


def runs_sentence(files: StudyFiles) -> str:
    """Count the runs by status, so that none is dropped in silence."""
    counts = files.table["status"].value_counts()
    order = [status for status in ("done", "failed", "diverged", "missing") if status in counts]
    words = ", ".join(f"{counts[status]:,} {status}" for status in order)
    return f"{len(files.table)} runs: {words}."


def _analyse(files: StudyFiles) -> tuple[Analysis | None, dict[str, Any]]:
    """Analyse the runs and describe the result for fits.json, or give the reason for none as `error`."""
    try:
        analysis = analyse(Runs(files.table), files.fit.laws, files.fit.hold_out)
        return analysis, analysis.to_dict()
    except ClueRayError as error:
        return None, {"error": str(error)}


def _headline(files: StudyFiles, analysis: Analysis | None) -> Picture | None:
    points = files.done[files.done["train_flops"].notna()]
    if points.empty:
        return None
    marks = ("run", "clipped")
    titles = {f"{mark}-{run['run_id']}": _pointed_at(run) for _, run in points.iterrows() for mark in marks}
    name, level = str(files.baseline.get("name", "baseline")), files.baseline.get("loss")
    baseline = None if level is None else (name, float(level))
    caption = "Every finished run: held-out loss against training compute."
    if analysis:
        caption += (
            f" The thick line is the {law_label(analysis.preferred)} with its 95% interval, thin lines "
            "its rivals. Outlined runs are on the frontier: none with at most their compute does better."
        )
    if highest_shown(points["loss"], figures.candidates_of(points)) < float(points["loss"].max()):
        caption += f" {CLIPPED}"
    band = interval_band(analysis) if analysis else None
    if band is not None and len(band.low):
        caption += f" {_reach(band)}"
    draw = partial(figures.loss_against_compute, analysis or points, baseline=baseline, band=band)
    return picture("loss-against-compute", caption, draw, titles=titles)


def _reach(band: Band) -> str:
    """Say where the interval ends at the right edge, which the loss axis may cut."""
    low, high = float(band.low[-1]), float(band.high[-1])
    ends = [
        numbers.significant(low) if low > 0 else "unbounded",
        numbers.significant(high) if high < 1e3 else "unbounded",
    ]
    return f"At {numbers.flop(band.train_flops[-1])} FLOP the interval is {' to '.join(ends)} nats."


def _pointed_at(run: pd.Series) -> str:
    loss, compute = tables.number(run["loss"], "loss").text, numbers.flop(run["train_flops"])
    return f"{tables.describe(run)}: loss {loss} at {compute} FLOP (run {run['run_id']})"


def _axes(analysis: Analysis) -> tuple[Picture, ...]:
    """Draw one panel an axis, all on one loss scale, so that a flat axis looks flat."""
    losses = [loss for effect in analysis.axes for line in effect.lines for loss in line["loss"]]
    if not losses:
        return ()
    high = highest_shown(losses, analysis.candidates)
    margin = 0.07 * max(high - min(losses), 1e-3)
    limits = (min(losses) - margin, high + margin)
    return tuple(_axis(effect, limits) for effect in analysis.axes if effect.lines)


def _axis(effect: AxisEffect, limits: tuple[float, float]) -> Picture:
    caption = f"{effect.label}: along a line nothing else differs.{_along(effect)}"
    if any((line["loss"] > limits[1]).any() for line in effect.lines):
        caption += f" {CLIPPED}"
    name = f"axis-{effect.column.replace('_', '-')}"
    return picture(name, caption, partial(figures.axis_effect, effect, loss_limits=limits), sizes=(HALF,))


def _along(effect: AxisEffect) -> str:
    if effect.fit is None or not effect.fit.law.exponents:
        return ""
    exponent = effect.fit.law.exponents[0]
    low, high = effect.fit.known_interval(exponent)
    shown = "not identified"
    if low is not None or high is not None:
        shown = numbers.interval(effect.fit.parameters[exponent], low, high)
    return f" Dashed: {law_label(effect.fit.law.name)} along the longest line, exponent {shown}."


def _heat(files: StudyFiles) -> Picture | None:
    if figures.grid_of(files.table) is None:
        return None
    caption = "Held-out loss, nats, by encoder size and sequence length, all else equal; lower is better."
    return picture("heat-table", caption, partial(figures.heat_table, files.table), sizes=(HALF,))


def _curves(files: StudyFiles) -> Picture | None:
    if files.curves is None:
        return None
    caption = "Held-out loss while training, a mark where a run ended; dashed runs have no final loss."
    draw = partial(figures.learning_curves, files.curves, runs=files.done)
    return picture("learning-curves", caption, draw)


def _write(path: Path, contents: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(contents)
