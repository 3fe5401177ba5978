"""Check what layout.json and recipe.json say, which a stranger may have written, before it is used.

Storage is not trusted: an absurd number of services would fill memory, and a stretch of a part that
is longer than its file would be read for years.
"""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator

from clue_ray.errors import CorpusError

STRICT = ConfigDict(strict=True, allow_inf_nan=False)


class _Facts(BaseModel):
    """What a layout says about itself; `files` and `bytes` are added once it is assembled."""

    model_config = STRICT

    version: int
    digest: str
    services: PositiveInt
    users: NonNegativeInt
    events: NonNegativeInt
    items: NonNegativeInt
    tokens: NonNegativeInt
    users_in_two_services: NonNegativeInt
    last_time: float
    pool_bounds: dict[str, list[NonNegativeInt]]
    files: dict[str, str] = {}
    bytes: dict[str, NonNegativeInt] | None = None


class _Piece(BaseModel):
    """A stretch of a part."""

    model_config = STRICT

    part: str
    start: NonNegativeInt
    stop: NonNegativeInt

    @model_validator(mode="after")
    def _runs_forwards(self) -> Self:
        """Refuse a stretch of negative length, which would hide another one's in their sum."""
        if self.stop < self.start:
            raise ValueError(f"a stretch of {self.part} ends before it starts")
        return self


class _Recipe(BaseModel):
    """What a recipe names: files, and stretches of them."""

    model_config = STRICT

    pieces: dict[str, list[_Piece]]
    files: dict[str, str]


def check_facts(facts: Any, splits: Iterable[str]) -> None:
    """Raise ValueError or TypeError where facts are not those of a layout with these splits."""
    found = _Facts(**facts)
    pools = found.services * (found.services + 1) // 2 + 1  # see `arrays.service_pairs`
    for split in splits:
        bounds = found.pool_bounds.get(split, [])
        if len(bounds) != pools + 1 or any(low > high for low, high in pairwise(bounds)):
            raise ValueError(f"its pools of {split} users do not fit its services")


def check_recipe(recipe: Any) -> None:
    """Raise ValueError where a recipe does not name files and stretches of them."""
    _Recipe.model_validate(recipe)


def check_pieces(folder: Path, array: str, pieces: Iterable[Any], size: int) -> None:
    """Check that the pieces of an array take no more of the parts in a folder than they hold.

    Args:
        size: bytes of one number; 0 where each part is taken once, and whole.

    Raises:
        CorpusError: they take more, and would fill the disk or never end.
    """
    used = list(pieces)
    held = {piece.part: _bytes_of(folder / piece.part) for piece in used}
    taken = size * sum(piece.stop - piece.start for piece in used)
    short = any(size * piece.stop > held[piece.part] for piece in used)
    again = taken > sum(held.values()) or (not size and len(held) < len(used))
    if short or again:
        raise CorpusError(
            f"The layout's recipe takes more of the parts of {array} than they hold; delete the "
            "corpus there and prepare it again."
        )


def _bytes_of(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
