"""Compare two studies on one page: laws, forecasts, and their differences with intervals.

Losses are comparable only at the same number of candidates. Where both studies have runs, their
laws are compared; beyond the runs of both, their forecasts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clue_ray.errors import RunsError
from clue_ray.report import numbers
from clue_ray.report.figures.compare import difference_over_compute, two_laws
from clue_ray.report.figures.files import NARROW, WIDE, picture
from clue_ray.report.figures.style import law_label
from clue_ray.report.page import analyse_files, render
from clue_ray.report.read import StudyFiles, read_directory
from clue_ray.report.section import Section
from clue_ray.report.tables import Table, text, written
from clue_ray.scaling.answering.analysis import Analysis
from clue_ray.scaling.answering.sentences import flop_words
from clue_ray.scaling.fitting.result import Prediction
from clue_ray.scaling.judging.backtest import LOOK_AHEAD
from clue_ray.spec.columns import in_unit, label, named, with_unit
from clue_ray.storage.files import atomic_write

PLACES = 9
"""Places along the shared compute at which the difference is evaluated."""
SHOWN = (0, PLACES // 2, PLACES - 1)


@dataclass(frozen=True)
class Comparison:
    """Two studies and their difference at the compute that both cover.

    Attributes:
        names: of the studies; where they are equal, the names of their folders.
        analyses: in the same order.
        train_flops: places of the shared compute in FLOP; empty where none is shared or a study has
            no preferred law.
        losses: predicted losses at these places in nats, one list per study.
        differences: first minus second in nats, with 95% intervals.
        ahead: the forecasts at `LOOK_AHEAD` times the largest compute of both, with 80% intervals,
            and first minus second; empty where a study has no forecast.
        warnings: one sentence each.
        columns: what columns are called where the runs are of another tool.
    """

    names: tuple[str, str]
    analyses: tuple[Analysis, Analysis]
    train_flops: tuple[float, ...]
    losses: tuple[list[Prediction], list[Prediction]]
    differences: tuple[Prediction, ...]
    ahead: tuple[Prediction, ...]
    warnings: tuple[str, ...]
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def ahead_at(self) -> float:
        """The compute of the forecasts, in FLOP."""
        return _look_ahead(self.analyses)

    def sentence(self) -> str:
        """State which study has the lower loss, where both have runs and where it is forecast."""
        with named(self.columns):
            return " ".join((self._measured(), *self._forecast()))

    def _measured(self) -> str:
        if not self.differences:
            return f"No difference is stated. {self.warnings[0]}"
        gap, place = self.differences[-1], flop_words(self.train_flops[-1])
        first, second = self.names
        start = f"At {place}, the largest compute that both studies reached,"
        if gap.low <= 0 <= gap.high:
            return (
                f"{start} the losses of {first} and {second} are not distinguishable: {first} "
                f"minus {second} is {_signed(gap, in_unit('loss'))}."
            )
        side = "lower" if gap.value < 0 else "higher"
        return (
            f"{start} the loss of {first} is {side} than that of {second}: the difference is "
            f"{_signed(gap, in_unit('loss'))}."
        )

    def _forecast(self) -> tuple[str, ...]:
        if not self.ahead:
            return ()
        (one, other, gap), (first, second) = self.ahead, self.names
        level = "not distinguishable: " if gap.low <= 0 <= gap.high else ""
        return (
            f"At {flop_words(self.ahead_at)}, {LOOK_AHEAD} times the largest compute of both, the "
            f"forecasts are {level}{numbers.significant(one.value)}{in_unit('loss')} for {first} "
            f"and {numbers.significant(other.value)} for {second}, a difference of "
            f"{_signed(gap, in_unit('loss'))} (80% interval).",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON-able values; an unbounded end is None."""
        rows = [
            {
                "train_flops": place,
                **{
                    key: value if np.isfinite(value) else None
                    for key, value in gap._asdict().items()
                },
            }
            for place, gap in zip(self.train_flops, self.differences, strict=True)
        ]
        return {
            "studies": self.names,
            "answer": self.sentence(),
            "differences": rows,
            "forecasts": [
                {"of": name, "train_flops": self.ahead_at, **made._asdict()}
                for name, made in zip((*self.names, "difference"), self.ahead, strict=False)
            ],
            "warnings": self.warnings,
        }


