"""Describe the fields of study, corpus and task files: meaning, type, default, JSON Schema.

The texts are the docstrings behind the fields of the specs, so a field is described in one place.
They are read from the source when they are asked for: importing a spec does not pay for it.
"""

import ast
import difflib
import inspect
import re
import textwrap
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple, get_args, get_origin

from pydantic_core import PydanticUndefined

from clue_ray.spec.columns import COLUMNS
from clue_ray.spec.grid import BUDGETS, axis_fields
from clue_ray.spec.yaml import Spec, spec_within

HORIZON = "exactly one of steps, users_seen and train_flops is given"
MEANINGS = {
    "width": "width of the token and event vectors",
    "item_layers": "transformer blocks over the tokens of an item",
    "service_layers": "transformer blocks over the events of a service",
    "heads": "attention heads; they divide the width",
    "steps": f"optimiser steps; {HORIZON}",
    "users_seen": f"users trained on, repeats counted; {HORIZON}",
    "train_flops": f"training compute in FLOP; {HORIZON}",
    "name": "what its results are called: letters, digits, '.', '_' and '-'",
    "question": "what it asks; the report shows it",
    **dict.fromkeys(
        ("events", "columns", "text", "timestamp_format", "separator"), "as in a corpus section"
    ),
    "weight_decay": "decay of the weight matrices, as in AdamW",
    "clip_norm": "largest norm of a gradient; longer ones are scaled to it",
    "seed": "seed of the initial weights, of the users that are drawn, and of dropout",
    "workers": "number of processes that train one run",
    "cpus_per_worker": "CPU cores of a worker",
    "gpus_per_worker": "GPUs of a worker; below 1, several runs share a GPU",
    "laws": "names of the laws to fit",
    "hold_out": "runs that no law is fitted to, to test them",
    "service": "service whose items are the labels",
    "column": "the table's column of the property",
    "query": "service of the vectors that are looked up",
    "target": "service of the vectors among which they are found",
}
"""Fields whose names say it in the code, but not in a file."""
COLUMN_MEANINGS = {
    "run_id": "hash of all that defines the result: the recipe, the corpus, the run's fields",
    "status": "done, failed, diverged or missing; laws are fitted to done runs",
    "error": "why a run failed",
    "study": "name of the study",
    "corpus_digest": "hash of what the corpus was made of and how",
    "encoder_parts": "parts of the encoder: bag, transformer or both",
    "other_settings": "fields of the study file that differ from their default and have no column",
    "non_embedding_params": "parameters without the token and position tables; the N of laws",
    "total_params": "all parameters of the encoder",
    "corpus_tokens": "tokens in all events of the training users",
    "train_tokens": "tokens that passed through training, repeats counted",
    "train_flops": "FLOP that the mathematics of training requires",
    "executed_flops": "FLOP that were executed: distinct items once",
    "loss": "held-out loss on the study's fixed pool, at the calibrated temperature",
    "loss_at_training_temperature": "held-out loss at the temperature that training learned",
    "loss_candidates": "held-out users among whom a user is identified; chance is their logarithm",
    "recall_at_10": "share of users who are among the first 10 of the candidates",
    "mrr": "mean reciprocal rank of a user among the candidates",
    "train_loss": "smoothed training loss; comparable within one batch size only",
    "wall_seconds": "seconds of training and evaluation",
    "tokens_per_second": "training tokens of all workers per second of training and evaluation",
    "device": "kind of device that trained the run",
    "started_at": "when the run began, in UTC",
    "clue_ray_version": "version that trained the run",
    "step": "optimiser steps so far; in learning curves only",
}
"""Columns of the runs table that no field of a file sets alone."""
NAME = "NAME"
"""What a dotted name has for a key that the user chooses, such as a service."""
ON_BUDGETS = (
    "training FLOPs, each crossed with the other axes of its grid; where these name no encoder, "
    "each budget gets sizes of its own (isoflop)"
)


class FieldDescription(NamedTuple):
    """One field of a file.

    Attributes:
        path: its dotted name.
        meaning: what it sets; empty where the name says it.
        type: the values that it accepts, as JSON Schema names them.
        default: its value where it is left out; None with `required`.
        required: whether it has no default.
        column: the column of the runs table that records it; empty without one.
        fields: the fields inside it, by their dotted names.
        used_by: stage and commands that read it; empty where the caller does not state it.
    """

    path: str
    meaning: str
    type: str
    default: Any
    required: bool
    column: str
    fields: tuple[str, ...]
    used_by: str = ""


