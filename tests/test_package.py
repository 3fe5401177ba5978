"""The package keeps its shape: rooms, floors, public names and file lengths."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import clue_ray

ROOT = Path(clue_ray.__file__).parent
REPOSITORY = ROOT.parent
MODULES = sorted(ROOT.rglob("*.py"))
MOST_LINES = 400
RAY_HOMES = {
    "corpus/build.py",
    "corpus/layout/on_nodes.py",
    "corpus/planted.py",
    "corpus/sharing.py",
    "training/ray_train.py",
    "cluster/asking.py",
    "training/streams.py",
    "cluster/session.py",
    "study/doctor.py",
    "study/run.py",
    "study/metrics.py",
    "study/observer.py",
    "study/patience.py",
    "study/progress.py",
    "study/scoring.py",
    "study/probes.py",
    "study/costs.py",
    "study/trial.py",
    "study/tune.py",
    "transfer/embed/pipeline.py",
    "jobs/server.py",
    "jobs/submit.py",
}
FLOORS = [
    ["errors"],
    ["spec", "storage"],
    ["runs"],
    ["scaling", "corpus", "foreign"],
    ["report", "batches"],
    ["encoder"],
    ["training"],
    ["transfer", "cluster"],
    ["study"],
    ["jobs"],
    ["cli"],
    ["__init__", "__main__"],
]
"""Rooms from the ground up. A room imports only from floors below its own."""
ORDERS = {
    "scaling": [["laws"], ["fitting"], ["judging"], ["forecasting"], ["deciding"], ["answering"]],
    "report": [["figures"], ["sections"], ["page"]],
}
"""Parts of a room from the ground up. A part imports no part above its own."""


def _dotted(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {_dotted(path): path for path in MODULES}
IDS = [str(path.relative_to(ROOT)) for path in MODULES]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> set[str]:
    """Collect what a file imports anywhere: lazily in functions and for type checking too.

    `from a import b` counts as `a.b` where that is a module of the package, otherwise as `a`."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in NAMES else node.module for name in inner}
    return found


def own_imports(path: Path) -> set[str]:
    return {name for name in imports(path) if name == "clue_ray" or name.startswith("clue_ray.")}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def floors(order: list[list[str]]) -> dict[str, int]:
    return {name: floor for floor, names in enumerate(order) for name in names}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """List every module from which a chain of imports leads back to itself, with the chain."""

    def way(here: str, goal: str, seen: set[str]) -> list[str] | None:
        for there in sorted(graph.get(here, ())):
            if there == goal:
                return [here, there]
            if there not in seen:
                seen.add(there)
                if rest := way(there, goal, seen):
                    return [here, *rest]
        return None

    return [found for start in sorted(graph) if (found := way(start, start, set()))]


def uses(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) for every name of the package's modules that a file uses.

    Counts `from a.b import f`, `c.f` after `import a.b as c` or `from a import b as c`, and
    `setattr(c, "f", ...)` in tests."""
    modules = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if f"{node.module}.{alias.name}" in NAMES:
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield node.module, alias.name
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and (module := modules.get(ast.unparse(node.value))):
            yield module, node.attr
        elif isinstance(node, ast.Call):
            match node.args:
                case [owner, ast.Constant(value=str(name)), *_] if ast.unparse(owner) in modules:
                    yield modules[ast.unparse(owner)], name


def all_files() -> list[Path]:
    folders = [ROOT, *(REPOSITORY / name for name in ("tests", "benchmarks", "paper"))]
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


@cache
def used() -> dict[str, set[str]]:
    """Names used outside their own file, by module, exported ones included."""
    found = defaultdict(set)
    for path in all_files():
        for module, name in uses(path):
            if NAMES.get(module) != path:
                found[module].add(name)
    for name, module in clue_ray._HOMES.items():
        found[module].add(name)
    return found


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_point_one_way(path):
    floor = floors(FLOORS)
    for name in own_imports(path):
        other = [*name.split("."), "__init__"][1]
        assert floor[other] < floor[room(path)] or other == room(path), f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_parts_of_a_room_are_in_order(path):
    floor = floors(ORDERS.get(room(path), []))
    part = path.relative_to(ROOT).with_suffix("").parts[1:2]
    if not part or part[0] not in floor:
        return
    for name in own_imports(path):
        other = name.split(".")[1:3]
        if len(other) == 2 and other[0] == room(path) and other[1] in floor:
            assert floor[other[1]] <= floor[part[0]], f"{path} imports {name}"


def test_no_modules_import_each_other():
    graph = {name: own_imports(path) - {"clue_ray"} for name, path in NAMES.items()}
    assert circles(graph) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})[0] == ["a", "b", "c", "a"]


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_public_functions_are_used_elsewhere_or_exported(path):
    public = [
        node.name
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_"
    ]
    alone = sorted(set(public) - used()[_dotted(path)])
    assert not alone, (
        f"used only in {path.relative_to(ROOT)}, so name it with an underscore: {alone}"
    )


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_ray_stays_in_its_rooms(path):
    uses_ray = any(name == "ray" or name.startswith("ray.") for name in imports(path))
    assert not uses_ray or str(path.relative_to(ROOT)) in RAY_HOMES


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_files_stay_short_and_open_with_a_docstring(path):
    lines = path.read_text().count("\n")
    assert lines <= MOST_LINES
    assert ast.get_docstring(tree(path))


def test_public_names_are_sorted_and_exist():
    assert clue_ray.__all__ == sorted(clue_ray.__all__)
    for name in clue_ray.__all__:
        assert getattr(clue_ray, name) is not None


def test_fitting_loads_neither_torch_nor_ray_and_its_name_nothing_slow():
    code = (
        "import sys, clue_ray; clue_ray.fit_law; "
        "print({'pandas', 'scipy', 'matplotlib', 'pyarrow'} & set(sys.modules)); "
        "clue_ray.write_report; print({'torch', 'ray'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["set()", "set()"]
