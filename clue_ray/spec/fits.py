"""Specs of what a study does with its runs: laws to fit, and sizes at equal compute."""

from typing import Literal

from pydantic import Field

from clue_ray.spec.yaml import Spec


class FitSpec(Spec):
    """Laws to fit to held-out loss against train_flops, and the runs held out to test them."""

    laws: tuple[str, ...] = (
        "power_law_plus_constant",
        "log_linear",
        "power_law",
        "bounded_power_law",
    )
    hold_out: Literal["largest_compute"] = "largest_compute"


class IsoFlopSpec(Spec):
    """How a grid of `budgets` chooses encoder sizes, where it names none."""

    tokens_per_param: float = Field(20, ge=1e-3, le=1e9)
    """expected training tokens per non-embedding parameter at the best size; 20 holds for text, so
    adjust it to what a first study finds"""
    sizes: int = Field(5, ge=2, le=40)
    "number of encoders per budget, each about twice as large as the one before"
