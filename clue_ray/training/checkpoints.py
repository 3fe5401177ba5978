"""A run's training state on disk: written under a temporary name and renamed, so that it is whole or absent."""

import logging
from pathlib import Path
from typing import Any

import torch

from clue_ray.runs import replacing

STATE_FILE = "state.pt"
logger = logging.getLogger(__name__)


def save_state(directory: Path, state: dict[str, Any]) -> None:
    """Write the state, replacing the one before."""
    with replacing(directory / STATE_FILE) as temporary:
        torch.save(state, temporary)


def load_state(directory: Path) -> dict[str, Any] | None:
    """Read the state, or None where there is none or it cannot be read; the run then starts anew."""
    file = directory / STATE_FILE
    if not file.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for a damaged file
        logger.warning("Checkpoint %s is damaged (%s); the run starts anew.", file, error)
        return None
    return state
