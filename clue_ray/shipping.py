"""The code that travels to a cluster with a study: this package, as it lies here, and the name of its version."""

from importlib.metadata import version
from pathlib import Path

from clue_ray.errors import ClusterError

PACKAGE = Path(__file__).parent
MOST_BYTES = 10_000_000
"""Code and study take a few hundred kilobytes; whatever takes more is data by mistake."""


def code_to_ship(folder: Path) -> list[str]:
    """List what makes this package importable elsewhere, installed or not: its code, and the name of its version.

    Args:
        folder: where to write the latter, as an installed package has it.
    """
    written = folder / f"clue_ray-{version('clue-ray')}.dist-info"
    written.mkdir()
    (written / "METADATA").write_text(f"Metadata-Version: 2.1\nName: clue-ray\nVersion: {version('clue-ray')}\n")
    return [str(PACKAGE), str(written)]


def check_package(package: Path) -> None:
    """Refuse to ship a package that has grown by something else than code."""
    files = [file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    size = sum(file.stat().st_size for file in files)
    if size > MOST_BYTES:
        largest = max(files, key=lambda file: file.stat().st_size)
        raise ClusterError(
            f"The package to ship, {package}, holds {size:,} bytes, more than {MOST_BYTES:,}; move data such as "
            f"{largest} out of it."
        )
