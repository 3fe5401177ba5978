"""What a launcher offers the training loop, and the simplest launcher: this process."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from clue_ray.training.checkpoints import StateWriter, load_state
from clue_ray.training.feed import Pack


class Context(Protocol):
    """What a launcher offers the loop."""

    rank: int
    world_size: int

    @property
    def directory(self) -> str | Path | None:
        """Folder or URI where states are kept."""

    def restore(self) -> dict[str, Any] | None:
        """Return the last saved state, or None at a fresh start."""

    def save(self, state: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Keep a state; every worker calls it at the same steps."""

    def progress(self, metrics: dict[str, Any]) -> None:
        """Report that the run is alive."""

    def flush(self) -> None:
        """Wait until every saved state is kept."""

    def source(self, pack: Pack) -> Pack:
        """Return what gives this worker its share of each batch: `pack`, or who packs for it."""


@dataclass
class LocalContext:
    """One process; state in a folder, or nowhere."""

    directory: str | Path | None = None
    rank: int = 0
    world_size: int = 1

    @cached_property
    def writer(self) -> StateWriter:
        """Writes the states."""
        assert self.directory is not None
        return StateWriter(self.directory)

    def restore(self) -> dict[str, Any] | None:
        """Read the folder's state."""
        return load_state(self.directory) if self.directory else None

    def save(self, state: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Start to write the folder's state."""
        if self.directory:
            self.writer.write(state)
        self.progress(metrics)

    def flush(self) -> None:
        """Wait until the last state is written."""
        if self.directory:
            self.writer.close()

    def source(self, pack: Pack) -> Pack:
        """Pack in this process."""
        return pack

    def progress(self, metrics: dict[str, Any]) -> None:
        """Do nothing; a launcher that shows progress overrides it."""
