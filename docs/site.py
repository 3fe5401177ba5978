"""Hook of MkDocs: files outside docs/ that a page links to, and the API reference, join the site.

Pages of the repository link to source files, manifests and tables, as GitHub shows them. In the
site they lie under `repository/`: Markdown as pages, Python as pages of code, others as they are.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

OUTSIDE = "repository"
ROOT = Path(__file__).parents[1]
DOCS, API = ROOT / "docs", ROOT / "build" / "api"
LINK = re.compile(r"(\[[^\]]*\])\((?!https?://|mailto:|#)([^)\s#]+)(#[^)\s]+)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add what the pages link to, and what those pages link to, and the API reference."""
    if not API.is_dir():
        raise PluginError("build/api is missing; run `make docs` first, or `make site`.")
    waiting, added = [DOCS / page.src_uri for page in files.documentation_pages()], set[Path]()
    while waiting:
        for target in _outside(waiting.pop()) - added:
            added.add(target)
            files.append(_as_file(target, config))
            if target.suffix == ".md":
                waiting.append(target)
    for page in sorted(API.rglob("*")):
        if page.is_file():
            name = f"api/{page.relative_to(API).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(page)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let the links of a page lead to the places that files have in the site."""
    here = page.file.src_uri
    if here.endswith(".py.md"):
        return markdown
    home = _source(here).parent

    def lead(link: re.Match[str]) -> str:
        target = (home / link[2]).resolve()
        if target.is_dir():
            return link[1][1:-1]  # a site has no page of a folder
        to = os.path.relpath(_uri(target), Path(here).parent)
        return f"{link[1]}({to}{link[3] or ''})"

    return LINK.sub(lead, markdown)


def _outside(page: Path) -> set[Path]:
    """Return the files outside docs/ that a page links to."""
    links = (link[2] for link in LINK.finditer(page.read_text(encoding="utf-8")))
    targets = ((page.parent / link).resolve() for link in links)
    return {path for path in targets if path.is_file() and not path.is_relative_to(DOCS)}


def _uri(target: Path) -> str:
    """Return the place of a file among the sources of the site."""
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    name = target.relative_to(ROOT).as_posix()
    # README.md would become the index of its folder, and a page of code needs a name of its own.
    return f"{OUTSIDE}/{name}.md" if target.suffix == ".py" else f"{OUTSIDE}/{name}"


def _source(uri: str) -> Path:
    """Return the file that a page of the site is made from."""
    outside = uri.removeprefix(f"{OUTSIDE}/")
    return DOCS / uri if outside == uri else ROOT / outside


def _as_file(target: Path, config: Any) -> File:
    if target.suffix != ".py":
        return File.generated(config, _uri(target), abs_src_path=str(target))
    code = target.read_text(encoding="utf-8")
    name = target.relative_to(ROOT).as_posix()
    return File.generated(config, _uri(target), content=f"# {name}\n\n````python\n{code}\n````\n")
