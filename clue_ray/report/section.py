"""The parts of a page: sections of text, figures and tables, and files to download.

HTML and Markdown are rendered from the same sections in the same order, so their content is equal.
"""

import base64
from dataclasses import dataclass

from clue_ray.report.figures.files import Picture
from clue_ray.report.tables import Table


@dataclass(frozen=True)
class Section:
    """One heading and the content below it.

    Attributes:
        anchor: id of the section in the page.
        nav: its name in the table of contents.
        words: paragraphs.
        pictures: figures.
        tables: tables, each with its note; a table with a `folded` title is collapsed at first.
        points: sentences of a list.
        after: paragraphs below all of these.
        layout: `panels` places several small figures side by side.
        lead: the sentence about it at the top of the page.
    """

    anchor: str
    title: str
    nav: str
    words: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    points: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    layout: str = ""
    lead: str = ""


@dataclass(frozen=True)
class Download:
    """A file that is embedded in the page."""

    name: str
    media_type: str
    contents: bytes

    @property
    def uri(self) -> str:
        """The file as a data URI (RFC 2397)."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.contents).decode()}"
