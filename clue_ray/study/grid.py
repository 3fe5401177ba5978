"""Axes to runs: the product of every grid's values over the base run."""

import copy
import itertools
from typing import Any

from pydantic import ValidationError

from clue_ray.documents import Spec, explain, field_names
from clue_ray.errors import SpecError, nearest
from clue_ray.spec import HORIZONS, Rung, RunSpec, StudySpec


def expand(study: StudySpec) -> list[RunSpec]:
    """List the study's runs in grid order; a run that several grids ask for is listed once, as last asked
    (its identity is the same, its workers may not be).

    Raises:
        SpecError: an axis names no field of a run, has no values, or a point is no valid run.
    """
    base = study.base.model_dump(mode="json", exclude_none=True) | {
        "resources": study.resources.model_dump(mode="json")
    }
    if not study.grids:
        raise SpecError("axes list no grid; give at least one mapping of dotted field to values.")
    runs: dict[str, RunSpec] = {}
    for grid in study.grids:
        for axis, values in grid.items():
            check_axis(axis, values)
        for point in itertools.product(*grid.values()):
            run = make_run(base, dict(zip(grid, point, strict=True)))
            runs[run.run_id("", 0)] = run
    return list(runs.values())


def check_axis(axis: str, values: list[Any]) -> None:
    """Refuse an axis that names no field of a run, or has no values."""
    fields = sorted(dotted_fields(RunSpec))
    allowed = [field for field in fields if not field.startswith("resources.") or field == "resources.workers"]
    if axis not in allowed:
        raise SpecError(f"axes name {axis!r}, which is no field of a run; {nearest(axis, allowed)}")
    if not values:
        raise SpecError(f"axes give {axis!r} no values; list at least one.")


def dotted_fields(spec: type[Spec], prefix: str = "") -> list[str]:
    """List the plain fields below a spec class as dotted names."""
    names = []
    for name in spec.model_fields:
        below = field_names(spec, (name,))
        nested = spec.model_fields[name].annotation
        if below and isinstance(nested, type) and issubclass(nested, Spec):
            names += dotted_fields(nested, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def make_run(base: dict[str, Any], point: dict[str, Any]) -> RunSpec:
    """Set a grid point's fields on the base run."""
    document = copy.deepcopy(base)
    for axis, value in point.items():
        set_field(document, axis, value)
    try:
        return RunSpec.model_validate(document)
    except ValidationError as error:
        where = "axes point {" + ", ".join(f"{axis}: {value}" for axis, value in point.items()) + "}"
        raise SpecError(explain(error, RunSpec, where)) from None


def set_field(document: dict[str, Any], axis: str, value: Any) -> None:
    """Set one dotted field; a size replaces the shape, a shape the size, a horizon any other horizon."""
    *parents, key = axis.split(".")
    node = document
    for parent in parents:
        node = node.setdefault(parent, {})
    if axis == "encoder.size":
        for shape in Rung.model_fields:
            node.pop(shape, None)
    elif parents == ["encoder"] and key in Rung.model_fields:
        node["size"] = "custom"
    elif parents == ["train"] and key in HORIZONS:
        for horizon in HORIZONS:
            node.pop(horizon, None)
    node[key] = value
