"""Expand the axes of a study into runs.

An axis names one field of a run, or several fields, separated by commas, that change together:

    encoder.size: [xs, s]
    encoder.size, train.learning_rate: [[xs, 0.003], [s, 0.002]]
    budgets: [1e12, 1e13]

A grid is the product of its axes, and each of its points is one run. `budgets` are training FLOPs.
Where a grid with budgets names no encoder, each budget gets its own encoder sizes, evenly spaced in
the log of parameters about the size expected to be best.
"""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError

from clue_ray.errors import SpecError, nearest
from clue_ray.spec.compute import block_params
from clue_ray.spec.fits import IsoFlopSpec
from clue_ray.spec.ladder import LADDER, Rung
from clue_ray.spec.specs import HORIZONS, EncoderSpec, RunSpec, StudySpec
from clue_ray.spec.yaml import Spec, explain, field_names, place_in

Point = dict[str, Any]
"""Values of dotted fields: part of a grid point, or all of it."""
BUDGETS = "budgets"
"""The axis of training FLOPs, which is not a field of a run."""
MOST_POINTS = 1000
"""Number of grid points above which a study must be confirmed."""
SHAPE = [f"encoder.{field}" for field in Rung.model_fields]
DEPTHS = ("xs", "s", "m", "l", "xl", "2xl", "4xl")
"""Sizes that give the depth of an encoder for a budget; depth and width grow together in these."""
SMALLEST_WIDTH = 8
HEAD_WIDTH = 32


def expand(study: StudySpec, added: Iterable[Point] = ()) -> list[RunSpec]:
    """Return the runs of a study in grid order, each run once.

    Of runs with the same identity the last one is kept: it may ask for other workers.

    Args:
        study: The study.
        added: Points beyond the grids.

    Raises:
        SpecError: An axis names no field of a run or has no values, or a point is not a valid run
            or is in one grid twice.
    """
    base = _base_document(study)
    pairs = [*list_points(study), *((point, _make_run(base, point)) for point in added)]
    return list({run.run_id("", 0): run for _, run in pairs}.values())


def list_points(study: StudySpec) -> Iterator[tuple[Point, RunSpec]]:
    """Yield each point of each grid with its run; raise SpecError for a run twice in a grid."""
    base = _base_document(study)
    for grid in study.grids:
        seen: dict[tuple[str, int], Point] = {}
        for parts in itertools.product(*_read_grid(grid, study)):
            point = _merge(parts)
            run = _make_run(base, point, grid)
            identity = run.run_id("", 0), run.resources.workers
            with _placed(grid):
                _check_unique_point(point, seen.get(identity))
            seen[identity] = point
            yield point, run


def count_points(study: StudySpec) -> int:
    """Return the number of points of all grids; a point of several grids counts once per grid."""
    return sum(math.prod(map(len, axes)) for axes in _read_grids(study))


def check_size(study: StudySpec, most: int | None = MOST_POINTS) -> None:
    """Raise SpecError for grids of more than `most` points, before any run is made.

    None as `most` allows any number.
    """
    points = count_points(study)
    if most is not None and points > most:
        grids = [" x ".join(f"{len(axis):,}" for axis in axes) for axes in _read_grids(study)]
        raise SpecError(
            f"axes multiply to {points:,} runs ({' + '.join(grids)}), more than {most:,}; "
            "shorten them, or add --yes."
        )


