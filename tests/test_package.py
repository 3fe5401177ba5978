"""The package keeps its shape: layers, public names, file sizes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import clue_ray

ROOT = Path(clue_ray.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
RAY_HOMES = {
    "corpus/build.py",
    "corpus/planted.py",
    "training/ray_train.py",
    "cluster/session.py",
    "study/run.py",
    "study/progress.py",
    "study/scoring.py",
    "study/probes.py",
    "study/costs.py",
    "study/trial.py",
    "study/tune.py",
    "transfer/embed/embed.py",
    "jobs/server.py",
    "jobs/submit.py",
}
FLOORS = [
    ["errors"], ["spec", "storage"], ["runs"], ["scaling", "corpus"], ["report", "batches"], ["encoder"], ["training"],
    ["transfer", "cluster"], ["study"], ["jobs"], ["cli"], ["__init__", "__main__"],
]  # fmt: skip
"""Rooms from the ground up: a room imports from floors below its own."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(path: Path) -> set[str]:
    """Every module a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    for name in imports(path):
        if name == "clue_ray" or name.startswith("clue_ray."):
            other = [*name.split("."), "__init__"][1]
            assert FLOOR[other] < FLOOR[room(path)] or other == room(path), f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_ray_stays_in_its_rooms(path):
    uses_ray = any(name == "ray" or name.startswith("ray.") for name in imports(path))
    assert not uses_ray or str(path.relative_to(ROOT)) in RAY_HOMES


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_short_and_open_with_a_docstring(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert not text.strip() or ast.get_docstring(ast.parse(text))


def test_public_names_are_sorted_and_exist():
    assert clue_ray.__all__ == sorted(clue_ray.__all__)
    for name in clue_ray.__all__:
        assert getattr(clue_ray, name) is not None


def test_fitting_loads_neither_torch_nor_ray():
    code = "import sys, clue_ray; clue_ray.fit_law, clue_ray.write_report; print({'torch', 'ray'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
