"""Known vulnerabilities of pinned packages, from a database of OSV, without network.

The database is the archive of one ecosystem that osv.dev publishes: a zip of one JSON file per
advisory. It is not in the repository, since it changes every day.
"""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version


def read_pins(constraints: str) -> dict[str, str]:
    """Return name -> version of the pinned packages of a constraints file."""
    lines = (line.partition("#")[0].strip() for line in constraints.splitlines())
    pairs = (line.split(";")[0].split("==") for line in lines if "==" in line)
    return {canonicalize_name(name.strip()): version.strip() for name, version in pairs}


def find_vulnerable(pins: dict[str, str], database: Path) -> list[str]:
    """List the advisories, not withdrawn, that name a pinned version: `id package version`."""
    found = []
    for advisory in _read(database):
        if "withdrawn" in advisory:
            continue
        for affected in advisory.get("affected", []):
            package = affected.get("package", {})
            name = canonicalize_name(package.get("name", ""))
            if package.get("ecosystem") == "PyPI" and name in pins and _hits(affected, pins[name]):
                found.append(f"{advisory['id']} {name} {pins[name]}")
    return sorted(set(found))


def _read(database: Path) -> Iterator[dict[str, Any]]:
    with zipfile.ZipFile(database) as archive:
        for name in archive.namelist():
            yield json.loads(archive.read(name))


def _hits(affected: dict[str, Any], version: str) -> bool:
    """Return whether a version is listed, or in a range from `introduced` to before `fixed`."""
    if version in affected.get("versions", []):
        return True
    ranges = (r["events"] for r in affected.get("ranges", []) if r["type"] == "ECOSYSTEM")
    return any(_within(events, Version(version)) for events in ranges)


def _within(events: list[dict[str, str]], version: Version) -> bool:
    """Follow the events of a range up to a version; the last one before it decides."""
    inside = False
    for kind, at in sorted(((*event.items(),)[0] for event in events), key=_place):
        if kind == "introduced" and (at == "0" or _at_least(version, at)):
            inside = True
        elif (kind == "fixed" and _at_least(version, at)) or (
            kind == "last_affected" and _at_least(version, at) and version != Version(at)
        ):
            inside = False
    return inside


def _place(event: tuple[str, str]) -> tuple[Version, bool]:
    """Return a sort key: by version, an end before a start; what cannot be read comes first."""
    try:
        return Version(event[1]), event[0] == "introduced"
    except InvalidVersion:
        return Version("0"), True


def _at_least(version: Version, bound: str) -> bool:
    try:
        return version >= Version(bound)
    except InvalidVersion:
        return False
