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
    "corpus/prepare.py",
    "corpus/planting.py",
    "training/distributed.py",
    "study/execute.py",
    "study/pools.py",
    "study/progress.py",
    "study/scoring.py",
    "study/storage.py",
    "study/timing.py",
    "study/trial.py",
    "study/tuning.py",
    "study/session.py",
    "transfer/embed.py",
    "jobserver.py",
    "submit.py",
}
LAYERS = {
    "errors": 0, "documents": 0.5, "spec": 1, "compute": 2, "runs": 2, "corpus": 3, "encoder": 4, "training": 5,
    "transfer": 6, "study": 7, "scaling": 3, "report": 4, "jobserver": 4, "shipping": 7, "submit": 7.5, "cli": 8,
    "__init__": 9, "__main__": 9,
}  # fmt: skip


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
            assert LAYERS[other] < LAYERS[room(path)] or other == room(path), f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_ray_stays_in_its_rooms(path):
    uses_ray = any(name == "ray" or name.startswith("ray.") for name in imports(path))
    assert not uses_ray or str(path.relative_to(ROOT)) in RAY_HOMES


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_short_and_open_with_a_docstring(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert not text.strip() or ast.get_docstring(ast.parse(text))


def test_public_names_are_sorted_and_exist():
    assert clue_ray.__all__ == sorted(clue_ray.__all__)
    for name in clue_ray.__all__:
        assert getattr(clue_ray, name) is not None


def test_fitting_loads_neither_torch_nor_ray():
    code = "import sys, clue_ray; clue_ray.fit_law, clue_ray.write_report; print({'torch', 'ray'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
