"""`python -m clue_ray` is `clue-ray`, also where only the package was shipped, without its
script.
"""

from clue_ray.cli.main import main

main()