@cache
def _docstrings(spec: type[Spec]) -> dict[str, str]:
    """Return the docstrings behind the fields of a spec class, on one line each."""
    bases = [base for base in spec.__bases__ if issubclass(base, Spec) and base is not Spec]
    found = {name: text for base in bases for name, text in _docstrings(base).items()}
    body = ast.parse(textwrap.dedent(inspect.getsource(spec))).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, text in zip(body.body, body.body[1:], strict=False):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(meaning))),
            ):
                found[name] = " ".join(meaning.split())
    return {**{name: MEANINGS[name] for name in spec.model_fields if name in MEANINGS}, **found}


def all_fields(spec: type[Spec]) -> list[str]:
    """List all fields that a file may have, by their dotted names, outer ones included."""
    axes = [f"axes.{BUDGETS}"] if "axes" in spec.model_fields else []
    names = [*_fields_below(spec, ""), *axes]
    return [name for name in names if not _is_elsewhere(spec, name)]


def _fields_below(spec: type[Spec], prefix: str) -> Iterable[str]:
    for name, field in spec.model_fields.items():
        yield f"{prefix}{name}"
        if inner := spec_within(field.annotation):
            key = f"{NAME}." if _is_mapping(field.annotation) else ""
            yield from _fields_below(inner, f"{prefix}{name}.{key}")


def _is_elsewhere(spec: type[Spec], name: str) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in spec.elsewhere)


def _is_mapping(annotation: Any) -> bool:
    """Return whether a field can be a mapping whose keys the user chooses."""
    return get_origin(annotation) is dict or any(map(_is_mapping, get_args(annotation)))


def describe_column(name: str, meaning: str = "") -> FieldDescription | None:
    """Describe a column of the runs table; None for one that is not known and has no meaning."""
    if name not in COLUMNS:
        return FieldDescription(name, meaning, "number", None, False, name, ()) if meaning else None
    column = COLUMNS[name]
    kind = "text" if column.format == "text" else f"number, {column.unit}".removesuffix(", ")
    meaning = COLUMN_MEANINGS.get(name, column.label)
    fields = (column.field,) if column.field else ()
    return FieldDescription(name, meaning, kind, None, False, name, fields)


def find_fields(spec: type[Spec], asked: str) -> list[str]:
    """List the fields that a name can mean; none where it means nothing.

    It is a dotted name, the end of one, an axis, or a key that the user chooses below a field.
    """
    names = all_fields(spec)
    if asked in names:
        return [asked]
    if found := [name for name in names if _ends_with(name, asked)]:
        return found
    if asked.startswith("axes."):
        return find_fields(spec, asked.removeprefix("axes."))
    above = asked.rpartition(".")[0]
    return [
        name
        for name in (find_fields(spec, above) if above else ())
        if _is_mapping(_owner(spec, name).model_fields[name.rpartition(".")[2]].annotation)
    ]


def _ends_with(name: str, asked: str) -> bool:
    """Return whether a name ends with what was asked, any key in the place of `NAME`."""
    steps = name.split(".")
    ends = (steps[first:] for first in range(len(steps)) if steps[first] != NAME)
    patterns = (r"\.".join(".+" if s == NAME else re.escape(s) for s in end) for end in ends)
    return any(re.fullmatch(pattern, asked) for pattern in patterns)


def similar_field(specs: Iterable[type[Spec]], asked: str) -> str | None:
    """Return the field that was probably meant: by its spelling, or a word of its description."""
    last = asked.rpartition(".")[2]
    word = re.compile(rf"(?<!\w){re.escape(last)}(?!\w)", re.IGNORECASE)
    pairs = [(spec, name) for spec in specs for name in all_fields(spec)]
    ends = {name.rpartition(".")[2]: name for _, name in reversed(pairs)}
    for pair in () if last in ends else pairs:
        found = describe_field(*pair)
        if word.search(f"{found.meaning} {found.type}"):
            return found.path
    close = difflib.get_close_matches(last, [*ends, *COLUMNS], n=1, cutoff=0.6)
    return ends.get(close[0], close[0]) if close else None


def _owner(spec: type[Spec], path: str) -> type[Spec]:
    """Return the class that has the last field of a dotted name."""
    for step in path.split(".")[:-1]:
        inner = None if step == NAME else spec_within(spec.model_fields[step].annotation)
        spec = inner or spec
    return spec


