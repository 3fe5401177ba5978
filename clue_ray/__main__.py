"""Run `clue-ray` as `python -m clue_ray`, also where the package was shipped without its script."""

from clue_ray.cli.main import main

main()
