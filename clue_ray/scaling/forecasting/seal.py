"""Sealed forecasts: written down before the run that tests them, and compared with it later.

A seal is a JSON file in the study's `forecasts/`. It names the runs that the forecast was made
from and the engine that made it, and ends with a hash of all that it says. Verifying it recomputes
that hash and the hash of the runs' values, so neither the card nor the runs can be changed
afterwards without notice. Where the engine is the same, the forecast is recomputed, too.
Commit the file before the run starts: the order of commits is the proof of time.
"""

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from clue_ray.errors import ClueRayError, FitError, RunsError
from clue_ray.runs import Runs
from clue_ray.scaling.fitting import frontier
from clue_ray.scaling.fitting import table as tables
from clue_ray.scaling.fitting.frontier import settings_of
from clue_ray.scaling.forecasting import checks, combine, hypotheses
from clue_ray.scaling.forecasting import forecast as engine
from clue_ray.scaling.forecasting.forecast import LEVELS, Forecast, forecast
from clue_ray.storage.files import read_json, write_json

FOLDER = "forecasts"
SAME_PLACE = 1.1
"""Factor in x within which a later run tests a seal."""
ROUNDING = 1e-6
NUMBERS = ("at", "value")
TEXTS = ("x", "y", "table_sha256", "engine_sha256", "clue_ray_version", "sealed_at")
ENGINE = (frontier, tables, hypotheses, combine, checks, engine)
"""Modules whose source determines a forecast."""

Outcome = Literal["open", "hit", "miss"]


class Card(NamedTuple):
    """A seal and what became of it.

    Attributes:
        seal: the sealed document.
        outcome: `open` while no run tests it; `hit` where the measured value is inside the 80 %
            interval.
        measured: y of the run that tests it, the mean over seeds.
        note: what limits the verification; empty where the forecast was recomputed.
    """

    seal: dict[str, Any]
    outcome: Outcome
    measured: float | None
    note: str = ""

    @property
    def error(self) -> float | None:
        """The relative error of the forecast, predicted over measured - 1; None while open."""
        return None if self.measured is None else self.seal["value"] / self.measured - 1

    def sentence(self) -> str:
        """Describe the forecast and its outcome."""
        seal, (low, high) = self.seal, self.seal["intervals"]["0.8"]
        forecast = (
            f"{seal['y']} at {seal['x']} {seal['at']:.3g}, sealed {seal['sealed_at']}: "
            f"{seal['value']:.4g} (80 % interval: {low:.4g} to {high:.4g})"
        )
        if self.measured is None:
            return f"{forecast}; not tested yet."
        return f"{forecast}; measured {self.measured:.4g}: {self.outcome}, error {self.error:+.1%}."


class Judged(NamedTuple):
    """A file of a study's `forecasts/`: its card, or the reason why it cannot be believed."""

    file: Path
    card: Card | None
    problem: str = ""


def seal_forecast(runs: Runs, made: Forecast, *, x: str, y: str, folder: Path) -> Path:
    """Write a forecast as a sealed card below a study's folder and return the file.

    Raises:
        RunsError: the table has no run ids, by which the runs could be named later.
        FitError: a finished run already tests the forecast, or it is sealed already.
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
    }
    name = re.sub(r"\W+", "-", y).strip("-") or "y"  # a column may be called ../loss
    file = folder / FOLDER / f"{name}-at-{made.at:.3g}-{_hash(seal)[:8]}.json"
    if file.exists():  # twice it would count twice in the score
        raise FitError(f"This forecast is sealed already, in {file}; add runs, or another place.")
    seal |= {
        "engine_sha256": engine_fingerprint(),
        "clue_ray_version": version("clue-ray"),
        "sealed_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(file, {**seal, "sha256": _hash(seal)})
    return file


@cache
def engine_fingerprint() -> str:
    """Return a hash of the source of the modules that make forecasts.

    A version number does not identify them: between two releases they may change.
    """
    return hashlib.sha256(b"".join(Path(str(m.__file__)).read_bytes() for m in ENGINE)).hexdigest()


def read_seals(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the sealed cards below a study's folder, the earliest first."""
    files = sorted((folder / FOLDER).glob("*.json"))
    seals = [(file, read_json(file, "restore it from the commit that sealed it")) for file in files]
    yield from sorted(seals, key=lambda each: str(each[1].get("sealed_at")))


def verify_seal(file: Path, seal: dict[str, Any], runs: Runs) -> str:
    """Check that neither a card nor the runs it was made from were changed.

    Returns:
        A note where another engine sealed the card and this one forecasts otherwise; empty where
        the same forecast was recomputed.

    Raises:
        RunsError: the card or a run was changed, or a run is missing; the message says which.
        FitError: the engine that sealed it makes no forecast from the runs.
    """
    if seal.get("sha256", "") != _content_hash(seal):
        raise RunsError(f"{file} was changed after it was sealed; restore it from version control.")
    _check_fields(file, seal)
    named = set(seal["runs"])
    _check_runs(file, seal, runs, named)
    table = runs.done[runs.done["run_id"].astype(str).isin(named)]
    try:
        again = forecast(table, x=seal["x"], y=seal["y"], at=seal["at"], chance=seal.get("chance"))
    except FitError as error:
        if seal["engine_sha256"] == engine_fingerprint():
            raise
        return f"{_other_engine(seal)}, which makes no forecast from the same runs: {error}"
    return _compare(file, seal, again)


