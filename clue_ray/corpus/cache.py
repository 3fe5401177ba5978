"""The corpora that this node has fetched from storage: what is fetched when, checked and deleted.

A node fetches what training needs: the manifest, the tokenizer, the profile and the training
layout. Shards are fetched by those who read texts, or where the corpus has no layout yet.

The cache is bounded by its disk. If the disk is too full for another corpus, those that were opened
least recently are deleted first; processes that have mapped one keep what they mapped.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from clue_ray.corpus.hashes import sha256
from clue_ray.corpus.layout.arrays import assemble, read_layout, read_recipe
from clue_ray.corpus.layout.opening import LAYOUT, PARTS
from clue_ray.errors import CorpusError
from clue_ray.storage.files import fetch_files, list_files
from clue_ray.storage.sync import node_folder

TRAINING_FILE = re.compile(
    r"(corpus|profile|tokenizer)\.json|"
    rf"{LAYOUT}/((recipe|layout)\.json|[a-z_]+\.(i4|i8|f8|arrow)|{PARTS}/[a-z_]+-\d+)"
)
"""Names that are fetched or copied; other names on storage are not trusted as local paths."""
SHARD_FILE = re.compile(r"(shards|items|later)/shard-\d+\.parquet")
MARGIN = 1.1
"""Bytes that must be free per byte to fetch."""


def find_damage(folder: Path, manifest: dict[str, Any], *, whole: bool = True) -> str:
    """Describe the first file that differs from the manifest; return "" if none does.

    Args:
        whole: whether a missing shard is damage; a cache need not hold them.
    """
    files = {"tokenizer.json": manifest["tokenizer_sha256"], **manifest["files"]}
    for name, expected in files.items():
        if not whole and SHARD_FILE.fullmatch(name) and not (folder / name).exists():
            continue
        if damage := _compare(folder, name, expected):
            return damage
    layout = read_layout(folder / LAYOUT, manifest["digest"])
    return layout.find_damage() if layout else ""


def _compare(folder: Path, name: str, expected: str) -> str:
    found = sha256(folder / name) if (folder / name).exists() else "file missing"
    if found == expected:
        return ""
    return f"{name} is damaged (sha256 {found[:12]}, expected {expected[:12]})"


def open_cached(place: str, content: bytes, manifest: dict[str, Any], *, verify: bool) -> Path:
    """Return this node's folder of the corpus at a URI; the first process of the node fetches it.

    Args:
        content: corpus.json as it is at the URI.

    Raises:
        CorpusError: a file differs from the manifest, or the disk is too full.
    """
    # The cache is keyed by content, not by place: a corpus that is prepared again is fetched again.
    folder = node_folder("corpora") / hashlib.sha256(content).hexdigest()[:16]
    lock = folder.with_suffix(".lock")
    with FileLock(lock):
        os.utime(lock)  # says when the corpus was last opened
        if _is_cut_short(folder, manifest) or (
            folder.exists() and verify and find_damage(folder, manifest, whole=False)
        ):
            shutil.rmtree(folder)  # processes that have mapped its files keep them
        if not folder.exists():
            fetch_corpus(place, manifest, folder)
    return folder


def _is_cut_short(folder: Path, manifest: dict[str, Any]) -> bool:
    layout = read_layout(folder / LAYOUT, manifest["digest"])
    return layout is not None and not layout.is_whole()


def fetch_corpus(place: str, manifest: dict[str, Any], folder: Path) -> None:
    """Fetch what training needs into a folder, which appears once it is complete.

    Raises:
        CorpusError: a file differs from the manifest, or the disk is too full.
    """
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process; the caller has the lock
    files = list_files(place)
    wanted = [name for name in files if TRAINING_FILE.fullmatch(name)]
    if not any(name.startswith(f"{LAYOUT}/") for name in wanted):  # of an earlier version
        wanted += [name for name in files if SHARD_FILE.fullmatch(name)]
    parts = f"{LAYOUT}/{PARTS}/"  # they are there twice while the arrays are assembled
    _make_room(sum(files[name][0] * (1 + name.startswith(parts)) for name in wanted), folder)
    fetch_files(place, wanted, partial)
    if damage := _find_bad_part(partial) or find_damage(partial, manifest, whole=False):
        raise CorpusError(
            f"Corpus file {damage} at {place}; delete the corpus there and prepare it again."
        )
    if recipe := read_recipe(partial / LAYOUT):
        (partial / LAYOUT / PARTS).rename(partial / PARTS)
        assemble(partial / PARTS, recipe, partial / LAYOUT)
        shutil.rmtree(partial / PARTS)
    partial.rename(folder)


def _find_bad_part(folder: Path) -> str:
    """Describe the first part of a layout that differs from its recipe."""
    recipe = read_recipe(folder / LAYOUT)
    files = recipe.files if recipe else {}
    damage = (_compare(folder, f"{LAYOUT}/{PARTS}/{name}", found) for name, found in files.items())
    return next(filter(None, damage), "")


def fetch_shards(place: str, manifest: dict[str, Any], folder: Path, kind: str) -> None:
    """Fetch the files of one kind (`shards`, `items`, `later`) that a cached corpus lacks.

    Raises:
        CorpusError: a file differs from the manifest, or the disk is too full.
    """
    with FileLock(folder.with_suffix(".lock")):
        missing = {
            name: size
            for name, (size, _) in list_files(place).items()
            if SHARD_FILE.fullmatch(name)
            and name.startswith(f"{kind}/")
            and not (folder / name).exists()
        }
        _make_room(sum(missing.values()), folder)
        fetch_files(place, missing, folder)
        if damage := find_damage(folder, manifest, whole=False):
            raise CorpusError(
                f"Corpus file {damage} at {place}; delete the corpus there and prepare it again."
            )


def _make_room(need: int, keep: Path) -> None:
    """Delete cached corpora, the least recently opened first, until the disk has room.

    Raises:
        CorpusError: the disk is too full even so.
    """
    others = sorted(keep.parent.glob("*.lock"), key=lambda lock: lock.stat().st_mtime)
    for lock in others:
        if shutil.disk_usage(keep.parent).free >= need * MARGIN:
            return
        if lock != keep.with_suffix(".lock"):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    free = shutil.disk_usage(keep.parent).free
    if free < need * MARGIN:
        raise CorpusError(
            f"Not enough free disk for a copy of the corpus at {keep.parent}: {free:,} bytes free, "
            f"about {int(need * MARGIN):,} needed; free some space, or set TMPDIR to a larger disk."
        )
