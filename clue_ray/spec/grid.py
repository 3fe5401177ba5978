"""Sizes for a budget: encoders spaced evenly in log parameters about the size expected to be best.

Takes a budget of training FLOPs; gives encoder shapes. The one idea: all budgets draw from one row
of sizes, each twice the one before, so that neighbouring budgets share sizes and a parabola in log
size finds its points evenly spread.


Axes to runs: the product of every grid's values over the base run.

An axis names one field, or several separated by commas whose values move together:

    encoder.size: [xs, s]
    encoder.size, train.learning_rate: [[xs, 0.003], [s, 0.002]]
    budgets: [1e12, 1e13]

`budgets` are training FLOPs; where the grid names no encoder, each brings its own sizes
(study/isoflop.py).
"""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import yaml
from pydantic import ValidationError

from clue_ray.errors import SpecError, nearest
from clue_ray.spec.compute import block_params
from clue_ray.spec.specs import HORIZONS, LADDER, EncoderSpec, IsoFlopSpec, Rung, RunSpec, StudySpec
from clue_ray.spec.yaml import Spec, explain, field_names

OURS = ("xs", "s", "m", "l", "xl", "2xl", "4xl")
"""Rungs whose depth is followed; CLUE's own shapes change depth and width out of step."""
SMALLEST_WIDTH = 8
HEAD_WIDTH = 32


def _read_budget(value: Any) -> float:
    """Read a budget in FLOP; YAML 1.1 takes 1e12 for a text."""
    try:
        budget = float(value)
    except (TypeError, ValueError):
        budget = math.nan
    if not 0 < budget < math.inf:
        raise SpecError(
            f"axes give budgets the value {value!r}; give training FLOPs above 0, such as 1e12."
        )
    return budget


def _expected_params(budget: float, tokens_per_param: float) -> float:
    """Return the size expected to be best: N = sqrt(C / 6r), from C = 6 N D and D = r N (Hoffmann
    et al. 2022).
    """
    return math.sqrt(budget / (6 * tokens_per_param))


def _sizes_about(budget: float, isoflop: IsoFlopSpec) -> list[dict[str, int]]:
    """List `isoflop.sizes` encoder shapes, smallest first, about the size expected to be best for a
    budget.
    """
    middle = round(math.log2(_expected_params(budget, isoflop.tokens_per_param)))
    first = middle - (isoflop.sizes - 1) // 2
    shapes = [_shape_of(2.0**power) for power in range(first, first + isoflop.sizes)]
    if any(a == b for a, b in itertools.pairwise(shapes)):
        raise SpecError(
            f"axes give budgets {budget:g} FLOP, whose best size is expected near "
            f"{2.0**middle:,.0f} parameters; "
            f"{isoflop.sizes} sizes about it reach below the smallest encoder, {SMALLEST_WIDTH} "
            f"wide; raise it, or "
            "lower isoflop.tokens_per_param or isoflop.sizes."
        )
    return shapes


def _shape_of(params: float) -> dict[str, int]:
    """Shape an encoder of about `params` non-embedding parameters, as deep as the nearest rung of
    the ladder.
    """
    rung = LADDER[min(OURS, key=lambda name: abs(math.log(_rung_params(name) / params)))]
    layers = rung.item_layers + rung.service_layers
    exact = math.sqrt(params / (12 * layers))
    step = 4 if exact < 2 * HEAD_WIDTH else HEAD_WIDTH
    width = max(SMALLEST_WIDTH, step * round(exact / step))
    heads = width // HEAD_WIDTH if step == HEAD_WIDTH else 1
    return {
        "width": width, "item_layers": rung.item_layers, "service_layers": rung.service_layers, "heads": heads,
    }  # fmt: skip


def _rung_params(name: str) -> int:
    """Count the parameters in the blocks of a rung."""
    rung = LADDER[name]
    return (rung.item_layers + rung.service_layers) * sum(block_params(EncoderSpec(size=name)))


BUDGETS = "budgets"
MOST_POINTS = 1000
SHAPE = [f"encoder.{field}" for field in Rung.model_fields]
Point = dict[str, Any]
"""Dotted fields and their values: part of a grid point, or all of it."""


def expand(study: StudySpec, added: Iterable[Point] = ()) -> list[RunSpec]:
    """List the study's runs in grid order; a run that several grids ask for is listed once, as last
    asked (its identity is the same, its workers may not be).

    Args:
        added: points beyond the grids.

    Raises:
        SpecError: an axis names no field of a run, has no values, or a point is no valid run or
            stands twice in a grid.
    """
    pairs = [*list_points(study), *((point, _make_run(_base_of(study), point)) for point in added)]
    return list({run.run_id("", 0): run for _, run in pairs}.values())


def list_points(study: StudySpec) -> Iterator[tuple[Point, RunSpec]]:
    """List the points of all grids and the run that each means; refuse a run that stands twice in
    one grid.
    """
    base = _base_of(study)
    for axes in _read_grids(study):
        seen: dict[tuple[str, int], Point] = {}
        for parts in itertools.product(*axes):
            point = _merge(parts)
            run = _make_run(base, point)
            identity = run.run_id("", 0), run.resources.workers
            _refuse_twin(point, seen.get(identity))
            seen[identity] = point
            yield point, run


def _base_of(study: StudySpec) -> dict[str, Any]:
    """Return the document that a point's fields are set on."""
    resources = study.resources.model_dump(mode="json")
    return study.base.model_dump(mode="json", exclude_none=True) | {"resources": resources}


