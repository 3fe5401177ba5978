"""The command that explains a field of a study, corpus or task file."""

import json
from typing import Annotated, Any

import typer

from clue_ray.cli.options import Json, console
from clue_ray.errors import SpecError
from clue_ray.spec.columns import COLUMNS
from clue_ray.spec.yaml import Spec


def explain(
    field: Annotated[
        str | None,
        typer.Argument(
            metavar="FIELD",
            help="Dotted name, such as base.sequence_length, or its last part alone.",
            show_default="list all fields",
        ),
    ] = None,
    of: Annotated[
        str, typer.Option(help="The file that has the field: study, corpus or task.")
    ] = "study",
    as_json: Json = False,
) -> None:
    """Explain a field of a study file: its meaning, values, default, and where it is used."""
    from clue_ray.spec.describe import all_fields, describe_field

    spec = files().get(of)
    if spec is None:
        raise SpecError(f"--of is {of!r}; give one of {', '.join(files())}.")
    names = [field] if field else all_fields(spec)
    found = [describe_field(spec, name) for name in names]
    if as_json:
        return print(json.dumps([each._asdict() for each in found], default=str))
    for each in found:
        if field is None:
            console.print(f"{each.path}: {each.meaning or each.type}", highlight=False)
        else:
            console.print(_page(each), highlight=False)
    return None


def files() -> dict[str, type[Spec]]:
    """Return the classes of the files that a user writes, by what the file is."""
    from clue_ray.spec.specs import CorpusSpec, StudySpec
    from clue_ray.transfer.tasks.spec import TaskSpec

    return {"study": StudySpec, "corpus": CorpusSpec, "task": TaskSpec}


def _page(found: Any) -> str:
    default = "none, the field is required" if found.required else _written(found.default)
    lines = [found.path, f"  meaning  {found.meaning}", f"  values   {found.type}"]
    lines.append(f"  default  {default}")
    if found.column:
        column = COLUMNS[found.column]
        axis = "; an axis of the laws" if column.axis else ""
        lines.append(f"  used in  column {column.name} of the runs table ({column.label}){axis}")
    if found.fields:
        lines.append(f"  fields   {', '.join(found.fields)}")
    return "\n".join(line for line in lines if line.split(None, 1)[1:] or line == found.path)


def _written(value: Any) -> str:
    """Write a default as YAML has it."""
    if value is None:
        return "null"
    return json.dumps(value) if not isinstance(value, str) else value
