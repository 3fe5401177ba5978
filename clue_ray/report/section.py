"""The parts of a page: sections of words, pictures and tables, and files to download.

Takes finished pieces, gives frozen records. One idea: HTML and Markdown are two settings of the
same sections in the same order, so that neither can say what the other leaves out.
"""

import base64
from dataclasses import dataclass

from clue_ray.report.figures.files import Picture
from clue_ray.report.tables import Table


@dataclass(frozen=True)
class Section:
    """One heading and what stands below it, in the order of the fields.

    Attributes:
        anchor: id of the section in the page.
        nav: its name in the list of contents.
        words: paragraphs.
        pictures: figures.
        tables: tables, each with its note; one with a `folded` title is closed until asked for.
        points: sentences set as a list.
        after: paragraphs below all of these.
        layout: `panels` sets several small figures side by side.
        lead: what the top of the page says of it.
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
    """A file that travels inside the page."""

    name: str
    media_type: str
    contents: bytes

    @property
    def uri(self) -> str:
        """The file as a data URI (RFC 2397)."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.contents).decode()}"
