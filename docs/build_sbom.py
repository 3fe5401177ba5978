"""Write a CycloneDX bill of materials of the packages: `make sbom`, build/sbom.json.

The versions are those of constraints.txt, which the tests ran with; a package that is declared and
not pinned has none. Packages that those need in turn and that nothing pins are not listed.
"""

import argparse
import json
import re
import tomllib
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", re.MULTILINE)
NAME = re.compile(r"[A-Za-z0-9._-]+")
FOR_DEVELOPERS = ("dev", "docs")
"""Extras whose packages are no part of what runs."""


def bill(constraints: str, project: dict[str, Any]) -> dict[str, Any]:
    """Return the bill of materials; the same input gives the same document.

    Args:
        constraints: the text of constraints.txt.
        project: the project table of pyproject.toml.
    """
    scopes = _scopes(project)
    pins = {_normal(name): version for name, version in PIN.findall(constraints)}
    components = [
        {**_component(name, pins.get(name)), "scope": scopes.get(name, "required")}
        for name in sorted({*pins, *scopes})
    ]
    own = _component(project["name"], project["version"]) | {"licenses": _licence(project)}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([own, components])).urn,
        "version": 1,
        "metadata": {"component": own},
        "components": components,
    }


def _scopes(project: dict[str, Any]) -> dict[str, str]:
    """Return the scope of each declared package; others are needed by one of them."""
    scopes: dict[str, str] = {}
    for extra, needs in project["optional-dependencies"].items():
        scope = "excluded" if extra in FOR_DEVELOPERS else "optional"
        for need in needs:  # what a user's extra needs, too, is not for developers alone
            if scopes.get(_requirement(need)) != "optional":
                scopes[_requirement(need)] = scope
    return scopes | {_requirement(need): "required" for need in project["dependencies"]}


def _requirement(text: str) -> str:
    found = NAME.match(text)
    assert found, text
    return _normal(found[0])


def _normal(name: str) -> str:
    """Normalise a name as package indexes do."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _component(name: str, version: str | None) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version}" if version else f"pkg:pypi/{name}"
    versioned = {"version": version} if version else {}
    return {"type": "library", "bom-ref": purl, "name": name, **versioned, "purl": purl}


def _licence(project: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"license": {"id": project["license"]}}]


def main() -> None:
    """Write the bill of materials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "sbom.json")
    output: Path = parser.parse_args().output
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(bill(constraints, project), indent=1) + "\n", encoding="utf-8")
    print(output)


if __name__ == "__main__":
    main()
