"""Build the API reference of all names in `clue_ray.__all__`: `make docs`."""

import argparse
from pathlib import Path

import pdoc

import clue_ray


def main() -> None:
    """Write the reference as HTML."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/api"))
    output = parser.parse_args().output
    # pdoc reads the namespace of the module, and the names of clue_ray are loaded on first use.
    for name in clue_ray.__all__:
        setattr(clue_ray, name, getattr(clue_ray, name))
    pdoc.render.configure(docformat="google")
    pdoc.pdoc("clue_ray", output_directory=output)
    print(output / "clue_ray.html")


if __name__ == "__main__":
    main()
