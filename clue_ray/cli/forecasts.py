"""The command that forecasts a larger run, seals the forecast and verifies earlier ones."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clue_ray.cli.options import Json, RunsOf, Where, X, Y, console
from clue_ray.errors import FitError, SpecError

if TYPE_CHECKING:
    from clue_ray.runs import Runs
    from clue_ray.scaling.forecasting.forecast import Forecast


def forecast(
    runs: RunsOf,
    at: Annotated[
        list[float] | None, typer.Option(help="Value of x to forecast at. Repeat for several.")
    ] = None,
    x: X = None,
    y: Y = None,
    where: Where = None,
    chance: Annotated[
        float | None, typer.Option(help="y of a model that learns nothing, if it is known.")
    ] = None,
    seal: Annotated[
        bool, typer.Option("--seal", help="Write each forecast to the study's forecasts/.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the sealed forecasts and show their outcomes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Forecast the loss of a larger run, with intervals calibrated by backtest."""
    from clue_ray.cli.foreign import open_runs
    from clue_ray.runs import read_runs
    from clue_ray.scaling.forecasting.forecast import forecast as make

    _check_options(runs, at, seal, verify, where)
    if verify:
        return _verify(runs, read_runs(runs), as_json)
    opened = open_runs(runs, [x] if x else None, y, where)
    table, (spent,), loss = opened.runs, opened.x, opened.y
    made = [make(table, x=spent, y=loss, at=place, chance=chance) for place in at or ()]
    files = [_seal(table, each, spent, loss, runs) for each in made] if seal else []
    if as_json:
        documents = [each.to_dict() for each in made]
        printed = {"forecasts": documents, "sealed": list(map(str, files))}
        return print(json.dumps({**printed, "notes": list(opened.notes)}))
    opened.print_notes(console)
    for each in made:
        _print(each, opened.called_x, opened.called_y)
    for file in files:
        console.print(f"Sealed: {file}", highlight=False, markup=False, soft_wrap=True)
    return None


def _check_options(
    runs: Path, at: list[float] | None, seal: bool, verify: bool, where: str | None
) -> None:
    from clue_ray.foreign.study import is_study

    if verify and (at or seal):
        raise SpecError("--verify checks the sealed forecasts; give it without --at and --seal.")
    if not verify and not at:
        raise SpecError("Forecast takes --at, the value of x to forecast at; give one or more.")
    if seal and where:
        raise SpecError(
            "A seal is made from all runs of its study, as a run that --where leaves out may test "
            "it already; give --seal without --where."
        )
    if (seal or verify) and not is_study(runs):
        raise SpecError(f"{runs} is not a study's directory, where sealed forecasts are; give one.")


def _seal(table: "Runs", made: "Forecast", x: str, y: str, folder: Path) -> Path:
    from clue_ray.scaling.forecasting.seal import seal_forecast

    return seal_forecast(table, made, x=x, y=y, folder=folder)


def _print(made: "Forecast", x: str, y: str) -> None:
    """Print a forecast: the sentence, the laws with their weights, the warnings."""
    console.print(made.sentence(x, y), highlight=False)
    laws = "; ".join(f"{weight:.0%} {law}" for law, weight in made.laws.items())
    console.print(f"Combined from: {laws}.", highlight=False)
    for warning in made.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)


def _verify(folder: Path, table: "Runs", as_json: bool) -> None:
    """Verify every seal of a study and print its outcome.

    Raises:
        FitError: the study has no sealed forecast.
        RunsError: a seal or its runs were changed.
    """
    from clue_ray.scaling.forecasting.seal import open_card, read_seals, score, verify_seal

    seals = list(read_seals(folder))
    if not seals:
        raise FitError(f"{folder} has no sealed forecast; write one with --at VALUE --seal.")
    notes = [verify_seal(file, seal, table) for file, seal in seals]
    cards = [
        open_card(seal, table)._replace(note=note)
        for (_, seal), note in zip(seals, notes, strict=True)
    ]
    if as_json:
        return print(json.dumps([_card_dict(card) for card in cards]))
    for card in cards:
        console.print(card.sentence(), highlight=False)
        if card.note:
            console.print(f"note: {card.note}.", highlight=False)
    console.print(f"{len(cards)} verified; {score(cards)}", highlight=False)
    return None


def _card_dict(card: Any) -> dict[str, Any]:
    return {**card.seal, "outcome": card.outcome, "measured": card.measured, "note": card.note}
