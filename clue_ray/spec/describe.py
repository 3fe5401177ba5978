"""Describe the fields of study, corpus and task files: meaning, type, default, JSON Schema.

The texts are the docstrings behind the fields of the specs, so a field is described in one place.
They are read from the source when they are asked for: importing a spec does not pay for it.
"""

import ast
import inspect
import textwrap
from functools import cache
from typing import Any, NamedTuple

from pydantic_core import PydanticUndefined

from clue_ray.errors import SpecError, nearest
from clue_ray.spec.columns import COLUMNS
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
}
"""Fields whose names say it in the code, but not in a file."""


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
    """

    path: str
    meaning: str
    type: str
    default: Any
    required: bool
    column: str
    fields: tuple[str, ...]


@cache
def _docstrings(spec: type[Spec]) -> dict[str, str]:
    """Return the docstrings behind the fields of a spec class, on one line each."""
    body = ast.parse(textwrap.dedent(inspect.getsource(spec))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(meaning))),
            ):
                found[name] = " ".join(meaning.split())
    return {**{name: MEANINGS[name] for name in spec.model_fields if name in MEANINGS}, **found}


def describe_field(spec: type[Spec], path: str) -> FieldDescription:
    """Describe one field by its dotted name, or by the last part of it where that is unique.

    Raises:
        SpecError: there is no such field, or several.
    """
    names = all_fields(spec)
    found = [path] if path in names else [n for n in names if n.rpartition(".")[2] == path]
    if not found:
        close = nearest(path, names)
        if close.startswith("allowed"):
            close = "`clue-ray explain` lists all."
        raise SpecError(f"There is no field {path!r}; {close}")
    if len(found) > 1:
        raise SpecError(f"Several fields are called {path!r}; give one of {', '.join(found)}.")
    return _describe(spec, found[0])


def all_fields(spec: type[Spec], prefix: str = "") -> list[str]:
    """List all fields below a spec class by their dotted names, outer ones included."""
    names = []
    for name, field in spec.model_fields.items():
        names.append(f"{prefix}{name}")
        if inner := spec_within(field.annotation):
            names += all_fields(inner, f"{prefix}{name}.")
    return names


def _describe(spec: type[Spec], path: str) -> FieldDescription:
    owner, (*above, name) = spec, path.split(".")
    for step in above:
        owner = spec_within(owner.model_fields[step].annotation) or owner
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
        tuple(f"{path}.{each}" for each in inner.model_fields) if inner else (),
    )


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
            base = spec_within(spec.model_fields["base"].annotation)
            assert base is not None
            named = {name: {"type": "array"} for name in ("budgets", *all_fields(base))}
            for option in properties["axes"]["anyOf"]:
                option.get("items", option)["properties"] = named


def _as_options(schema: Any) -> list[Any]:
    return [schema if isinstance(schema, dict) else {"type": "object"}]  # True allows anything
