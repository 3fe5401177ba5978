"""Load YAML, validate it as frozen specs, and report the first error in one sentence."""

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from clue_ray.errors import SpecError, nearest

MOST_BYTES = 10_000_000
"""Size of a YAML file that is read."""
MOST_DEPTH, MOST_VALUES = 100, 1_000_000
"""Levels of nesting and number of values of a YAML document that is read."""
LONGEST_SENTENCE = 800
"""Characters of an error message."""
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""What a study or a task may be called: folders and files have the name, too."""
RENAMED = {"spare_duplicates": "mask_false_negatives"}
"""Keys of study files of earlier versions, and their present names."""


class Spec(BaseModel):
    """Base class of specs: frozen, and strict about unknown keys.

    Attributes:
        elsewhere: dotted fields of inner specs that a file sets in another place, and not here.
    """

    elsewhere: ClassVar[tuple[str, ...]] = ()
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, document: Any, where: str) -> Self:
        """Validate a mapping.

        Args:
            document: The mapping, as YAML yields it.
            where: What the document is called in error messages, such as its path.

        Raises:
            SpecError: The document is not a mapping, or is invalid; the first error is reported.
        """
        if not isinstance(document, dict):
            raise SpecError(
                f"{where} holds {type(document).__name__}, not a mapping of keys to values."
            )
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise SpecError(_shorten(explain(error, cls, where, document))) from None


def _shorten(sentence: str) -> str:
    """Cut the middle out of a sentence that quotes a very long value."""
    if len(sentence) <= LONGEST_SENTENCE:
        return sentence
    return f"{sentence[: LONGEST_SENTENCE // 2]} ... {sentence[-LONGEST_SENTENCE // 2 :]}"


def read_yaml(path: str | Path) -> Any:
    """Load a YAML file.

    Raises:
        SpecError: The file does not exist, cannot be read, or is not valid YAML.
    """
    file = Path(path)
    try:
        _check_bytes(file)
        return _load(file.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise SpecError(f"YAML file {file} does not exist; give the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"YAML file {file} cannot be read ({error}); give a YAML text file."
        ) from None
    except Exception as error:
        # yaml raises errors of many types: for numbers and dates that Python cannot hold, for tags
        # such as !!timestamp on other texts, for deep nesting.
        reason = " ".join(str(error).split())
        raise SpecError(f"File {file} is not valid YAML ({reason}); fix that line.") from None


def _check_bytes(file: Path) -> None:
    """Raise OSError for a file whose text alone would fill the memory."""
    if (size := file.stat().st_size) > MOST_BYTES:
        raise OSError(f"it has {size:,} bytes, more than {MOST_BYTES:,}")


class _BoundedLoader(yaml.SafeLoader):
    """A safe loader that refuses documents which are too deep, or too large once expanded.

    A name such as `*a` stands for a copy, so that ten short lines can stand for billions of values.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Build a node, unless it is nested too deeply."""
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MOST_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _load(text: str, name: str) -> Any:
    """Load a YAML document whose size is bounded; `name` is that of its file."""
    loader = _LineLoader(text)
    loader.name = name
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_values(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"its names (&, *) expand to more than {MOST_VALUES:,} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, known: dict[int, float]) -> float:
    """Count the values below a node with names expanded; infinite for a node that contains itself.

    Args:
        known: counts of nodes that were met before, by identity.
    """
    if id(node) not in known:
        known[id(node)] = float("inf")  # until it is counted: met below itself, it has no end
        values = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [part for value in values for part in (value if type(value) is tuple else (value,))]
        known[id(node)] = 1 + sum(_count_values(part, known) for part in inner)
    return known[id(node)]


def fingerprint(document: Any) -> str:
    """Return the first 12 hex digits of the SHA-256 of a value as sorted, compact JSON."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def field_names(spec: type[Spec], path: tuple[Any, ...]) -> list[str]:
    """List the keys allowed at `path` below a spec class; none where it leads to a plain value."""
    for step in path:
        if isinstance(step, int) or step not in spec.model_fields:
            continue  # a list index, or the branch of a union, which pydantic adds to the path
        inner = spec_within(spec.model_fields[step].annotation)
        if inner is None:
            return []
        spec = inner
    return list(spec.model_fields)


