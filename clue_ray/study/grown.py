"""What `--grow` added to a study beyond its grids: kept in grown.json, part of the study like its grids."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clue_ray.scaling.fitted import Fit
from clue_ray.spec.grid import Point
from clue_ray.storage.files import read_json


@dataclass
class Grown:
    """What was added so far, as grown.json holds it."""

    at: float = 0.0
    runs: list[dict[str, Any]] = field(default_factory=list)
    "point and train_flops of each"
    intervals: list[list[float]] = field(default_factory=list)
    "of the loss at `at`, before the first round and after each"

    @classmethod
    def read(cls, directory: Path) -> "Grown":
        """Read what an earlier command added; nothing where none did."""
        file = directory / "grown.json"
        return cls(**read_json(file)) if file.exists() else cls()

    @property
    def points(self) -> list[Point]:
        """Points beyond the grids."""
        return [run["point"] for run in self.runs]

    @property
    def spent(self) -> float:
        """FLOP of the added runs."""
        return float(sum(run["train_flops"] for run in self.runs))

    def predict(self, speaker: Fit, at: float) -> None:
        """Note the interval of the loss at some compute; intervals at another compute are not comparable and go."""
        if at != self.at:
            self.at, self.intervals = at, []
        prediction = speaker.predict(train_flops=at)
        if [prediction.low, prediction.high] not in self.intervals[-1:]:
            self.intervals.append([prediction.low, prediction.high])

    def sentence(self) -> str:
        """Say what was added and what it brought."""
        added = f"Grown by {len(self.runs)} runs, {self.spent:.2e} FLOP"
        if not self.intervals:
            return f"{added}."
        (low, high), (new_low, new_high) = self.intervals[0], self.intervals[-1]
        return (
            f"{added}: the 95% interval of loss at {self.at:.2e} FLOP went from [{low:.3f}, {high:.3f}] to "
            f"[{new_low:.3f}, {new_high:.3f}]."
        )