def compare_studies(directories: Sequence[Path]) -> tuple[Path, Comparison]:
    """Compare two studies; write `report/against-<folder of the second>.html` into the first.

    Returns the path of the page and the comparison.

    Raises:
        RunsError: there are not two directories, one has no runs table, no law can be fitted to it,
            or the numbers of candidates differ.
    """
    if len(directories) != 2:
        raise RunsError(
            f"{len(directories)} studies are given; a report takes one, a comparison two."
        )
    first, second = directories
    files = tuple(read_directory(place) for place in (first, second))
    if files[0].names != files[1].names:
        raise RunsError(
            f"{first} and {second} hold runs with other columns for compute and loss, so they "
            "cannot be compared; make both pages with the same --x and --y."
        )
    analyses = tuple(
        _analysed(file, place) for file, place in zip(files, (first, second), strict=True)
    )
    a, b = analyses
    if a.candidates != b.candidates:
        raise RunsError(
            f"The losses of {first} were measured among {a.candidates} candidates and those of "
            f"{second} among {b.candidates}, so they cannot be compared; score both studies with "
            "the same evaluation.candidates."
        )
    found = replace(
        _compare(_names(files, (first, second)), (a, b), _data(files)), columns=files[0].names
    )
    target = first / "report" / f"against-{second.resolve().name}.html"
    with atomic_write(target) as temporary, named(found.columns):
        temporary.write_text(_page(found), encoding="utf-8")
    return target, found


def _analysed(files: StudyFiles, place: Path) -> Analysis:
    analysis, document = analyse_files(files)
    if analysis is None:
        raise RunsError(f"{place} cannot be compared: {document['error']}")
    return analysis


def _names(files: tuple[StudyFiles, ...], places: tuple[Path, Path]) -> tuple[str, str]:
    """Name two studies by their names; where these are equal, by their folders or their paths."""
    tried = [
        [file.name for file in files],
        [place.resolve().name for place in places],
        list(map(str, places)),
    ]
    first, second = next((pair for pair in tried if pair[0] != pair[1]), tried[-1])
    return first, second


def _data(files: tuple[StudyFiles, ...]) -> list[str]:
    """Warn where the studies have different corpora, and so different held-out users."""
    digests = [set(file.table["corpus_digest"].dropna()) for file in files]
    if digests[0] == digests[1]:
        return []
    return [
        "The studies have different corpora, and so different held-out users: a difference in loss "
        "may come from the data rather than from the recipe."
    ]


def _compare(
    names: tuple[str, str], analyses: tuple[Analysis, Analysis], warnings: list[str]
) -> Comparison:
    a, b = analyses
    low, high = (
        max(float(one.points["train_flops"].min()) for one in analyses),
        min(float(one.points["train_flops"].max()) for one in analyses),
    )
    reasons = [
        f"No law is preferred for {name}."
        for name, one in zip(names, analyses, strict=True)
        if one.no_answer_reason
    ]
    if low > high:
        reasons.append(
            "The studies share no compute: the largest of one is below the smallest of the other."
        )
    if reasons:
        return Comparison(
            names, analyses, (), ([], []), (), _ahead(analyses), (*reasons, *warnings)
        )
    places = tuple(map(float, np.geomspace(low, high, PLACES)))
    losses = tuple(
        [one.fits[one.preferred].predict(train_flops=place) for place in places] for one in (a, b)
    )
    gaps = tuple(difference(one, other) for one, other in zip(losses[0], losses[1], strict=True))
    ahead = _ahead(analyses)
    return Comparison(names, analyses, places, (losses[0], losses[1]), gaps, ahead, tuple(warnings))


def _look_ahead(analyses: tuple[Analysis, Analysis]) -> float:
    return LOOK_AHEAD * max(float(one.points["train_flops"].max()) for one in analyses)


