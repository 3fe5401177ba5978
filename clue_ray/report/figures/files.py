"""Render a figure as SVG (with text as text), as PNG for Markdown, and as SVG inside a page.

The same drawing gives the same bytes, so a report that is written twice is the same.
"""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clue_ray.report.figures.style import STYLE

Draw = Callable[[Axes], Axes]

WIDE, NARROW, HALF = (6.8, 4.5), (4.0, 4.0), (3.5, 2.8)
"""Sizes in inches: the width of a page, of a phone, and of half a page."""
OF_A_RUN = ("run-", "clipped-")
"""Prefixes of the gids of artists of a run; the run id follows and links the artist to its row."""
NO_METADATA: dict[str, str | None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Picture:
    """One rendered figure.

    Attributes:
        name: the name of its files.
        caption: one or two sentences below the figure, also its text alternative.
        svg, png: contents of figures/<name>.svg and .png.
        inline: SVG elements for a page, the widest first; a page shows the one that fits.
        inches: width of the widest drawing; a page scales by it, so that all text has one size.
    """

    name: str
    caption: str
    svg: str
    png: bytes
    inline: tuple[str, ...]
    inches: float


def picture(
    name: str,
    caption: str,
    draw: Draw,
    *,
    sizes: tuple[tuple[float, float], ...] = (WIDE, NARROW),
    titles: Mapping[str, str] | None = None,
) -> Picture:
    """Draw a figure once for each size in inches; `titles` are tooltips by the gid of an artist."""
    figures = [_figure(draw, size) for size in sizes]
    drawn = [_svg(f"{name}-{index}", figure) for index, figure in enumerate(figures)]
    inline = tuple(
        _inline_svg(svg, prefix=f"{name}-{index}-", caption=caption, titles=titles or {})
        for index, svg in enumerate(drawn)
    )
    return Picture(name, caption, drawn[0], _png(figures[0]), inline, sizes[0][0])


def _inline_svg(svg: str, *, prefix: str, caption: str, titles: Mapping[str, str]) -> str:
    """Convert an SVG file for HTML: no prologue, no fixed size, unique ids, tooltips."""
    body = svg[svg.index("<svg") :]
    body = re.sub(
        r' width="[\d.]+pt" height="[\d.]+pt"',
        f' role="img" aria-label="{escape(caption)}"',
        body,
        count=1,
    )
    # The text takes the font of the page, which the reader's device has.
    body = re.sub(r"font-family: [^;]*; ", "", body)
    body = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{prefix}", body)
    anchors = {f"{prefix}{escape(gid)}": (gid, title) for gid, title in titles.items()}

    def named(group: re.Match[str]) -> str:
        """Add the tooltip and the run id to one group."""
        if group[1] not in anchors:
            return group[0]
        gid, title = anchors[group[1]]
        mark = f' data-run="{escape(gid.partition("-")[2])}"' if gid.startswith(OF_A_RUN) else ""
        return f'<g id="{group[1]}"{mark}><title>{escape(title)}</title>'

    return re.sub(r'<g id="([^"]*)">', named, body)


def _figure(draw: Draw, size: tuple[float, float]) -> Figure:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        ax = draw(figure.add_subplot())
        # These artists stay inside the axes, and measuring hundreds of them takes seconds.
        for artist in (*ax.lines, *ax.collections):
            artist.set_in_layout(False)
    return figure


def _svg(salt: str, figure: Figure) -> str:
    with mpl.rc_context(STYLE | {"svg.hashsalt": salt}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    # Keep the layout for the PNG: computing it again takes as long as drawing.
    figure.set_layout_engine("none")
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _png(figure: Figure) -> bytes:
    with mpl.rc_context(STYLE):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
