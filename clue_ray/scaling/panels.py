"""The panels beside an answer: BIC, sensitivity, influence, identifiability.

Takes the laws fitted and the runs they were fitted to; gives `Panels`. The one idea: all panels ask about one number,
the prediction at ten times the compute, on exactly the runs of the headline.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from clue_ray.scaling.bic import compare_bic
from clue_ray.scaling.fitted import Fit
from clue_ray.scaling.identifiability import Identifiability, identifiability
from clue_ray.scaling.influence import influence
from clue_ray.scaling.sensitivity import sensitivity


@dataclass(frozen=True)
class Panels:
    """What a careful reader asks next.

    Attributes:
        at: where the panels predict, a value a predictor.
        bic: see `compare_bic`.
        sensitivity: see `sensitivity`.
        influence: see `influence`.
        identifiability: by law name.
    """

    at: dict[str, float]
    bic: pd.DataFrame
    sensitivity: pd.DataFrame
    influence: pd.DataFrame
    identifiability: dict[str, Identifiability]

    def to_dict(self) -> dict[str, Any]:
        """Describe the panels in JSON-able values."""
        return {
            "at": self.at,
            "bic": records(self.bic),
            "sensitivity": records(self.sensitivity),
            "influence": records(self.influence),
            "identifiability": {law: found.to_dict() for law, found in self.identifiability.items()},
        }


def build_panels(
    law: str, fits: Mapping[str, Fit], table: pd.DataFrame, laws: Sequence[str], at: dict[str, float]
) -> Panels:
    """Ask every panel about the prediction at `at` by a fitted law, over the runs it was fitted to."""
    place: dict[str, Any] = {"x": fits[law].x, "y": fits[law].y}
    return Panels(
        at,
        compare_bic(laws, table, **place),
        sensitivity(law, table, at=at, laws=laws, **place),
        influence(law, table, at=at, **place),
        {name: identifiability(fit) for name, fit in fits.items()},
    )


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """List a frame's rows as JSON-able mappings."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=15) or "[]")
    return rows
