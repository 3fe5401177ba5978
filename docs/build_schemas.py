"""Write the JSON Schemas of study, corpus and task files that editors read: `make schemas`."""

import json
from pathlib import Path

import clue_ray
from clue_ray.cli.explain import files
from clue_ray.spec.describe import json_schema

FOLDER = Path(clue_ray.__file__).parent / "schemas"


def texts() -> dict[str, str]:
    """Return the text of each schema by the name of its file."""
    return {
        f"{name}.schema.json": json.dumps(json_schema(spec, f"clue-ray {name} file"), indent=1)
        + "\n"
        for name, spec in files().items()
    }


def main() -> None:
    """Write the schemas into the package."""
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
