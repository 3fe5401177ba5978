"""The corpora that this node has fetched from storage: what is fetched when, checked and deleted.

A node first fetches the facts: the manifest, the tokenizer, the profile, and how the training
layout is put together. An array of the layout is fetched when a process first uses it, and shards
by those who read texts, or where the corpus has no layout yet.

The cache is bounded by its disk. If the disk is too full for what is fetched, corpora that no
process has open are deleted, the least recently opened first.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clue_ray.corpus.checksums import MISSING, find_sums
from clue_ray.corpus.layout.arrays import (
    LAYOUT_FILE,
    RECIPE_FILE,
    file_name,
    read_layout,
    read_recipe,
    write_array,
)
from clue_ray.corpus.layout.opening import LAYOUT, PARTS
from clue_ray.errors import CorpusError
from clue_ray.storage.documents import read_document
from clue_ray.storage.files import fetch_files, list_files, write_json
from clue_ray.storage.in_use import InUse, delete_unused
from clue_ray.storage.sync import node_folder

FACT_FILE = re.compile(rf"(corpus|profile|tokenizer)\.json|{LAYOUT}/(recipe|layout)\.json")
"""Names that are fetched when a corpus is opened."""
TRAINING_FILE = re.compile(
    rf"{FACT_FILE.pattern}|{LAYOUT}/([a-z_]+\.(i4|i8|f8|arrow)|{PARTS}/[a-z_]+-\d+)"
)
"""Names that are fetched or copied; other names on storage are not trusted as local paths."""
SHARD_FILE = re.compile(r"(shards|items|later)/shard-\d+\.parquet")
MARGIN = 1.1
"""Bytes that must be free per byte to fetch."""


def list_sums(folder: Path, manifest: dict[str, Any]) -> dict[str, str]:
    """Return the sha256 that each file of a corpus in a folder must have."""
    layout = read_layout(folder / LAYOUT, manifest["digest"])
    arrays = layout.sums() if layout else {}
    return {
        "tokenizer.json": manifest["tokenizer_sha256"],
        **manifest["files"],
        **{f"{LAYOUT}/{name}": found for name, found in arrays.items()},
    }


def find_damage(folder: Path, manifest: dict[str, Any], *, whole: bool = True) -> str:
    """Describe the first file that differs from the manifest; return "" if none does.

    Args:
        whole: whether a missing shard or array is damage; a cache need not hold them.
    """
    return _compare(folder, list_sums(folder, manifest), whole=whole)


def _compare(folder: Path, expected: Mapping[str, str], *, whole: bool = True) -> str:
    """Describe the first file that has another sha256 than expected."""
    for name, found in find_sums(folder, expected).items():
        absent = found == MISSING and not whole and not FACT_FILE.fullmatch(name)
        if found != expected[name] and not absent:
            return f"{name} is damaged (sha256 {found[:12]}, expected {expected[name][:12]})"
    return ""


def open_cached(
    place: str, content: bytes, manifest: dict[str, Any], *, verify: bool
) -> tuple[Path, InUse]:
    """Return this node's folder of the corpus at a URI; the first process of the node fetches it.

    Args:
        content: corpus.json as it is at the URI.

    Returns:
        The folder, and a mark that keeps it from being deleted.

    Raises:
        CorpusError: a file differs from the manifest, or the disk is too full.
    """
    # The cache is keyed by content, not by place: a corpus that is prepared again is fetched again.
    folder = node_folder("corpora") / hashlib.sha256(content).hexdigest()[:16]
    lock = folder.with_suffix(".lock")
    with FileLock(lock):
        os.utime(lock)  # says when the corpus was last opened
        if _is_cut_short(folder, manifest) or not folder.exists():
            fetch_corpus(place, manifest, folder)
        in_use = InUse(folder)
    # Without the lock, for which other processes wait; it is held only where a file is damaged.
    if verify and find_damage(folder, manifest, whole=False):
        with FileLock(lock):
            if find_damage(folder, manifest, whole=False):  # unless another process has fetched it
                fetch_corpus(place, manifest, folder)
    return folder, in_use


def _is_cut_short(folder: Path, manifest: dict[str, Any]) -> bool:
    layout = read_layout(folder / LAYOUT, manifest["digest"])
    return layout is not None and not layout.is_whole(fetched=True)


def fetch_corpus(place: str, manifest: dict[str, Any], folder: Path) -> None:
    """Fetch the facts of a corpus into a folder, which appears once it is complete.

    A damaged corpus in the folder is replaced then; processes that have mapped its files keep them.

    Raises:
        CorpusError: the tokenizer differs from the manifest, or the disk is too full.
    """
    files = list_files(place)
    wanted = {name: size for name, (size, _) in files.items() if FACT_FILE.fullmatch(name)}
    sums = {"tokenizer.json": manifest["tokenizer_sha256"]}
    partial = _fetch_checked(place, wanted, sums, folder)
    layout, digest = partial / LAYOUT, manifest["digest"]
    recipe = None if read_layout(layout, digest) else read_recipe(layout)
    if recipe and recipe.facts.get("digest") == digest:
        write_json(layout / LAYOUT_FILE, {**recipe.facts, "files": {}, "bytes": {}})
    else:  # none, or the remains of another preparation
        (layout / RECIPE_FILE).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def _fetch_checked(
    place: str, sizes: Mapping[str, int], sums: Mapping[str, str], folder: Path, *, more: int = 0
) -> Path:
    """Fetch files to a folder next to a cached corpus, whose lock the caller holds; return it.

    Args:
        sizes: bytes of each file.
        sums: sha256 that files must have.
        more: bytes that the caller will write.

    Raises:
        CorpusError: a file has another sha256, or the disk is too full.
    """
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    _make_room(sum(sizes.values()) + more, folder)
    fetch_files(place, sizes, partial)
    if damage := _compare(partial, sums):
        raise CorpusError(
            f"Corpus file {damage} at {place}; delete the corpus there and prepare it again."
        )
    return partial


def _sizes(place: str, names: Iterable[str]) -> dict[str, int]:
    """Return the bytes of files at a place; 0 for one that is not there, which cannot be read."""
    files = list_files(place)
    return {name: files[name][0] if name in files else 0 for name in names}


def fetch_array(place: str, manifest: dict[str, Any], folder: Path, array: str) -> None:
    """Fetch an array of the layout of a cached corpus, unless another process has done so.

    Raises:
        CorpusError: a file differs from its checksum, or the disk is too full.
    """
    name = f"{LAYOUT}/{file_name(array)}"
    with FileLock(folder.with_suffix(".lock")):
        if (folder / name).exists():
            return
        if (folder / LAYOUT / RECIPE_FILE).exists():
            _join_parts(place, folder, array)
        else:
            sums = {name: _sum_of(name, place, folder, manifest)}
            partial = _fetch_checked(place, _sizes(place, sums), sums, folder)
            (partial / name).rename(folder / name)
            shutil.rmtree(partial)


def _sum_of(name: str, place: str, folder: Path, manifest: dict[str, Any]) -> str:
    try:
        return list_sums(folder, manifest)[name]
    except KeyError:
        raise CorpusError(
            f"The corpus of {place} in this node's cache has no checksum of {name}; open it again, "
            f"or prepare it again if that does not help."
        ) from None


def _join_parts(place: str, folder: Path, array: str) -> None:
    """Fetch the parts of an array and join them; layout.json gets its checksum first."""
    layout, parts = folder / LAYOUT, f"{LAYOUT}/{PARTS}"
    recipe = read_recipe(layout)
    assert recipe, "it was read when the corpus was fetched"
    sums = {f"{parts}/{part}": recipe.files[part] for part, _, _ in recipe.pieces[array]}
    sizes = _sizes(place, sums)
    # Each part is deleted once it is copied; of pools, all are needed until the last pair.
    more = (sum if array.endswith("_pools") else max)(sizes.values())
    partial = _fetch_checked(place, sizes, sums, folder, more=more)
    found = write_array(partial / parts, recipe, array, partial)
    file = partial / file_name(array)
    facts = read_document(layout / LAYOUT_FILE)
    facts["files"][file.name], facts["bytes"][file.name] = found, file.stat().st_size
    write_json(layout / LAYOUT_FILE, facts)
    file.rename(layout / file.name)
    shutil.rmtree(partial)


def fetch_shards(place: str, manifest: dict[str, Any], folder: Path, kind: str) -> None:
    """Fetch the files of one kind (`shards`, `items`, `later`) that a cached corpus lacks.

    Raises:
        CorpusError: a file differs from the manifest, or the disk is too full.
    """
    with FileLock(folder.with_suffix(".lock")):
        sums = {
            name: found
            for name, found in manifest["files"].items()
            if name.startswith(f"{kind}/") and not (folder / name).exists()
        }
        if not sums:
            return
        partial = _fetch_checked(place, _sizes(place, sums), sums, folder)
        (folder / kind).mkdir(exist_ok=True)
        for name in sums:
            (partial / name).rename(folder / name)
        shutil.rmtree(partial)


def _make_room(need: int, keep: Path) -> None:
    """Delete cached corpora that are not in use, the least recently opened first, until need fits.

    Raises:
        CorpusError: the disk is too full even so.
    """
    others = sorted(keep.parent.glob("*.lock"), key=lambda lock: lock.stat().st_mtime)
    for lock in others:
        if shutil.disk_usage(keep.parent).free >= need * MARGIN:
            return
        if lock != keep.with_suffix(".lock"):
            _delete_closed(lock)
    free = shutil.disk_usage(keep.parent).free
    if free < need * MARGIN:
        raise CorpusError(
            f"Not enough free disk for a copy of the corpus at {keep.parent}: {free:,} bytes free, "
            f"about {int(need * MARGIN):,} needed; free some space, or set TMPDIR to a larger disk."
        )


def _delete_closed(lock: Path) -> None:
    """Delete a cached corpus, unless a process has it open or is fetching it."""
    try:
        with FileLock(lock, timeout=0):
            if delete_unused(lock.with_suffix("")):
                shutil.rmtree(lock.with_suffix(".partial"), ignore_errors=True)
    except Timeout:
        return
