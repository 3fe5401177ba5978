"""Write the report of a study: one self-contained HTML page, the same in Markdown, and the figures.

The page needs no law: it shows every run also where nothing can be fitted. `build_content` defines
the order of the sections. The analysis is written to fits.json next to the runs table.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from clue_ray.errors import ClueRayError
from clue_ray.report.dial import Dial, build_dial
from clue_ray.report.figures.files import Picture
from clue_ray.report.figures.headline import forecast_band
from clue_ray.report.read import StudyFiles, read_directory
from clue_ray.report.section import Download, Section
from clue_ray.report.sections import (
    answer,
    axes,
    downstream,
    evidence,
    laws,
    measured,
    next_step,
    parts,
    sealed,
    source,
)
from clue_ray.runs import Runs
from clue_ray.scaling.answering.analysis import Analysis, analyse
from clue_ray.spec.columns import named
from clue_ray.storage.files import atomic_write, write_json


@dataclass(frozen=True)
class Content:
    """The content of a report; a part without content is empty or None."""

    name: str
    question: str
    answer: str
    warning: str
    headline: Picture | None
    sections: tuple[Section, ...]
    study_text: str
    downloads: tuple[Download, ...] = ()
    dial: Dial | None = None

    @property
    def pictures(self) -> list[Picture]:
        """The figures that were drawn, in order."""
        first = [self.headline] if self.headline else []
        return [*first, *(drawn for section in self.sections for drawn in section.pictures)]


def build_content(
    files: StudyFiles, analysis: Analysis | None, document: dict[str, Any]
) -> Content:
    """Build the content of a report; without an analysis, document["error"] is the reason."""
    warnings = (
        *answer.against_floor(files, analysis),
        *(analysis.warnings if analysis else ()),
        *evidence.calibration_warnings(files),
    )
    if files.source:
        return _foreign_content(files, analysis, document, warnings)
    sections = (
        next_step.next_step(analysis) if analysis else None,
        sealed.sealed(files),
        evidence.learned(files),
        parts.parts(files),
        axes.axes(analysis) if analysis else None,
        axes.grids(files),
        axes.isoflop(files),
        downstream.downstream(files),
        laws.laws(analysis) if analysis else None,
        laws.alternatives(analysis) if analysis else None,
        evidence.warnings((*warnings, *files.warnings)),
        evidence.cost(files),
        evidence.curves(files),
        evidence.every_run(files),
        measured.measured(files, analysis, str(document.get("error", ""))),
    )
    return _content(files, analysis, document, warnings, sections)


def _foreign_content(
    files: StudyFiles,
    analysis: Analysis | None,
    document: dict[str, Any],
    warnings: tuple[str, ...],
) -> Content:
    """Build the page of another tool's runs: the sections that are not about encoders of users."""
    warnings = (*files.source.get("warnings", ()), *warnings)
    sections = (
        next_step.next_step(analysis) if analysis else None,
        sealed.sealed(files),
        axes.axes(analysis) if analysis else None,
        axes.isoflop(files),
        laws.laws(analysis) if analysis else None,
        laws.alternatives(analysis) if analysis else None,
        evidence.warnings((*warnings, *files.warnings)),
        source.source(files),
        evidence.every_run(files),
    )
    return _content(files, analysis, document, warnings, sections)


def _content(
    files: StudyFiles,
    analysis: Analysis | None,
    document: dict[str, Any],
    warnings: tuple[str, ...],
    sections: Iterable[Section | None],
) -> Content:
    band = forecast_band(analysis) if analysis else None
    return Content(
        name=files.name,
        question=files.question,
        answer=answer.answer(analysis, str(document.get("error", ""))),
        warning=answer.main_warning(warnings),
        headline=answer.headline(files, analysis, band),
        dial=build_dial(analysis, band, files.done) if analysis else None,
        sections=tuple(section for section in sections if section is not None),
        study_text=files.study_text,
    )


def write_report(directory: str | Path) -> Path:
    """Write fits.json and report/ into a study directory and return the path of index.html.

    Figures of an earlier report that this one lacks are removed.

    Raises:
        RunsError: the directory has no runs table. Nothing else stops a report: the page states
            what could not be fitted or read.
    """
    home = Path(directory)
    files = read_directory(home)
    with named(files.names):
        content, document = compose(files)
        write_json(home / "fits.json", document)
        _write_figures(home / "report" / "figures", content.pictures)
        _write(home / "report" / "report.md", render("report.md.j2", content=content).encode())
        page = render("index.html.j2", content=content, live=False).encode()
        _write(home / "report" / "index.html", page)
    return home / "report" / "index.html"


def compose(files: StudyFiles) -> tuple[Content, dict[str, Any]]:
    """Analyse a study; return the content of the page and of fits.json."""
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
    """Analyse the runs; return the analysis and the content of fits.json.

    Where the analysis fails, it is None and the content holds the reason as `error`.
    """
    try:
        analysis = analyse(Runs(files.table), files.fit.laws, files.fit.hold_out)
        return analysis, analysis.to_dict()
    except ClueRayError as error:
        return None, {"error": str(error)}


def render(template: str, **content: Any) -> str:
    """Render one of the templates of the package, with autoescaping."""
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
    """Write the figures as SVG and PNG, and remove those of an earlier report."""
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
