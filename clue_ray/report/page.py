"""Everything a page says, in the order it is read.

Takes what was read and found, gives `Content`. One idea: the order of the sections stands here and
nowhere else.


Write a study's report: one self-contained HTML page, the same in Markdown, and the figures as
files.

Takes a study directory, gives the path of report/index.html and leaves fits.json beside the runs
table. One
idea: the page says what is known and how well, shows every run behind it, and needs no law to
stand.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from clue_ray.errors import ClueRayError
from clue_ray.report.figures.files import Picture
from clue_ray.report.read import StudyFiles, read_directory
from clue_ray.report.section import Download, Section
from clue_ray.report.sections import answer, downstream, evidence, next_step
from clue_ray.report.sections import axes as effects
from clue_ray.report.sections import laws as judgement
from clue_ray.runs import Runs
from clue_ray.scaling.answering.analysis import Analysis, analyse
from clue_ray.storage.files import atomic_write, write_json


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


def build_content(
    files: StudyFiles, analysis: Analysis | None, document: dict[str, Any]
) -> Content:
    """Put into words and pictures what was read and found; without analysis, document["error"] says
    why.
    """
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


def write_report(directory: str | Path) -> Path:
    """Write fits.json and report/ into a study directory and return the path of index.html.

    Figures of an earlier report that this one lacks are removed.

    Raises:
        RunsError: the directory holds no runs table. Nothing else stops a report: what cannot be
            fitted or read is said on the page.
    """
    home = Path(directory)
    content, document = compose(read_directory(home))
    write_json(home / "fits.json", document)
    _write_figures(home / "report" / "figures", content.pictures)
    _write(home / "report" / "report.md", render("report.md.j2", content=content).encode())
    _write(
        home / "report" / "index.html",
        render("index.html.j2", content=content, live=False).encode(),
    )
    return home / "report" / "index.html"


def compose(files: StudyFiles) -> tuple[Content, dict[str, Any]]:
    """Analyse a study and say it; give the page's content and what fits.json holds."""
    analysis, document = analyse_files(files)
    content = build_content(files, analysis, document)
    fits = (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()
    runs = files.table.to_csv(index=False).encode()
    downloads = (
        Download("fits.json", "application/json", fits),
        Download("runs.csv", "text/csv", runs),
    )
    return replace(content, downloads=downloads), document


def analyse_files(files: StudyFiles) -> tuple[Analysis | None, dict[str, Any]]:
    """Analyse the runs and describe the result for fits.json, or give the reason for none as
    `error`.
    """
    try:
        analysis = analyse(Runs(files.table), files.fit.laws, files.fit.hold_out)
        return analysis, analysis.to_dict()
    except ClueRayError as error:
        return None, {"error": str(error)}


def render(template: str, **content: Any) -> str:
    """Set content in one of the package's templates, everything escaped."""
    loader = PackageLoader("clue_ray.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(**content)
    if template.endswith(".md.j2"):  # Markdown needs its tags escaped, but not its quotation marks
        text = text.replace("&#39;", "'").replace("&#34;", '"')
    return text


def _write_figures(folder: Path, pictures: list[Picture]) -> None:
    """Write figures as SVG and PNG, and remove those that an earlier report left."""
    names = {f"{drawn.name}{suffix}" for drawn in pictures for suffix in (".svg", ".png")}
    for stale in folder.glob("*") if folder.is_dir() else ():
        if stale.name not in names and stale.suffix in {".svg", ".png"}:
            stale.unlink()
    if not names and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    for drawn in pictures:
        _write(folder / f"{drawn.name}.svg", drawn.svg.encode())
        _write(folder / f"{drawn.name}.png", drawn.png)


def _write(path: Path, contents: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(contents)