def describe_field(spec: type[Spec], path: str) -> FieldDescription:
    """Describe one field of `all_fields`."""
    if path == f"axes.{BUDGETS}":
        values = "list of numbers above 0"
        return FieldDescription(path, ON_BUDGETS, values, None, False, "train_flops", ())
    owner, name = _owner(spec, path), path.rpartition(".")[2]
    field = owner.model_fields[name]
    inner = spec_within(field.annotation)
    default = None if field.default is PydanticUndefined else field.default
    meaning = _docstrings(owner).get(name, "")
    if inner and not meaning:
        meaning = " ".join((inspect.getdoc(inner) or "").partition("\n\n")[0].split()).rstrip(".")
    recorded = path.removeprefix("base.")
    return FieldDescription(
        path,
        meaning,
        _type_of(owner.model_json_schema()["properties"][name]),
        "its own defaults" if isinstance(default, Spec) else default,
        field.is_required(),
        next((c.name for c in COLUMNS.values() if c.field and c.field == recorded), ""),
        _fields_of(spec, path, field.annotation),
    )


def _fields_of(spec: type[Spec], path: str, annotation: Any) -> tuple[str, ...]:
    """List the keys inside a field, by the names that `clue-ray explain` takes."""
    if path == "axes":
        return tuple(axis_fields())
    inner = spec_within(annotation)
    below = f"{path}.{NAME}" if _is_mapping(annotation) else path
    names = [f"{below}.{each}" for each in inner.model_fields] if inner else []
    return tuple(name for name in names if not _is_elsewhere(spec, name))


def _type_of(schema: dict[str, Any]) -> str:
    """Say in words what a JSON Schema accepts."""
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if options := schema.get("anyOf"):
        return " or ".join(dict.fromkeys(_type_of(option) for option in options))
    kind = str(schema.get("type", "mapping"))
    words = {"null": "nothing", "object": "mapping", "array": "list", "string": "text"}
    signs = {
        "minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most",
        "exclusiveMaximum": "below",
    }  # fmt: skip
    limits = [f"{words_} {schema[key]:g}" for key, words_ in signs.items() if key in schema]
    return " ".join([words.get(kind, kind), *([", ".join(limits)] if limits else [])])


def json_schema(spec: type[Spec], title: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a file, with the meaning of every field.

    It is as strict as types allow; what a spec checks in code, such as one horizon per run, it
    leaves to `clue-ray plan`.
    """
    schema = spec.model_json_schema()
    classes = {each.__name__: each for each in _classes(spec)}
    for name, part in {spec.__name__: schema, **schema.get("$defs", {})}.items():
        for field, found in part.get("properties", {}).items():
            if meaning := _docstrings(classes[name]).get(field):
                found["description"] = meaning
        part.pop("title", None)
    _accept_short_forms(schema, spec)
    for name in spec.elsewhere:
        _remove_field(schema, spec, name)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return {**head, **schema}


def _classes(spec: type[Spec]) -> list[type[Spec]]:
    inner = [found for f in spec.model_fields.values() if (found := spec_within(f.annotation))]
    return [spec, *(each for one in inner for each in _classes(one))]


def _accept_short_forms(schema: dict[str, Any], spec: type[Spec]) -> None:
    """Add what validators read before types: a log as its files alone, the axes by name."""
    files = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    for part in (schema, *schema.get("$defs", {}).values()):
        properties = part.get("properties", {})
        for option in properties.get("events", {}).get("anyOf", ()):
            if "additionalProperties" in option:
                option["additionalProperties"] = {
                    "anyOf": [*files["anyOf"], *_as_options(option["additionalProperties"])]
                }
        if "axes" in properties:
            named = {name: {"type": "array"} for name in axis_fields()}
            for option in properties["axes"]["anyOf"]:
                _name_axes(option.get("items", option), named)


def _name_axes(grid: dict[str, Any], named: dict[str, Any]) -> None:
    """Let a grid have the axes by name, and several of them with commas between the names."""
    together = {"type": "array", "items": {"type": "array"}}
    grid |= {"properties": named, "patternProperties": {",": together}}
    grid["additionalProperties"] = False


def _remove_field(schema: dict[str, Any], spec: type[Spec], name: str) -> None:
    """Remove a field that the file sets elsewhere from the class that has it."""
    owner = _owner(spec, name)
    used = [each for each in _classes(spec) if each is owner]
    assert len(used) == 1, f"{owner.__name__} would lose the field in another place, too"
    del schema["$defs"][owner.__name__]["properties"][name.rpartition(".")[2]]


def _as_options(schema: Any) -> list[Any]:
    return [schema if isinstance(schema, dict) else {"type": "object"}]  # True allows anything
