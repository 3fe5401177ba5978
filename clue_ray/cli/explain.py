"""The command that explains a field of a file that a user writes, or a column of the runs table."""

import json
from typing import Annotated, Any

import typer

from clue_ray.cli.options import Json, console
from clue_ray.errors import SpecError
from clue_ray.runs import SCORES
from clue_ray.spec.columns import COLUMNS
from clue_ray.spec.yaml import Spec

USED_BY = {
    "study": {
        "name": "the folder of its results and the title of the page (run, report)",
        "question": "the top of the page (report)",
        "corpus": "preparing the log (plan, run, train)",
        "base.encoder": "building the encoder (run, train)",
        "base.train": "training each run (run, train)",
        "base": "drawing users and their histories for training (run, train)",
        "axes": "listing the runs (plan, run)",
        "isoflop": "choosing sizes for axes.budgets (plan, run)",
        "evaluation": "scoring runs on held-out users during and after training (run, train)",
        "resources": "placing runs and their workers on the cluster (plan, run, train)",
        "fit": "fitting laws for the page (run, report)",
        "transfer": "evaluating finished runs on downstream tasks (run)",
        "trackers": "sending runs and the page once they are done (run)",
    },
    "corpus": {"": "preparing the log (prepare)"},
    "task": {"": "evaluating encoders on the task (transfer, run)"},
}
"""Stage that reads a field, and commands, by kind of file and section; the longest one counts."""


def explain(
    field: Annotated[
        str | None,
        typer.Argument(
            metavar="FIELD",
            help="Dotted name, such as base.sequence_length, or its end alone; or a column of the "
            "runs table.",
            show_default="list all fields",
        ),
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(
            help="The file that has the field: study, corpus or task.",
            show_default="the first that has it",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Explain a field of a study file, or a column of the runs table.

    It prints the meaning, the values, the default and where it is used.
    """
    from clue_ray.spec.describe import all_fields

    if of and of not in files():
        raise SpecError(f"--of is {of!r}; give one of {', '.join(files())}.")
    if field is None:
        found = [_described(of or "study", name) for name in all_fields(files()[of or "study"])]
    else:
        found = [each for name in field.split(",") for each in _find(name.strip(), of)]
    if as_json:
        return print(json.dumps([each._asdict() for each in found], default=str))
    for each in found:
        line = f"{each.path}: {each.meaning or each.type}" if field is None else _page(each)
        console.print(line, highlight=False, markup=False)
    return None


def _find(name: str, of: str | None) -> list[Any]:
    """Describe what a name means: fields of the first file that has it, or else a column.

    Raises:
        SpecError: it means nothing.
    """
    from clue_ray.spec.describe import describe_column, find_fields, similar_field

    kinds = [of] if of else list(files())
    for kind in kinds:
        if found := find_fields(files()[kind], name):
            return [_described(kind, path) for path in found]
    score = name.startswith(SCORES)
    if column := describe_column(name, "score of a downstream task" if score else ""):
        return [column]
    similar = similar_field([files()[kind] for kind in kinds], name)
    hint = f"did you mean {similar!r}?" if similar else "`clue-ray explain` lists all."
    raise SpecError(f"There is no field or column {name!r}; {hint}")


def _described(kind: str, path: str) -> Any:
    """Describe a field of a kind of file, and what uses it."""
    from clue_ray.spec.describe import describe_field

    uses = USED_BY[kind]
    sections = [name for name in uses if not name or f"{path}.".startswith(f"{name}.")]
    found = describe_field(files()[kind], path)
    return found._replace(used_by=uses[max(sections, key=len)])


def files() -> dict[str, type[Spec]]:
    """Return the classes of the files that a user writes, by what the file is."""
    from clue_ray.spec.specs import CorpusSpec, StudySpec
    from clue_ray.transfer.tasks.spec import TaskSpec

    return {"study": StudySpec, "corpus": CorpusSpec, "task": TaskSpec}


def _page(found: Any) -> str:
    lines = [found.path, f"  meaning  {found.meaning}", f"  values   {found.type}"]
    inner = ", ".join(found.fields)
    if found.path == found.column:
        lines += ["  used in  the runs table", f"  set by   {inner}"]
    else:
        default = "none, the field is required" if found.required else _written(found.default)
        lines += [
            f"  default  {default}",
            f"  used by  {found.used_by}",
            f"  column   {_column(found)}",
            f"  fields   {inner}",
        ]
    return "\n".join(line for line in lines if line[11:].strip() or line == found.path)


def _column(found: Any) -> str:
    """Say which column of the runs table records a field; nothing where none does."""
    if not found.column:
        return ""
    column = COLUMNS[found.column]
    axis = "; an axis of the laws" if column.axis else ""
    return f"{column.name} of the runs table ({column.label}){axis}"


def _written(value: Any) -> str:
    """Write a default as YAML has it."""
    if value is None:
        return "null"
    return json.dumps(value) if not isinstance(value, str) else value
