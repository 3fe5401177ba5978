"""Everything a page says, in the order it is read.

Takes what was read and found, gives `Content`. One idea: the order of the sections stands here and nowhere else.
"""

from dataclasses import dataclass
from typing import Any

from clue_ray.report import answer, downstream, effects, evidence, judgement, next_step
from clue_ray.report.directory import StudyFiles
from clue_ray.report.rendering import Picture
from clue_ray.report.section import Download, Section
from clue_ray.scaling.answering.analysis import Analysis


@dataclass(frozen=True)
class Content:
    """All that a report says; empty where there is nothing to say."""

    name: str
    question: str
    answer: str
    caution: str
    headline: Picture | None
    sections: tuple[Section, ...]
    study_text: str
    downloads: tuple[Download, ...] = ()

    @property
    def pictures(self) -> list[Picture]:
        """The figures that were drawn, in order."""
        first = [self.headline] if self.headline else []
        return [*first, *(drawn for section in self.sections for drawn in section.pictures)]


def build_content(files: StudyFiles, analysis: Analysis | None, document: dict[str, Any]) -> Content:
    """Put into words and pictures what was read and found; without analysis, document["error"] says why."""
    doubts = (*answer.against_floor(files, analysis), *(analysis.warnings if analysis else ()))
    parts = (
        next_step.next_step(analysis) if analysis else None,
        evidence.learnt(files),
        effects.axes(analysis) if analysis else None,
        effects.grids(files),
        effects.isoflop(files),
        downstream.downstream(files),
        judgement.laws(analysis) if analysis else None,
        judgement.doubts(analysis) if analysis else None,
        evidence.cautions((*doubts, *files.warnings)),
        evidence.cost(files),
        evidence.curves(files),
        evidence.every_run(files),
        evidence.made(files),
    )
    return Content(
        name=files.name,
        question=files.question,
        answer=answer.answer(analysis, str(document.get("error", ""))),
        caution=answer.caution(doubts),
        headline=answer.headline(files, analysis),
        sections=tuple(part for part in parts if part is not None),
        study_text=files.study_text,
    )
