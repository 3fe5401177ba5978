"""What travels to a cluster: this package as it lies here, the study and its tasks. All else must
be there already.
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
MOST_BYTES = 10_000_000
"""Code and study take a few hundred kilobytes; whatever takes more is data by mistake."""


def code_to_ship(folder: Path) -> list[str]:
    """List what makes this package importable elsewhere, installed or not: its code, and the name
    of its version.

    Args:
        folder: where to write the latter, as an installed package has it.
    """
    written = folder / f"clue_ray-{version('clue-ray')}.dist-info"
    written.mkdir()
    (written / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: clue-ray\nVersion: {version('clue-ray')}\n"
    )
    return [str(PACKAGE), str(written)]


def check_package(package: Path) -> None:
    """Refuse to ship a package that has grown by something else than code."""
    files = [
        file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    ]
    size = sum(file.stat().st_size for file in files)
    if size > MOST_BYTES:
        largest = max(files, key=lambda file: file.stat().st_size)
        raise ClusterError(
            f"The package to ship, {package}, holds {size:,} bytes, more than {MOST_BYTES:,}; move "
            f"data such as "
            f"{largest} out of it."
        )


def copy_study(file: str | Path, study: StudySpec, folder: Path) -> None:
    """Copy a study file, as study.yaml, and its tasks into a folder, where the study looks for
    them.
    """
    shutil.copyfile(file, folder / "study.yaml")
    for task in study.transfer:
        if not Path(task).is_absolute():
            (folder / task).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(task, folder / task)


def check_portable(study: StudySpec, storage: str) -> None:
    """Refuse places that a cluster cannot find: relative ones, and storage with a password in it.

    Raises:
        SpecError: the study, one of its tasks or --storage names one.
        StudyError: a URI holds a password.
    """
    for task in study.transfer:
        if ".." in Path(task).parts:
            raise SpecError(
                f"transfer names {task}, which cannot travel; submit from a folder above it."
            )
    for name, place in _named_places(study, storage):
        scheme = place.split("://")[0] if is_uri(place) else ""
        if scheme and scheme not in SCHEMES:
            raise SpecError(f"{name} has the unknown scheme {scheme!r}; use {', '.join(SCHEMES)}.")
        if scheme:
            check_no_secret(place)
        if not scheme and not Path(place).is_absolute():
            raise SpecError(
                f"{name} is {place!r}, a path of this machine's working folder, which no cluster "
                f"sees; give a URI such "
                "as s3://bucket/folder, or the absolute path of a disk that all nodes share."
            )


def _named_places(study: StudySpec, storage: str) -> Iterator[tuple[str, str]]:
    """List the places a study reads and writes, each with what names it."""
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
    """List the files that preparing a corpus reads, each with what names it."""
    for log in logs_of(corpus):
        yield from ((f"{owner}events {place}", place) for place in log.places)
    if corpus.tokenizer:
        yield f"{owner}tokenizer", corpus.tokenizer