def _content_hash(seal: dict[str, Any]) -> str | None:
    """Return the hash that a card should have; None for numbers that no seal holds, such as NaN."""
    try:
        return _hash({name: value for name, value in seal.items() if name != "sha256"})
    except ValueError:
        return None


def _check_fields(file: Path, seal: dict[str, Any]) -> None:
    """Raise RunsError where a card lacks a field or holds another type."""
    ends = seal.get("intervals")
    ends = ends.get("0.8") if isinstance(ends, dict) else None
    wrong = [name for name in NUMBERS if not _is_positive(seal.get(name))]
    wrong += [name for name in TEXTS if not isinstance(seal.get(name), str)]
    wrong += [] if _is_list(seal.get("runs"), str) else ["runs"]
    wrong += [] if _is_interval(ends) else ["intervals"]
    if wrong:
        raise RunsError(f"{file} is not a sealed forecast: {wrong[0]} is missing or invalid.")


def _check_runs(file: Path, seal: dict[str, Any], runs: Runs, named: set[str]) -> None:
    """Raise RunsError unless the table holds the named runs with the values they had."""
    for column in ("run_id", seal["x"], seal["y"]):
        if column not in runs.done:
            raise RunsError(f"{file} needs column {column!r}, which the table does not hold.")
    if missing := sorted(named - set(map(str, runs.done["run_id"]))):
        raise RunsError(f"{file} was made from run {missing[0]}, which the table does not hold.")
    try:
        found = _hash_table(runs, seal["x"], seal["y"], named)
    except (TypeError, ValueError):  # text, or a value that is now missing
        found = ""
    if found != seal["table_sha256"]:
        raise RunsError(f"The runs that {file} was made from have other values now than then.")


def _compare(file: Path, seal: dict[str, Any], again: Forecast) -> str:
    """Compare a card with the forecast that is made now of the same runs.

    Another engine may forecast otherwise, which does not make an unchanged card wrong. The same
    engine must not: then the card was written by hand and hashed again.
    """
    if math.isclose(again.value, seal["value"], rel_tol=ROUNDING) and _same_ends(seal, again):
        return ""
    if seal["engine_sha256"] != engine_fingerprint():
        return f"{_other_engine(seal)}, which forecasts {again.value:.4g} from the same runs"
    raise RunsError(
        f"{file} says {seal['value']:.6g}, but the engine that it names forecasts "
        f"{again.value:.6g} from the same runs, or another interval; the card was not written by "
        "--seal."
    )


def _other_engine(seal: dict[str, Any]) -> str:
    return (
        f"the card and its runs are unchanged, but it was sealed by engine "
        f"{seal['engine_sha256'][:8]} of version {seal['clue_ray_version']} and cannot be "
        f"recomputed by the engine here, {engine_fingerprint()[:8]} of version "
        f"{version('clue-ray')}"
    )


def _same_ends(seal: dict[str, Any], again: Forecast) -> bool:
    """Return whether a card has the intervals of a forecast, at every level."""
    sealed, now = seal["intervals"], {str(level): again.interval(level) for level in LEVELS}
    return sealed.keys() == now.keys() and all(
        _is_interval(sealed[level])
        and math.isclose(sealed[level][0], low, rel_tol=ROUNDING)
        and math.isclose(sealed[level][1], high, rel_tol=ROUNDING)
        for level, (low, high) in now.items()
    )


def judge_seals(folder: Path, runs: Runs) -> tuple[Judged, ...]:
    """Verify every card below a study's folder and compare it with the run that tests it.

    A card that cannot be read or verified is kept with the reason. Verified cards come first, the
    earliest first.
    """
    judged = [_judge(file, runs) for file in sorted((folder / FOLDER).glob("*.json"))]
    return tuple(sorted(judged, key=_age))


def _age(judged: Judged) -> tuple[bool, str, float]:
    """Return a sort key: by time of sealing, files without a card last."""
    if judged.card is None:
        return True, judged.file.name, 0.0
    return False, judged.card.seal["sealed_at"], judged.card.seal["at"]


def _judge(file: Path, runs: Runs) -> Judged:
    remedy = "restore it from the commit that sealed it"
    name = Path(FOLDER) / file.name  # the reason is shown on a page that travels
    try:
        seal = read_json(file, remedy)
        note = verify_seal(name, seal, runs)
        return Judged(name, open_card(seal, runs)._replace(note=note))
    except ClueRayError as error:
        return Judged(name, None, str(error).replace(str(file), str(name)))
    except (OSError, ValueError) as error:  # a folder of that name, a number that is not JSON
        return Judged(name, None, f"{name} cannot be read ({error}); {remedy}.")


def score(cards: Sequence[Card]) -> str:
    """State how many tested forecasts were inside their 80 % interval, and the median error."""
    outcomes = [card.outcome for card in cards]
    errors = [abs(card.error) for card in cards if card.error is not None]
    waiting = outcomes.count("open")
    still = f"; {waiting} not tested yet" if waiting else ""
    if not errors:
        return f"0 tested forecasts{still}."
    return (
        f"{outcomes.count('hit')} of {len(errors)} tested forecasts inside their 80 % interval, "
        f"median error {median(errors):.1%}{still}."
    )


def _is_positive(value: Any) -> bool:
    return isinstance(value, float | int) and 0 < value <= sys.float_info.max


def _is_interval(ends: Any) -> bool:
    return _is_list(ends, float | int) and len(ends) == 2 and ends[0] <= ends[1]


def _is_list(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


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
    means = later[y].astype(float).groupby(settings_of(later, x)).mean()
    return None if means.isna().all() else float(means.min())


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
