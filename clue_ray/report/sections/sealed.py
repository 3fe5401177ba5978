"""The section on sealed forecasts: what was predicted before a run, and how it turned out."""

from clue_ray.report import numbers
from clue_ray.report.read import StudyFiles
from clue_ray.report.section import Section
from clue_ray.report.tables import Cell, Table, written
from clue_ray.scaling.forecasting.seal import Card, score
from clue_ray.spec.columns import short_label

WORDS = (
    "Each forecast was written to the study before the run that tests it, with a hash of its "
    "numbers and of the runs behind it; the commit of its file proves when. For this page it was "
    "recomputed from those runs, unless it names another engine. A hit is a measured value inside "
    "the 80 % interval."
)
HEADS = ("outcome", "forecast of", "sealed", "predicted [80%]", "measured", "error")


def sealed(files: StudyFiles) -> Section | None:
    """List the sealed forecasts with their outcomes and the score; None without seals."""
    if not files.seals:
        return None
    cards = [each.card for each in files.seals if each.card]
    problems = tuple(f"Not verified: {each.problem}" for each in files.seals if not each.card)
    counted = (f"{len(cards)} verified; {score(cards)}", *_uncounted(len(problems)))
    tables = (_card_table(cards),) if cards else ()
    words = (WORDS, " ".join(counted))
    return Section("sealed", "Sealed forecasts", "sealed forecasts", words, (), tables, problems)


def _uncounted(count: int) -> tuple[str, ...]:
    """State how many files are not in the score."""
    return (f"{count} not verified, and so not in the score.",) if count else ()


def _card_table(cards: list[Card]) -> Table:
    """List the verified cards, the earliest first."""
    lost = frozenset(index for index, card in enumerate(cards) if card.outcome == "miss")
    return Table(HEADS, tuple(map(_row, cards)), lost=lost)


def _row(card: Card) -> tuple[Cell, ...]:
    seal, (low, high) = card.seal, card.seal["intervals"]["0.8"]
    where = f"at {short_label(seal['x'])} {numbers.significant(seal['at'])}"
    day, _, time = seal["sealed_at"].partition("T")
    return (
        Cell(card.outcome, card.outcome, detail=card.note),
        Cell(short_label(seal["y"]), seal["y"], detail=where),
        Cell(day, seal["sealed_at"], detail=time[:5]),
        written(numbers.interval(seal["value"], low, high)),
        written(numbers.significant(card.measured)),
        written(numbers.signed_percent(card.error)),
    )
