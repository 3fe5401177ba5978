"""What is published: wheel and sdist, their metadata, the bill of materials, the site."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from docs.build_sbom import bill
from tests.vulnerabilities import read_pins

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
PUBLISHED = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md")
DATA = {".json", ".j2", ".js", ".css", ".typed"}
"""Endings of the files of the package that are not Python."""
MOST_BYTES = 200_000
"""Of a notebook with its outputs."""


def run(*command: object, cwd: Path, **more: str) -> str:
    """Run a command without the network and without this checkout on its path."""
    settings = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **more}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=kept | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, tree: Path, output: Path) -> Path:
    """Call the build backend in a tree, as pip does, with the setuptools of this environment."""
    output.mkdir(exist_ok=True)
    code = f"import setuptools.build_meta as b; b.build_{kind}({str(output)!r})"
    run(sys.executable, "-c", code, cwd=tree)
    (made,) = output.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that is built from the sdist of this checkout, and the sdist."""
    if find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    folder = tmp_path_factory.mktemp("build")
    tree = folder / "tree"
    tree.mkdir()
    for name in (*PUBLISHED, "CITATION.cff", "constraints.txt"):
        shutil.copy(ROOT / name, tree)
    caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "clue_ray", tree / "clue_ray", ignore=caches)
    sdist = build("sdist", tree, folder / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("wheel", unpacked, folder / "wheel"), unpacked


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel[0]) as archive:
        found = {name for name in archive.namelist() if name.startswith("clue_ray/")}
    files = (path for path in (ROOT / "clue_ray").rglob("*") if path.suffix in {".py", *DATA})
    assert found == {path.relative_to(ROOT).as_posix() for path in files}
    assert "clue_ray/py.typed" in found
    assert all((wheel[1] / name).is_file() for name in (*PUBLISHED, "CITATION.cff"))


@pytest.mark.slow
def test_the_wheel_runs_in_a_fresh_environment(wheel, tmp_path):
    place = tmp_path / "fresh"
    run(sys.executable, "-m", "venv", "--without-pip", place, cwd=tmp_path)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    run(*pip, "--no-deps", wheel[0], cwd=tmp_path)
    home = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    # Dependencies come from this environment; a path file does not bring its editable install.
    Path(home.strip(), "others.pth").write_text(sysconfig.get_path("purelib"))
    code = "import clue_ray, sys; print(clue_ray.__file__)"
    assert run(python, "-c", code, cwd=tmp_path).startswith(str(place))
    table = tmp_path / "runs.csv"
    points = ((10.0**n, 2 + 10 ** (1 - 0.1 * n)) for n in range(10, 16))
    table.write_text("flops,loss\n" + "\n".join(f"{x},{y}" for x, y in points))
    told = run(place / "bin" / "clue-ray", "fit", table, "--x", "flops", "--json", cwd=tmp_path)
    assert json.loads(told)["parameters"]["exponent"] == pytest.approx(0.1, rel=0.05)
    command = (place / "bin" / "clue-ray", "report", table, "--output", "pages", "--json")
    page = tmp_path / json.loads(run(*command, cwd=tmp_path))["report"]
    assert "<svg" in page.read_text()


def test_the_metadata_names_what_is_supported():
    assert PROJECT["requires-python"] == ">=3.11"
    supported = [line for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert supported == [f"Programming Language :: Python :: 3.{n}" for n in (11, 12, 13)]
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def declared() -> set[str]:
    """Names of the packages that pyproject.toml names, in the base and in every extra."""
    needs = chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    return {canonicalize_name(Requirement(need).name) for need in needs}


def test_the_bill_of_materials_lists_every_pin_and_every_declared_package():
    document = bill(CONSTRAINTS, PROJECT)
    listed = {part["name"]: part.get("version") for part in document["components"]}
    pins = read_pins(CONSTRAINTS)
    assert {name: listed[name] for name in pins} == pins
    assert set(listed) == declared() | set(pins)
    assert declared() - set(pins) == {"mlflow"}  # constraints.txt says why
    assert listed["mlflow"] is None
    scope = {part["name"]: part["scope"] for part in document["components"]}
    assert scope["numpy"] == scope["click"] == "required"
    assert scope["torch"] == "optional"
    assert scope["ruff"] == "excluded"
    assert all(part["purl"].startswith("pkg:pypi/") for part in document["components"])
    assert document == bill(CONSTRAINTS, PROJECT)
    assert document["serialNumber"] != bill("a==1", PROJECT)["serialNumber"]


def test_every_page_is_in_the_navigation_of_the_site():
    text = re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text())
    listed = set(re.findall(r"[\w/-]+\.md", json.dumps(yaml.safe_load(text)["nav"])))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert listed == pages


@pytest.mark.parametrize("book", sorted(ROOT.glob("docs/notebooks/*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_was_executed_as_it_is(book):
    cells = [c for c in json.loads(book.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result"}
    assert book.stat().st_size < MOST_BYTES
    assert str(ROOT) not in book.read_text()
    assert f"notebooks/{book.name}" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.slow
def test_the_notebook_on_other_runs_still_says_the_same(capsys):
    book = json.loads((ROOT / "docs" / "notebooks" / "other-runs.ipynb").read_text())
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    names: dict = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    printed = [
        "".join(output["text"])
        for cell in cells
        for output in cell["outputs"]
        if output["output_type"] == "stream"
    ]
    assert capsys.readouterr().out == "".join(printed)


@pytest.mark.slow
def test_the_site_has_no_broken_link(tmp_path):
    if find_spec("mkdocs") is None or find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed (clue-ray[docs])")
    api = ROOT / "build" / "api"
    if not api.is_dir():
        pytest.skip("build/api is missing; run make docs")
    site = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    run(*site, cwd=ROOT, NO_MKDOCS_2_WARNING="1")
    assert (tmp_path / "api" / "clue_ray.html").is_file()
    assert (tmp_path / "repository" / "clue_ray" / "runs.py" / "index.html").is_file()