def spec_within(annotation: Any) -> type[Spec] | None:
    """Return the spec class in an annotation such as `str | dict[str, LogSpec]`, if any."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation
    return next(filter(None, map(spec_within, get_args(annotation))), None)


class Lines(dict[Any, Any]):
    """A mapping of a YAML file that knows its file and the line of each of its keys, from 1.

    The item at an index of a key's list has its line at (key, index).
    """

    file: str = ""
    lines: Mapping[Any, int] = MappingProxyType({})


class _LineLoader(_BoundedLoader):
    """Loads plain values as SafeLoader does, and notes where keys are."""

    def construct_yaml_map(self, node: Any) -> Generator[dict[Any, Any], None, None]:
        """Yield the mapping before its values, as SafeLoader does, so that anchors may recur."""
        found = Lines()
        yield found
        found.update(self.construct_mapping(node))
        found.file = node.start_mark.name
        found.lines = dict(_lines_below(node))


def _lines_below(node: yaml.MappingNode) -> Iterator[tuple[Any, int]]:
    """Yield the keys of a mapping, and the items of lists behind them, each with its line."""
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            yield key.value, key.start_mark.line + 1
            items = value.value if isinstance(value, yaml.SequenceNode) else ()
            for index, item in enumerate(items):
                yield (key.value, index), item.start_mark.line + 1


_LineLoader.add_constructor("tag:yaml.org,2002:map", _LineLoader.construct_yaml_map)


def with_lines(found: Any, document: Any) -> Any:
    """Return a validated copy of mappings, or of a list of them, with the lines of the original."""
    if isinstance(found, list):
        return [with_lines(*pair) for pair in zip(found, document, strict=True)]
    if not isinstance(document, Lines):
        return found
    kept = Lines(found)
    kept.file, kept.lines = document.file, document.lines
    return kept


def place_in(mapping: Any, key: Any = None, index: int | None = None) -> str:
    """Return where a key of a mapping, or an item behind it, was read: `study.yaml, line 7: `.

    It is where the mapping begins without a key, and empty for one that no file holds.
    """
    lines = mapping.lines if isinstance(mapping, Lines) else {}
    line = lines.get((key, index)) or lines.get(key) or min(lines.values(), default=None)
    return f"{mapping.file}, line {line}: " if line else ""


def _line_of(document: Any, path: tuple[Any, ...]) -> int | None:
    """Return the line of the deepest key or item of a path that a document knows."""
    line, above = None, (Lines(), None)
    for step in path:
        if isinstance(document, Lines):
            line, above = document.lines.get(step, line), (document, step)
        elif isinstance(document, list):
            line = above[0].lines.get((above[1], step), line)
        try:
            document = document[step]
        except (KeyError, IndexError, TypeError):
            continue  # the branch of a union, which is not a key
    return line


def explain(error: ValidationError, spec: type[Spec], where: str, document: Any = None) -> str:
    """Format the first error of a validation: the place, the value found, what is allowed.

    Args:
        document: What was validated; where it was read from a YAML file, the line is named.
    """
    first = _most_telling(error)
    branch = str(first["loc"][-1]) if first["loc"] else ""
    if line := _line_of(document, first["loc"]):
        where = f"{where}, line {line}"
    unknown = first["type"] == "extra_forbidden"  # its last step is a key, whatever it looks like
    last = len(first["loc"]) - 1 if unknown else None
    steps = tuple(
        s
        for place, s in enumerate(first["loc"])
        if place == last or not _is_branch(s) or s in spec.model_fields
    )
    place = ".".join(str(step) for step in steps)
    if unknown:
        allowed = field_names(spec, steps[:-1])
        key = str(steps[-1])
        if RENAMED.get(key) in allowed:
            return f"{where} has the key {place!r} of an earlier version; call it {RENAMED[key]!r}."
        return f"{where} has an unknown key {place!r}; {nearest(key, allowed)}"
    if first["type"] == "missing":
        return f"{where} lacks the key {place!r}; add it."
    message = first["msg"].removeprefix("Value error, ")
    if branch in {"dict[str,list[any]]", "list[dict[str,list[any]]]"}:
        return (
            f"{where}: {steps[0]} is {first['input']!r}; "
            "give a mapping of dotted field to list of values, or several."
        )
    if first["type"] == "value_error":
        return f"{where}: {place} {message}." if place else f"{where} {message}."
    reason = message[0].lower() + message[1:].replace("Input", "input")
    return f"{where}: {place} is {first['input']!r}, but the {reason}."


def _most_telling(error: ValidationError) -> Any:
    """Return the error of a validation that says most about what was meant."""
    # Unknown keys first: a misspelt key is unknown, and the key that was meant is then missing.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    above = first["loc"][:-1]
    if first["type"] == "extra_forbidden" or not (first["loc"] and _is_branch(first["loc"][-1])):
        return first
    # Of the branches of a union, the one that fits the value furthest down.
    branches = [each for each in error.errors() if each["loc"][: len(above)] == above]
    return max(branches, key=lambda each: len(each["loc"]))


def _is_branch(step: Any) -> bool:
    """Return whether a step of pydantic's path is the branch of a union, not a key."""
    return isinstance(step, str) and (
        step in {"CorpusSpec", "str", "int", "constrained-int"} or "[" in step
    )
