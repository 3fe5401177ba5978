"""What a run leaves for those who watch it, in its own folder: log.txt, and TensorBoard event files
of its curve.

`tensorboard --logdir <study directory>` shows every run, with its hyper-parameters, over users
seen. The curve in the checkpoint is the record; event files follow it, and are written anew when a
run goes on after a kill.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from clue_ray.runs import RunDescription

LOG_FILE = "log.txt"
DRIVER_LOG = "driver.txt"
"""Log of who started a run's workers, where storage cannot append to theirs."""
FORMAT = "%(asctime)s %(levelname)s %(message)s"
POSITION = ("step", "users_seen")
"""Columns of a curve that say where, not what."""
NO_HYPERPARAMETERS = {"run_id", "study", "corpus_digest", "clue_ray_version"}


@contextmanager
def log_to(folder: Path, name: str = LOG_FILE) -> Iterator[None]:
    """Append what the package logs meanwhile to a file of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / name, encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORMAT))
    logger = logging.getLogger("clue_ray")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


class CurveEvents:
    """Event files of one run's learning curve; a context, as it closes them."""

    def __init__(self, folder: Path, description: RunDescription):
        """Start anew in a folder.

        Args:
            description: The run's hyper-parameters, among others.
        """
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        writer: Any = SummaryWriter(
            str(folder)
        )  # Any, as torch's annotations give it no file writer
        self.writer = writer
        self.shown = 0
        named = description.model_dump(exclude=NO_HYPERPARAMETERS)
        for summary in hparams(named, {"loss": 0.0}):
            writer.file_writer.add_summary(summary)

    def __enter__(self) -> "CurveEvents":
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def show(self, curve: list[dict[str, float]]) -> None:
        """Write the points of a curve that are not written yet."""
        for point in curve[self.shown :]:
            for column in point.keys() - POSITION:
                self.writer.add_scalar(column, point[column], int(point["users_seen"]))
        self.shown = len(curve)
        self.writer.flush()