def _ahead(analyses: tuple[Analysis, Analysis]) -> tuple[Prediction, ...]:
    """Forecast both studies beyond the runs of both; empty where one has no forecast."""
    at = _look_ahead(analyses)
    made = [one.forecaster.at(at) for one in analyses if one.forecaster]
    if len(made) < len(analyses):
        return ()
    first, second = (Prediction(each.value, *each.interval(0.8)) for each in made)
    return first, second, difference(first, second)


def difference(one: Prediction, other: Prediction) -> Prediction:
    """Subtract two independent estimates, with the interval by MOVER.

    The distances to the ends are added in quadrature (Zou and Donner 2008, Statistics in Medicine
    27, 1693).
    """
    value = one.value - other.value
    below = np.hypot(one.value - one.low, other.high - other.value)
    above = np.hypot(one.high - one.value, other.value - other.low)
    return Prediction(value, float(value - below), float(value + above))


def _page(found: Comparison) -> str:
    """Render a comparison as a page."""
    names, sections = " and ".join(found.names), []
    caption = (
        "Frontier runs and preferred laws of both studies with their 95% intervals; vertical lines "
        "enclose the compute that both cover."
    )
    drawn = picture(
        "two-laws", caption, partial(two_laws, found.names, found.analyses), sizes=(WIDE, NARROW)
    )
    used = [
        f"{name}: {law_label(one.preferred)}, {one.fits[one.preferred].num_runs} runs"
        for name, one in zip(found.names, found.analyses, strict=True)
    ]
    sections.append(Section("laws", "Both laws", "laws", pictures=(drawn,), points=tuple(used)))
    if found.differences:
        gap = picture(
            "difference",
            f"{found.names[0]} minus {found.names[1]}, with its 95% interval; below zero, "
            f"{found.names[0]} has the lower loss.",
            partial(difference_over_compute, found.train_flops, found.differences),
            sizes=((5.2, 3.2), NARROW),
        )
        title = "The difference at the shared compute"
        sections.append(
            Section("difference", title, "difference", pictures=(gap,), tables=(_table(found),))
        )
    if found.ahead:
        sections.append(_forecasts(found))
    return render(
        "compare.html.j2",
        title=names,
        answer=found.sentence(),
        warnings=found.warnings,
        sections=sections,
    )


def _forecasts(found: Comparison) -> Section:
    """List both forecasts, how each study's earlier ones fared, and their difference."""
    forecast, compute = with_unit("forecast", "loss"), label("train_flops")
    heads = ("study", compute, f"{forecast} [80%]", "median error of earlier forecasts")
    place = written(numbers.flop(found.ahead_at))
    rows = [
        (text(name), place, written(numbers.interval(*made)), written(_own_error(one)))
        for name, made, one in zip(found.names, found.ahead, found.analyses, strict=False)
    ]
    gap = (text("difference"), place, written(_signed(found.ahead[-1])), written(numbers.ABSENT))
    return Section(
        "forecasts", "The forecasts beyond both", "forecasts", tables=(Table(heads, (*rows, gap)),)
    )


def _own_error(analysis: Analysis) -> str:
    made = analysis.forecast
    if made is None or made.backtest.empty:
        return numbers.ABSENT
    rows = made.backtest
    return numbers.percent((rows["predicted"] / rows["measured"] - 1).abs().median())


def _table(found: Comparison) -> Table:
    heads = (
        label("train_flops"),
        *(f"{with_unit(name, 'loss')} [95%]" for name in found.names),
        f"{with_unit('difference', 'loss')} [95%]",
    )
    rows = tuple(
        (
            written(numbers.flop(found.train_flops[place])),
            *(written(numbers.interval(*losses[place])) for losses in found.losses),
            written(_signed(found.differences[place])),
        )
        for place in SHOWN
    )
    return Table(heads, rows)


def _signed(gap: Prediction, unit: str = "") -> str:
    ends = f"[{numbers.signed(gap.low)}, {numbers.signed(gap.high)}]"
    return f"{numbers.signed(gap.value)}{unit} {ends}"
