"""What the training loop asks of whoever launches it, and the plain answer: this process, a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from clue_ray.training.checkpoints import load_state, save_state


class Context(Protocol):
    """What a launcher offers the loop."""

    rank: int
    world_size: int
    directory: str | Path | None
    "folder or URI where states are kept"

    def restore(self) -> dict[str, Any] | None:
        """Return the last saved state, or None at a fresh start."""

    def save(self, state: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Keep a state; every worker calls it at the same steps."""

    def progress(self, metrics: dict[str, Any]) -> None:
        """Hear that the run is alive."""


@dataclass
class LocalContext:
    """One process; state in a folder, or nowhere."""

    directory: str | Path | None = None
    rank: int = 0
    world_size: int = 1

    def restore(self) -> dict[str, Any] | None:
        """Read the folder's state."""
        return load_state(self.directory) if self.directory else None

    def save(self, state: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Write the folder's state."""
        if self.directory:
            save_state(self.directory, state)
        self.progress(metrics)

    def progress(self, metrics: dict[str, Any]) -> None:
        """Do nothing; a launcher that shows progress overrides it."""
