"""Sealed forecasts: written down before the run that tests them, and compared with it later.

A seal is a JSON file in the study's `forecasts/`. It names the runs that the forecast was made
from, and ends with a hash of all that it says. Verifying it recomputes that hash, and the forecast
from the same runs, so neither the card nor the runs can be changed afterwards without notice.
Commit the file before the run starts: the order of commits is the proof of time.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from clue_ray.errors import FitError, RunsError
from clue_ray.runs import Runs
from clue_ray.scaling.fitting.frontier import settings_of
from clue_ray.scaling.forecasting.forecast import LEVELS, Forecast, forecast
from clue_ray.storage.files import read_json, write_json

FOLDER = "forecasts"
SAME_PLACE = 1.1
"""Factor in x within which a later run tests a seal."""
ROUNDING = 1e-6

Outcome = Literal["open", "hit", "miss"]


class Card(NamedTuple):
    """A seal and what became of it.

    Attributes:
        seal: the sealed document.
        outcome: `open` while no run tests it; `hit` where the measured value is inside the 80 %
            interval.
        measured: y of the run that tests it, the mean over seeds.
    """

    seal: dict[str, Any]
    outcome: Outcome
    measured: float | None

    def sentence(self) -> str:
        """Describe the forecast and its outcome."""
        seal, (low, high) = self.seal, self.seal["intervals"]["0.8"]
        forecast = (
            f"{seal['y']} at {seal['x']} {seal['at']:.3g}, sealed {seal['sealed_at']}: "
            f"{seal['value']:.4g} (80 % interval: {low:.4g} to {high:.4g})"
        )
        if self.measured is None:
            return f"{forecast}; not tested yet."
        error = seal["value"] / self.measured - 1
        return f"{forecast}; measured {self.measured:.4g}: {self.outcome}, error {error:+.1%}."


def seal_forecast(runs: Runs, made: Forecast, *, x: str, y: str, folder: Path) -> Path:
    """Write a forecast as a sealed card below a study's folder and return the file.

    Raises:
        RunsError: the table has no run ids, by which the runs could be named later.
        FitError: a finished run already tests the forecast.
    """
    if "run_id" not in runs.done:
        raise RunsError("The table has no column 'run_id'; a seal names the runs it was made from.")
    measured = _measured(runs, x, y, made.at, set())
    if measured is not None:
        raise FitError(
            f"A finished run at {x} within {SAME_PLACE:g} times of {made.at:.3g} measured {y} "
            f"{measured:.4g}; a forecast is sealed before the run that tests it."
        )
    seal: dict[str, Any] = {
        "x": x,
        "y": y,
        "at": made.at,
        "value": made.value,
        "intervals": {str(level): list(made.interval(level)) for level in LEVELS},
        "chance": made.chance,
        "reach": made.reach,
        "warnings": list(made.warnings),
        "runs": sorted(map(str, runs.done["run_id"])),
        "table_sha256": _hash_table(runs, x, y, set(map(str, runs.done["run_id"]))),
        "clue_ray_version": version("clue-ray"),
        "sealed_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    seal["sha256"] = _hash(seal)
    file = folder / FOLDER / f"{y}-at-{made.at:.3g}-{seal['sha256'][:8]}.json"
    write_json(file, seal)
    return file


def read_seals(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the sealed cards below a study's folder, the earliest first."""
    files = sorted((folder / FOLDER).glob("*.json"))
    seals = [(file, read_json(file, "restore it from the commit that sealed it")) for file in files]
    yield from sorted(seals, key=lambda each: str(each[1].get("sealed_at")))


def verify_seal(file: Path, seal: dict[str, Any], runs: Runs) -> None:
    """Check that neither a card nor the runs it was made from were changed.

    Raises:
        RunsError: they were, or a run is missing; the message says which.
    """
    content = {name: value for name, value in seal.items() if name != "sha256"}
    if seal.get("sha256") != _hash(content):
        raise RunsError(f"{file} was changed after it was sealed; restore it from version control.")
    named = set(seal["runs"])
    if missing := sorted(named - set(map(str, runs.done["run_id"]))):
        raise RunsError(f"{file} was made from run {missing[0]}, which the table does not hold.")
    if _hash_table(runs, seal["x"], seal["y"], named) != seal["table_sha256"]:
        raise RunsError(f"The runs that {file} was made from have other values now than then.")
    table = runs.done[runs.done["run_id"].astype(str).isin(named)]
    again = forecast(table, x=seal["x"], y=seal["y"], at=seal["at"], chance=seal["chance"])
    if abs(again.value / seal["value"] - 1) > ROUNDING:
        raise RunsError(
            f"{file} says {seal['value']:.6g}, but version {version('clue-ray')} forecasts "
            f"{again.value:.6g} from the same runs; it was sealed by {seal['clue_ray_version']}."
        )


def open_card(seal: dict[str, Any], runs: Runs) -> Card:
    """Compare a seal with the run that tests it, where that has finished."""
    measured = _measured(runs, seal["x"], seal["y"], seal["at"], set(seal["runs"]))
    if measured is None:
        return Card(seal, "open", None)
    low, high = seal["intervals"]["0.8"]
    return Card(seal, "hit" if low <= measured <= high else "miss", measured)


def _measured(runs: Runs, x: str, y: str, at: float, before: set[str]) -> float | None:
    """Return the mean y over seeds of the best setting near `at` that is not among `before`."""
    done = runs.done
    place = done[x].astype(float)
    later = done[
        place.between(at / SAME_PLACE, at * SAME_PLACE) & ~done["run_id"].astype(str).isin(before)
    ]
    if later.empty:
        return None
    losses = later[y].astype(float)
    return float(losses.groupby(settings_of(later)).mean().min())


def _hash_table(runs: Runs, x: str, y: str, named: set[str]) -> str:
    """Hash the values of the named runs, in order of their ids."""
    done = runs.done
    rows = done[done["run_id"].astype(str).isin(named)]
    values = [
        (str(i), float(a), float(b))
        for i, a, b in zip(rows["run_id"], rows[x], rows[y], strict=True)
    ]
    return _hash(sorted(values))


def _hash(document: Any) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
