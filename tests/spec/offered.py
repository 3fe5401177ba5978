"""Files with one field more, and the fields that a schema offers."""

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any

from clue_ray.cli.explain import files
from clue_ray.spec.describe import NAME
from clue_ray.spec.ladder import LADDER

TRAIN: dict[str, Any] = {"steps": 10}
SHAPE = LADDER["xs"].model_dump()
KEYS = {"items": "events.sku", "events": "shop"}
"""What stands for a key that the user chooses."""
SAMPLES: dict[str, Any] = {
    "name": "a", "corpus": "corpora/a", "base": {"train": TRAIN}, "axes": {}, "events": "a.csv",
    "time": "2026-01-31", "separator": ";", "timestamp_format": "%Y-%m-%d", "size": "s",
    "users_per_chunk": 8, "transfer": ["a.yaml"], "trackers": ["wandb"], "laws": ["power_law"],
    "query": "news", "target": "shop",
}  # fmt: skip
"""Values of fields whose type does not say what they are."""
WORTH: dict[str, Any] = {
    "string": "a",
    "integer": 3,
    "number": 1e9,
    "boolean": True,
    "array": ["a"],
}


def document_with(kind: str, path: str) -> dict[str, Any]:
    """Return a valid file of a kind, with a field and what this field requires."""
    schema = _schema_of(kind)
    document = _required(schema, schema)
    _set(document, schema, schema, path.split("."))
    train = document.get("base", {}).get("train", {})
    if {"users_seen", "train_flops"} & set(train):
        train.pop("steps", None)
    encoder = document.get("base", {}).get("encoder", {})
    if set(SHAPE) & set(encoder) and "size" not in encoder:
        encoder |= SHAPE
    if kind == "task" and not {"next_item", "attribute", "retrieval"} & set(document):
        window = {"churn", "multi_label", "regression"} & set(document) or {"churn"}
        document.setdefault("time", SAMPLES["time"])
        document.setdefault(window.pop(), {"days": 7})
    if document.get("next_item", {}).get("days"):
        document["time"] = SAMPLES["time"]
    return document


@cache
def _schema_of(kind: str) -> dict[str, Any]:
    return files()[kind].model_json_schema()


def _set(document: Any, part: Any, schema: Any, steps: list[str]) -> None:
    """Set a field below a part of a document, with what mappings on the way require."""
    step, *below = steps
    key = KEYS.get(step, step)
    if step == NAME:
        raise AssertionError("a chosen key has a value of its own")
    if step == "axes":
        document["axes"] = {"budgets": [1e12]} if below else {"sequence_length": [8]}
        return
    inner = part["properties"][step]
    if not below:
        document.setdefault(step, sample(step, inner, schema))
        return
    options = _options(inner, schema)
    if below[0] == NAME:
        chosen = next(o["additionalProperties"] for o in options if "additionalProperties" in o)
        (found,) = [o for o in _options(chosen, schema) if "properties" in o]
        document[step] = {key: _required(found, schema)}
        _set(document[step][key], found, schema, below[1:])
        return
    (found,) = [o for o in options if "properties" in o]
    if not isinstance(document.get(step), dict):
        document[step] = _required(found, schema)
    _set(document[step], found, schema, below)


def _required(part: Any, schema: Any) -> dict[str, Any]:
    return {
        name: sample(name, part["properties"][name], schema) for name in part.get("required", ())
    }


def sample(name: str, part: Any, schema: Any) -> Any:
    """Return a value that a field accepts: its default, or one by its name or its type."""
    if part.get("type") == "boolean":
        return True
    if name in SAMPLES:
        return deepcopy(SAMPLES[name])
    if part.get("default") not in (None, {}):
        value = deepcopy(part["default"])
        given = isinstance(value, dict)
        return {key: each for key, each in value.items() if each is not None} if given else value
    first = _options(part, schema)[0]
    if "enum" in first:
        return first["enum"][0]
    if "properties" in first:
        return _required(first, schema)
    return {} if first.get("type") == "object" else WORTH[first["type"]]


def _options(part: Any, schema: Any) -> list[Any]:
    """List what a part of a schema accepts, references resolved."""
    if "$ref" in part:
        return _options(schema["$defs"][part["$ref"].split("/")[-1]], schema)
    return [each for one in part.get("anyOf", ()) for each in _options(one, schema)] or [part]


def offered(part: Any, schema: Any, above: str = "") -> Iterator[str]:
    """Yield the dotted names of the fields that a schema offers."""
    for option in _options(part, schema):
        for name, inner in option.get("properties", {}).items():
            yield f"{above}{name}"
            if not above.startswith("axes."):
                yield from offered(inner, schema, f"{above}{name}.")
        if isinstance(open_keys := option.get("additionalProperties"), dict):
            yield from offered(open_keys, schema, f"{above}{NAME}.")
        if above == "axes." and "items" in option:
            yield from offered(option["items"], schema, above)


def yaml_keys(document: Any, above: str = "") -> Iterator[str]:
    """Yield the keys of a file, each by its dotted name."""
    for each in document if isinstance(document, list) else ():
        yield from yaml_keys(each, above)
    for key, value in document.items() if isinstance(document, dict) else ():
        yield f"{above}{key}"
        if above != "axes.":
            yield from yaml_keys(value, f"{above}{key}.")
