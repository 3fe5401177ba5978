"""The section on where another tool's runs came from and how their columns were read."""

from clue_ray.report.read import StudyFiles
from clue_ray.report.section import Section


def source(files: StudyFiles) -> Section | None:
    """State what was read, which columns were chosen and what was left out."""
    notes = tuple(str(note) for note in files.source.get("notes", ()))
    if not notes:
        return None
    words = (
        f"The runs were read from {files.source.get('path')}. The tool's own columns are in "
        "runs.csv next to those that the fit uses.",
    )
    return Section("source", "How the runs were read", "source", words, points=notes)
