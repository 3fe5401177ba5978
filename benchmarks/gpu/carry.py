"""Collect what the acceptance command needs where torch is and no package index is reached.

    python -m benchmarks.gpu.carry [--python 3.12] [--output build/carry]

The machine is expected to have torch with CUDA, triton, numpy, pandas, pyarrow, scipy, matplotlib,
tokenizers and safetensors. Everything else is packed into one archive; Ray without what no phase
uses. There, in the checkout:

    mkdir -p /tmp/carry && tar xzf build/carry.tar.gz -C /tmp/carry
    PYTHONPATH=.:/tmp/carry python3 -m benchmarks.gpu --output RESULTS

and here, with what it wrote, `python -m benchmarks.gpu.table RESULTS`, which writes docs/gpu.md.
"""

import argparse
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

CARRIED = (
    "ray",
    "msgpack",
    "jsonschema",
    "jsonschema-specifications",
    "referencing",
    "rpds-py",
    "attrs",
    "requests",
    "urllib3",
    "idna",
    "certifi",
    "charset-normalizer",
    "packaging",
    "protobuf",
    "filelock",
    "fsspec",
    "click",
    "pydantic",
    "pydantic-core",
    "annotated-doc",
    "annotated-types",
    "typing-inspection",
    "typing-extensions",
    "pyyaml",
    "typer",
    "rich",
    "markdown-it-py",
    "mdurl",
    "pygments",
    "shellingham",
    "jinja2",
    "markupsafe",
    "tensorboard",
    "absl-py",
    "markdown",
    "werkzeug",
    "tensorboardx",
)
UNUSED = (
    "ray/jars",
    "ray/rllib",
    "ray/serve",
    "ray/llm",
    "ray/dashboard/client",
    "ray/tests",
    "ray/cpp",
    "tensorboard/webfiles.zip",
)
"""Parts of Ray and TensorBoard that no phase imports: more than half of their bytes."""


def main() -> None:
    """Install, trim and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--output", type=Path, default=Path("build/carry"))
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)
    _install(args.output, args.python)
    for name in UNUSED:
        path = args.output / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    _describe_package(args.output)
    packed = shutil.make_archive(str(args.output), "gztar", args.output)
    print(f"{args.output}: {Path(packed).stat().st_size / 2**20:.0f} MiB packed, as {packed}")


def _install(folder: Path, python: str) -> None:
    """Install wheels for another version of Python, at the versions of this environment."""
    platforms = [f"manylinux{name}_x86_64" for name in ("2014", "_2_17", "_2_28", "_2_34")]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"),
            *("--target", str(folder), "--python-version", python, "--only-binary=:all:"),
            *(part for name in platforms for part in ("--platform", name)),
            # As they are here: constraints.txt names direct dependencies, whose own are exact pins.
            *(f"{name}=={version(name)}" for name in CARRIED),
        ],
        check=True,
    )


def _describe_package(folder: Path) -> None:
    """Write what `importlib.metadata.version("clue-ray")` reads; the checkout is not installed."""
    info = folder / "clue_ray-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clue-ray\nVersion: 0.1.0\n")


if __name__ == "__main__":
    main()
