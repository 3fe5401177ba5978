"""No pinned package has a known vulnerability, where a database of them is at hand."""

import json
import os
import zipfile
from pathlib import Path

import pytest

from tests.vulnerabilities import find_vulnerable, read_pins

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
LOCKED = ROOT / "cluster" / "requirements.txt"
LAST = [{"introduced": "0"}, {"last_affected": "2.60.0"}]
DATABASE = "CLUE_RAY_OSV"
"""Environment variable: path of the archive PyPI/all.zip of osv.dev."""


def test_pinned_packages_have_no_known_vulnerability():
    database = os.environ.get(DATABASE)
    if not database:
        pytest.skip(f"{DATABASE} is not set to the archive PyPI/all.zip of osv.dev")
    locked = LOCKED.read_text().replace("\\\n", "\n")
    pins = read_pins(locked) | read_pins(CONSTRAINTS.read_text())
    assert len(pins) > 100
    assert find_vulnerable(pins, Path(database)) == []


def test_every_dependency_is_pinned_once():
    pins = read_pins(CONSTRAINTS.read_text())
    assert {"ray", "torch", "pyarrow", "tokenizers", "safetensors", "pyyaml"} <= set(pins)


@pytest.mark.parametrize(
    ("affected", "hit"),
    [
        ({"versions": ["2.60.0"]}, True),
        ({"versions": ["2.59.0"]}, False),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}]}, True),
        (
            {"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.60"}]}]},
            False,
        ),
        (
            {"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "2.8"}, {"fixed": "3"}]}]},
            True,
        ),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "3"}]}]}, False),
        (
            {"ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "2.1"}, {"introduced": "0"}]}]},
            False,
        ),
        (
            {"ranges": [{"type": "ECOSYSTEM", "events": LAST}]},
            True,
        ),
    ],
)  # fmt: skip
def test_an_advisory_is_matched_by_list_or_range(tmp_path, affected, hit):
    package = {"ecosystem": "PyPI", "name": "Ray"}
    database = tmp_path / "all.zip"
    advisories = {
        "PYSEC-1": {"id": "PYSEC-1", "affected": [{"package": package, **affected}]},
        "PYSEC-2": {
            "id": "PYSEC-2",
            "withdrawn": "2026-01-01T00:00:00Z",
            "affected": [{"package": package, "versions": ["2.60.0"]}],
        },
        "PYSEC-3": {
            "id": "PYSEC-3",
            "affected": [{"package": {"ecosystem": "npm", "name": "ray"}, "versions": ["2.60.0"]}],
        },
    }
    with zipfile.ZipFile(database, "w") as archive:
        for name, advisory in advisories.items():
            archive.writestr(f"{name}.json", json.dumps(advisory))
    found = find_vulnerable({"ray": "2.60.0"}, database)
    assert found == (["PYSEC-1 ray 2.60.0"] if hit else [])
