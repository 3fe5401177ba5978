"""Run `clue-ray` as `python -m clue_ray`, also where the package was shipped without its script."""

import os
import sys
from pathlib import Path

# `python -m` puts the current folder first on the import path, where a file such as numpy.py would
# hide the package of that name. It stays only if this package itself lies there.
_first_is_here = sys.path and os.path.abspath(sys.path[0]) == os.getcwd()
_package_is_here = Path(__file__).resolve().parents[1] == Path.cwd().resolve()
if not sys.flags.safe_path and _first_is_here and not _package_is_here:
    sys.path.pop(0)

from clue_ray.cli.main import main  # noqa: E402  (imported after the path is right)

main()