def check_size(study: StudySpec, most: int | None = MOST_POINTS) -> None:
    """Refuse axes that multiply to more than `most` points, before any is made; None allows any
    number.
    """
    points = count_points(study)
    if most is not None and points > most:
        grids = [" x ".join(f"{len(axis):,}" for axis in axes) for axes in _read_grids(study)]
        raise SpecError(
            f"axes multiply to {points:,} runs ({' + '.join(grids)}), more than {most:,}; shorten "
            f"them, or add --yes."
        )


def count_points(study: StudySpec) -> int:
    """Count the points of all grids, those that several grids share as often as they stand
    there.
    """
    return sum(math.prod(map(len, axes)) for axes in _read_grids(study))


def _read_grids(study: StudySpec) -> list[list[list[Point]]]:
    """Read every grid as a list of axes, each a list of partial points; a grid is the product of
    its axes.
    """
    if not study.grids:
        raise SpecError("axes list no grid; give at least one mapping of dotted field to values.")
    return [_read_grid(grid, study) for grid in study.grids]


def _read_grid(grid: dict[str, list[Any]], study: StudySpec) -> list[list[Point]]:
    """Read one grid; refuse axes that set the same thing twice."""
    fields = {axis: [field.strip() for field in axis.split(",")] for axis in grid}
    named = [field for names in fields.values() for field in names]
    for axis, values in grid.items():
        _check_axis(fields[axis], axis, values)
    _refuse_rivals(named)
    chosen = not {"encoder.size", *SHAPE} & set(named)
    return [
        _budget_points(values, study, chosen)
        if axis == BUDGETS
        else _zip_points(fields[axis], values)
        for axis, values in grid.items()
    ]


def _check_axis(fields: list[str], axis: str, values: list[Any]) -> None:
    """Refuse an axis that names no field of a run, or has no values or ragged ones."""
    plain = sorted(dotted_fields(RunSpec))
    allowed = [
        field
        for field in plain
        if not field.startswith("resources.") or field == "resources.workers"
    ]
    allowed += [BUDGETS] if len(fields) == 1 else []
    for field in fields:
        if field not in allowed:
            raise SpecError(
                f"axes name {field!r}, which is no field of a run; {nearest(field, allowed)}"
            )
    if not values:
        raise SpecError(f"axes give {axis!r} no values; list at least one.")
    ragged = [value for value in values if not isinstance(value, list) or len(value) != len(fields)]
    if len(fields) > 1 and ragged:
        raise SpecError(
            f"axes give {axis!r} the value {ragged[0]!r}; give a list of {len(fields)}, one for "
            f"each field."
        )


def _refuse_rivals(named: list[str]) -> None:
    """Refuse fields of one grid of which the last would silently win: the same twice, two horizons,
    size and shape.
    """
    horizons = [*(f"train.{horizon}" for horizon in HORIZONS), BUDGETS]
    rivals = [field for field in dict.fromkeys(named) if named.count(field) > 1]
    if sum(field in horizons for field in named) > 1:
        rivals = [field for field in named if field in horizons]
    if "encoder.size" in named and set(SHAPE) & set(named):
        rivals = [field for field in named if field in {"encoder.size", *SHAPE}]
    if rivals:
        raise SpecError(
            f"axes of one grid set the same thing more than once ({', '.join(rivals)}); keep one "
            f"of them."
        )


def _zip_points(fields: list[str], values: list[Any]) -> list[Point]:
    """Pair an axis' fields with each of its values."""
    return [
        dict(zip(fields, value if len(fields) > 1 else [value], strict=True)) for value in values
    ]


def _budget_points(budgets: list[Any], study: StudySpec, chosen: bool) -> list[Point]:
    """Turn budgets into horizons, each with sizes chosen about its expected best where the grid
    names none.
    """
    points = []
    for budget in map(_read_budget, budgets):
        horizon = {"train.train_flops": budget}
        shapes = _sizes_about(budget, study.isoflop) if chosen else [{}]
        points += [
            horizon | {f"encoder.{key}": value for key, value in shape.items()} for shape in shapes
        ]
    return points


def _merge(parts: Iterable[Point]) -> Point:
    """Join partial points."""
    return {field: value for part in parts for field, value in part.items()}


def _refuse_twin(point: Point, twin: Point | None) -> None:
    """Refuse a point that trains what another point of the same grid trains."""
    if twin is not None:
        also = "" if twin == point else f" and as {_write_point(twin)}"
        raise SpecError(
            f"axes list the point {_write_point(point)}{also} twice in one grid; list it once."
        )


def _write_point(point: Point) -> str:
    """Write a point as YAML would."""
    return "{" + ", ".join(f"{field}: {value}" for field, value in point.items()) + "}"


def parse_point(point: list[str]) -> Point:
    """Parse FIELD=VALUE, values as a study file has them; refuse what is no such pair, and a field
    named twice.
    """
    fields: Point = {}
    for each in point:
        field, equals, value = (part.strip() for part in each.partition("="))
        if not (field and equals and value):
            raise SpecError(
                f"--point is {each!r}; write it as FIELD=VALUE, such as encoder.size=m."
            )
        if field in fields:
            raise SpecError(f"--point names {field!r} twice; give it one value.")
        try:
            fields[field] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise SpecError(
                f"--point is {each!r}, whose value is no YAML; write it as a study file would."
            ) from None
    return fields


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


def _make_run(base: dict[str, Any], point: Point) -> RunSpec:
    """Set a grid point's fields on the base run."""
    document = copy.deepcopy(base)
    for axis, value in point.items():
        _set_field(document, axis, value)
    try:
        return RunSpec.model_validate(document)
    except ValidationError as error:
        raise SpecError(explain(error, RunSpec, f"axes point {_write_point(point)}")) from None


def _set_field(document: dict[str, Any], axis: str, value: Any) -> None:
    """Set one dotted field; a size replaces the shape, a shape the size, a horizon any other
    horizon.
    """
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
