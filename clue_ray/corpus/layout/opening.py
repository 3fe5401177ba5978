"""Open the training layout of a corpus folder; build it there if the corpus has none.

A corpus that an earlier version prepared has no layout, or one of another version, and files may
have been cut short. The first process that opens such a corpus builds the layout, in ranges, so
memory is bounded; others wait for it.
"""

import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from clue_ray.corpus.layout.arrays import Layout, assemble, read_layout
from clue_ray.corpus.layout.building import build_parts, one_by_one
from clue_ray.corpus.layout.plan import LayoutPlan, choose_ranges
from clue_ray.errors import CorpusError
from clue_ray.spec.specs import SplitSpec
from clue_ray.storage.place import is_uri, place_below

LAYOUT, WORK, PARTS = "train", "build", "parts"
"""Folders in a corpus: the layout, files that its tasks exchange, and parts of its arrays."""


def open_layout(folder: Path, manifest: dict[str, Any]) -> Layout:
    """Open the layout of a local corpus.

    Raises:
        CorpusError: there is none, and it cannot be built.
    """
    digest = manifest["digest"]
    if found := _read_whole(folder, digest):
        return found
    try:
        with FileLock(folder / f".{LAYOUT}.lock"):
            if not (found := _read_whole(folder, digest)):
                _build_here(folder, manifest)
    except OSError as error:
        raise CorpusError(
            f"{folder} was prepared by an earlier version and lacks the training layout, which "
            f"cannot be written there ({error.strerror or error}); free some space, or run "
            "clue-ray prepare with an --output that can be written."
        ) from None
    found = found or read_layout(folder / LAYOUT, digest)
    assert found, "the layout was just written"
    return found


def _read_whole(folder: Path, digest: str) -> Layout | None:
    found = read_layout(folder / LAYOUT, digest)
    return found if found and found.is_whole() else None


def _build_here(folder: Path, manifest: dict[str, Any]) -> None:
    """Build a layout in this process, one range after the other."""
    work = folder / WORK
    shutil.rmtree(work, ignore_errors=True)  # left by a killed process
    try:
        plan = plan_layout(str(folder), manifest)
        built = build_parts(plan, manifest["digest"], one_by_one)
        assemble(work / PARTS, built.recipe, folder / LAYOUT)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def plan_layout(place: str, manifest: dict[str, Any]) -> LayoutPlan:
    """Plan the layout of the shards in a folder or at a URI.

    Args:
        manifest: `services`, `vocab_size`, `spec` and `files` of the corpus. The place may hold
            shards of another log, left by a preparation that was interrupted.
    """
    shards = sorted(name.split("/")[1] for name in manifest["files"] if name.startswith("shards/"))
    services, work = tuple(manifest["services"]), place_below(place, WORK)
    # On storage the parts are what nodes fetch; in a folder they are needed only to be assembled.
    parts = place_below(place, f"{LAYOUT}/{PARTS}") if is_uri(place) else f"{work}/{PARTS}"
    items, users, orders = choose_ranges(place, shards, services)
    return LayoutPlan(
        corpus=place,
        work=work,
        parts=parts,
        shards=tuple(shards),
        services=services,
        split=SplitSpec(**manifest["spec"]["split"]),
        tokens=manifest["vocab_size"],
        item_ranges=items,
        user_ranges=users,
        order_ranges=orders,
    )
