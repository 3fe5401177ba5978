"""Sizes for a budget: encoders spaced evenly in log parameters about the size expected to be best.

Takes a budget of training FLOPs; gives encoder shapes. The one idea: all budgets draw from one row of sizes, each twice
the one before, so that neighbouring budgets share sizes and a parabola in log size finds its points evenly spread.
"""

import itertools
import math
from typing import Any

from clue_ray.compute import block_params
from clue_ray.errors import SpecError
from clue_ray.spec import LADDER, EncoderSpec, IsoFlopSpec

OURS = ("xs", "s", "m", "l", "xl", "2xl", "4xl")
"""Rungs whose depth is followed; CLUE's own shapes change depth and width out of step."""
SMALLEST_WIDTH = 8
HEAD_WIDTH = 32


def read_budget(value: Any) -> float:
    """Read a budget in FLOP; YAML 1.1 takes 1e12 for a text."""
    try:
        budget = float(value)
    except (TypeError, ValueError):
        budget = math.nan
    if not 0 < budget < math.inf:
        raise SpecError(f"axes give budgets the value {value!r}; give training FLOPs above 0, such as 1e12.")
    return budget


def expected_params(budget: float, tokens_per_param: float) -> float:
    """Return the size expected to be best: N = sqrt(C / 6r), from C = 6 N D and D = r N (Hoffmann et al. 2022)."""
    return math.sqrt(budget / (6 * tokens_per_param))


def sizes_about(budget: float, isoflop: IsoFlopSpec) -> list[dict[str, int]]:
    """List `isoflop.sizes` encoder shapes, smallest first, about the size expected to be best for a budget."""
    middle = round(math.log2(expected_params(budget, isoflop.tokens_per_param)))
    first = middle - (isoflop.sizes - 1) // 2
    shapes = [shape_of(2.0**power) for power in range(first, first + isoflop.sizes)]
    if any(a == b for a, b in itertools.pairwise(shapes)):
        raise SpecError(
            f"axes give budgets {budget:g} FLOP, whose best size is expected near {2.0**middle:,.0f} parameters; "
            f"{isoflop.sizes} sizes about it reach below the smallest encoder, {SMALLEST_WIDTH} wide; raise it, or "
            "lower isoflop.tokens_per_param or isoflop.sizes."
        )
    return shapes


def shape_of(params: float) -> dict[str, int]:
    """Shape an encoder of about `params` non-embedding parameters, as deep as the nearest rung of the ladder."""
    rung = LADDER[min(OURS, key=lambda name: abs(math.log(rung_params(name) / params)))]
    layers = rung.item_layers + rung.service_layers
    exact = math.sqrt(params / (12 * layers))
    step = 4 if exact < 2 * HEAD_WIDTH else HEAD_WIDTH
    width = max(SMALLEST_WIDTH, step * round(exact / step))
    heads = width // HEAD_WIDTH if step == HEAD_WIDTH else 1
    return {
        "width": width, "item_layers": rung.item_layers, "service_layers": rung.service_layers, "heads": heads,
    }  # fmt: skip


def rung_params(name: str) -> int:
    """Count the parameters in the blocks of a rung."""
    rung = LADDER[name]
    return (rung.item_layers + rung.service_layers) * sum(block_params(EncoderSpec(size=name)))
