"""gpu.json: what the phases measured, written again after every measurement, so a crash loses one.

A measurement is a JSON object: its phase, its name, its values, whether it passed (null where
nothing is required of it) and a note in words.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clue_ray.storage.files import write_json

FILE = "gpu.json"
NO_CARD = "none, the CPU"
Measurement = dict[str, Any]


@dataclass
class Recorder:
    """Appends the measurements of one phase to gpu.json.

    Attributes:
        ends: time of `time.monotonic` at which the phase should end.
    """

    folder: Path
    phase: str
    ends: float = math.inf

    @property
    def left(self) -> float:
        """Seconds that are left to the phase."""
        return self.ends - time.monotonic()

    def __call__(self, name: str, passed: bool | None = None, note: str = "", **values: Any):
        """Keep one measurement."""
        kept = {"phase": self.phase, "name": name, "passed": passed, "note": note}
        measured = {key: _rounded(value) for key, value in values.items()}
        write_json(self.folder / FILE, [*read_results(self.folder), {**kept, "values": measured}])


def read_results(folder: Path) -> list[Measurement]:
    """Read all measurements; none where there is no file yet."""
    file = folder / FILE
    return json.loads(file.read_text()) if file.exists() else []


def find(results: list[Measurement], name: str) -> dict[str, Any]:
    """Return the values of the measurement with a name; empty where there is none."""
    return next((each["values"] for each in results if each["name"] == name), {})


def _rounded(value: Any) -> Any:
    """Keep four significant digits of a float, as more would be noise; JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return float(f"{value:.4g}") if isinstance(value, float) else value