def parse_point(point: list[str]) -> Point:
    """Parse a point from FIELD=VALUE texts, with values written as in a study file.

    Raises:
        SpecError: A text is not of this form, or a field is given twice.
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
                f"--point is {each!r}, whose value is not valid YAML; write it as in a study file."
            ) from None
    return fields


def axis_fields() -> list[str]:
    """List what an axis can name: fields of a run, and budgets."""
    # Workers do not change a result, so an axis over them only measures speed; other resources are
    # the same for all runs of a study.
    fields = [
        field
        for field in sorted(dotted_fields(RunSpec))
        if not field.startswith("resources.") or field == "resources.workers"
    ]
    return [*fields, BUDGETS]


def dotted_fields(spec: type[Spec], prefix: str = "") -> list[str]:
    """List the plain fields below a spec class by their dotted names."""
    names = []
    for name in spec.model_fields:
        below = field_names(spec, (name,))
        nested = spec.model_fields[name].annotation
        if below and isinstance(nested, type) and issubclass(nested, Spec):
            names += dotted_fields(nested, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _base_document(study: StudySpec) -> dict[str, Any]:
    """Return the base run as a document in which a point sets its fields."""
    resources = study.resources.model_dump(mode="json")
    return study.base.model_dump(mode="json", exclude_none=True) | {"resources": resources}


def _read_grids(study: StudySpec) -> list[list[list[Point]]]:
    """Read each grid as a list of axes, and each axis as a list of partial points."""
    return [_read_grid(grid, study) for grid in study.grids]


def _read_grid(grid: dict[str, list[Any]], study: StudySpec) -> list[list[Point]]:
    named = [field for axis in grid for field in _fields_of(axis)]
    for axis, values in grid.items():
        with _placed(grid, axis):
            _check_axis(_fields_of(axis), axis, values)
    with _placed(grid):
        _check_conflicts(named)
    choose_sizes = not {"encoder.size", *SHAPE} & set(named)
    axes = []
    for axis, values in grid.items():
        with _placed(grid, axis):
            axes.append(_partial_points(axis, values, study.isoflop if choose_sizes else None))
    return axes


def _fields_of(axis: str) -> list[str]:
    """List the fields that an axis names."""
    return [field.strip() for field in axis.split(",")]


@contextmanager
def _placed(grid: dict[str, list[Any]], axis: str | None = None) -> Iterator[None]:
    """Begin an error of a grid with the file and line of the axis, where it was read from one."""
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{place_in(grid, axis)}{error}") from None


def _check_axis(fields: list[str], axis: str, values: list[Any]) -> None:
    """Raise SpecError for an axis with an unknown field, no values, or values of unequal length."""
    allowed = [field for field in axis_fields() if field != BUDGETS or len(fields) == 1]
    for field in fields:
        if field not in allowed:
            raise SpecError(
                f"axes name {field!r}, which is not a field of a run; {nearest(field, allowed)}"
            )
    if not values:
        raise SpecError(f"axes give {axis!r} no values; list at least one.")
    ragged = [value for value in values if not isinstance(value, list) or len(value) != len(fields)]
    if len(fields) > 1 and ragged:
        raise SpecError(
            f"axes give {axis!r} the value {ragged[0]!r}; "
            f"give a list of {len(fields)}, one for each field."
        )


def _check_conflicts(named: list[str]) -> None:
    """Raise SpecError where fields of one grid override each other.

    These are a field named twice, two horizons, or a size and a shape. The last of them would
    otherwise win without notice.
    """
    horizons = [*(f"train.{horizon}" for horizon in HORIZONS), BUDGETS]
    conflicts = [field for field in dict.fromkeys(named) if named.count(field) > 1]
    if sum(field in horizons for field in named) > 1:
        conflicts = [field for field in named if field in horizons]
    if "encoder.size" in named and set(SHAPE) & set(named):
        conflicts = [field for field in named if field in {"encoder.size", *SHAPE}]
    if conflicts:
        raise SpecError(
            f"axes of one grid set the same thing more than once ({', '.join(conflicts)}); "
            "keep one of them."
        )


def _partial_points(axis: str, values: list[Any], isoflop: IsoFlopSpec | None) -> list[Point]:
    """Return the partial points of an axis; `isoflop` says that its budgets choose sizes."""
    if axis == BUDGETS:
        return _budget_points(values, isoflop)
    fields = _fields_of(axis)
    return [dict(zip(fields, row, strict=True)) for row in _rows_of(axis, values)]


def _rows_of(axis: str, values: list[Any]) -> list[list[Any]]:
    """Return the values of an axis as lists, one value per field that it names."""
    return values if len(_fields_of(axis)) > 1 else [[value] for value in values]


def _budget_points(budgets: list[Any], isoflop: IsoFlopSpec | None) -> list[Point]:
    """Return a partial point per budget, or per budget and encoder size where sizes are chosen."""
    points = []
    for budget in map(_read_budget, budgets):
        shapes = _shapes_for(budget, isoflop) if isoflop else [{}]
        points += [
            {
                "train.train_flops": budget,
                **{f"encoder.{key}": value for key, value in shape.items()},
            }
            for shape in shapes
        ]
    return points


def _read_budget(value: Any) -> float:
    """Read a budget in FLOP, also from text: YAML 1.1 reads 1e12 as a string."""
    try:
        budget = float(value)
    except (TypeError, ValueError):
        budget = math.nan
    if not 0 < budget < math.inf:
        raise SpecError(
            f"axes give budgets the value {value!r}; give training FLOPs above 0, such as 1e12."
        )
    return budget


def _shapes_for(budget: float, isoflop: IsoFlopSpec) -> list[dict[str, int]]:
    """List `isoflop.sizes` encoder shapes, smallest first, about the expected best for a budget."""
    # All budgets share one row of sizes, the powers of two, so that neighbouring budgets have sizes
    # in common, and a parabola in log size is fitted to evenly spaced points.
    middle = round(math.log2(_best_params(budget, isoflop.tokens_per_param)))
    first = middle - (isoflop.sizes - 1) // 2
    shapes = [_shape_of(2.0**power) for power in range(first, first + isoflop.sizes)]
    if any(a == b for a, b in itertools.pairwise(shapes)):
        raise SpecError(
            f"axes give budgets {budget:g} FLOP, whose best size is expected near "
            f"{2.0**middle:,.0f} parameters; {isoflop.sizes} sizes about it reach below the "
            f"smallest encoder, {SMALLEST_WIDTH} wide; "
            "raise it, or lower isoflop.tokens_per_param or isoflop.sizes."
        )
    return shapes


def _best_params(budget: float, tokens_per_param: float) -> float:
    """Return the number of parameters N expected to be best for a budget C in FLOP.

    N = sqrt(C / 6r) follows from C = 6 N D with D = r N tokens (Hoffmann et al. 2022).
    """
    return math.sqrt(budget / (6 * tokens_per_param))


def _shape_of(params: float) -> dict[str, int]:
    """Return the shape of an encoder of about `params` non-embedding parameters.

    It is as deep as the nearest size on the ladder; its width makes up the difference.
    """
    rung = LADDER[min(DEPTHS, key=lambda name: abs(math.log(_rung_params(name) / params)))]
    layers = rung.item_layers + rung.service_layers
    exact = math.sqrt(params / (12 * layers))  # a block of width d has about 12 d^2 parameters
    step = 4 if exact < 2 * HEAD_WIDTH else HEAD_WIDTH
    width = max(SMALLEST_WIDTH, step * round(exact / step))
    heads = width // HEAD_WIDTH if step == HEAD_WIDTH else 1
    return rung.model_copy(update={"width": width, "heads": heads}).model_dump()


def _rung_params(name: str) -> int:
    """Return the number of parameters in the blocks of a size on the ladder."""
    rung = LADDER[name]
    return (rung.item_layers + rung.service_layers) * sum(block_params(EncoderSpec(size=name)))


def _merge(parts: Iterable[Point]) -> Point:
    """Merge partial points into one."""
    return {field: value for part in parts for field, value in part.items()}


def _check_unique_point(point: Point, twin: Point | None) -> None:
    """Raise SpecError where another point of the grid, `twin`, is the same run."""
    if twin is not None:
        also = "" if twin == point else f" and as {_format_point(twin)}"
        raise SpecError(
            f"axes list the point {_format_point(point)}{also} twice in one grid; list it once."
        )


def _format_point(point: Point) -> str:
    """Format a point as YAML."""
    return "{" + ", ".join(f"{field}: {value}" for field, value in point.items()) + "}"


def _make_run(
    base: dict[str, Any], point: Point, grid: Mapping[str, list[Any]] = MappingProxyType({})
) -> RunSpec:
    """Build the run of a point, which may be of a grid, from the document of the base run."""
    document = copy.deepcopy(base)
    for axis, value in point.items():
        _set_field(document, axis, value)
    try:
        return RunSpec.model_validate(document)
    except ValidationError as error:
        where = f"{_place_of(point, grid, error)}axes point {_format_point(point)}"
        raise SpecError(explain(error, RunSpec, where)) from None


def _place_of(point: Point, grid: Mapping[str, list[Any]], error: ValidationError) -> str:
    """Return where a study file has the value because of which a point is not a valid run."""
    wrong = ".".join(map(str, error.errors()[0]["loc"]))
    for axis, values in grid.items():
        fields = _fields_of(axis)
        # An error of a section may be of any of its axes; one of the whole run is of none.
        if wrong and any(wrong.startswith(field) or field.startswith(wrong) for field in fields):
            row = [point.get(field) for field in fields]
            rows = _rows_of(axis, values)
            return place_in(grid, axis, rows.index(row) if row in rows else None)
    return place_in(grid)


def _set_field(document: dict[str, Any], axis: str, value: Any) -> None:
    """Set one dotted field, and remove the fields of the base run that it replaces.

    A size replaces the shape, a shape the size, and a horizon any other horizon.
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
