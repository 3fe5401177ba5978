"""What a job sends to a cluster: this package's code, the study file and its task files.

Everything else, such as logs, corpora and results, must already be where the cluster can reach it.
"""

import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from clue_ray.corpus.logs.schema import logs_of
from clue_ray.errors import ClusterError, SpecError
from clue_ray.spec.specs import CorpusSpec, StudySpec
from clue_ray.storage.place import SCHEMES, check_no_secret, is_uri
from clue_ray.transfer.tasks.spec import read_tasks

PACKAGE = Path(__file__).parents[1]
MAX_BYTES = 10_000_000
"""Code and study take a few hundred kilobytes; anything larger is data, shipped by mistake."""


def code_to_ship(folder: Path) -> list[str]:
    """List the paths that make this package importable on a cluster, installed here or not.

    Args:
        folder: where to write the package's metadata, from which it reads its own version.
    """
    metadata = folder / f"clue_ray-{version('clue-ray')}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: clue-ray\nVersion: {version('clue-ray')}\n"
    )
    return [str(PACKAGE), str(metadata)]


def copy_study(file: str | Path, study: StudySpec, folder: Path) -> None:
    """Copy a study file, as study.yaml, and its task files to the same relative paths in a folder.

    An absolute path of a task is read on the cluster, so that file is not copied.
    """
    shutil.copyfile(file, folder / "study.yaml")
    for task in study.transfer:
        if not Path(task).is_absolute():
            (folder / task).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(task, folder / task)


def check_package(package: Path) -> None:
    """Raise ClusterError if the package's folder is too large to be only code."""
    files = [
        file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    ]
    size = sum(file.stat().st_size for file in files)
    if size > MAX_BYTES:
        largest = max(files, key=lambda file: file.stat().st_size)
        raise ClusterError(
            f"The package to ship, {package}, holds {size:,} bytes, more than {MAX_BYTES:,}; "
            f"move data such as {largest} out of it."
        )


def check_portable(study: StudySpec, storage: str) -> None:
    """Check that a cluster can reach every place that a study names.

    Raises:
        SpecError: the study, one of its tasks or --storage names a relative path or a URI with an
            unknown scheme.
        StudyError: a URI holds a secret.
    """
    for task in study.transfer:
        if ".." in Path(task).parts:
            raise SpecError(
                f"transfer names {task}, which cannot be shipped; submit from a folder above it."
            )
    for name, place in _named_places(study, storage):
        _check_place(name, place)


def _check_place(name: str, place: str) -> None:
    if not is_uri(place):
        if not Path(place).is_absolute():
            raise SpecError(
                f"{name} is {place!r}, a path of this machine's working folder, which no cluster "
                "sees; give a URI such as s3://bucket/folder, or the absolute path of a disk that "
                "all nodes share."
            )
        return
    scheme = place.split("://")[0]
    if scheme not in SCHEMES:
        raise SpecError(f"{name} has the unknown scheme {scheme!r}; use {', '.join(SCHEMES)}.")
    check_no_secret(place)


def _named_places(study: StudySpec, storage: str) -> Iterator[tuple[str, str]]:
    """Yield the places that a study reads and writes, each with the key or option that names it."""
    yield "--storage", storage
    if study.resources.checkpoints:
        yield "resources.checkpoints", study.resources.checkpoints
    if isinstance(study.corpus, str):
        yield "corpus", study.corpus
    else:
        yield from _log_places("corpus.", study.corpus)
    for task in read_tasks(study.transfer):
        yield from _log_places(f"task {task.name}: ", task.reading())
        if task.attribute and not task.attribute.table.startswith("package:"):
            yield f"task {task.name}: attribute.table", task.attribute.table


def _log_places(owner: str, corpus: CorpusSpec) -> Iterator[tuple[str, str]]:
    """Yield the files that the preparation of a corpus reads, each with the key that names it."""
    for log in logs_of(corpus):
        yield from ((f"{owner}events {place}", place) for place in log.places)
    if corpus.tokenizer:
        yield f"{owner}tokenizer", corpus.tokenizer
