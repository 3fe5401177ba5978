"""What a run leaves for people who watch it: a log file, and TensorBoard events of its curve.

`tensorboard --logdir <study directory>` shows every run, with its hyper-parameters, over users
seen. The curve in the checkpoint is the record. The event files are derived from it, so a run that
resumes after a kill writes them again from the start.
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
"""Log of the process that starts a run's workers, if it cannot append to the first worker's."""
EVENT_FILES = r"events\.out\.tfevents\..*"
"""Pattern of the names of event files."""
FORMAT = "%(asctime)s %(levelname)s %(message)s"
POSITION = ("step", "users_seen")
"""Columns of a curve that are not values but positions."""
logger = logging.getLogger(__name__)
NO_HYPERPARAMETERS = {"run_id", "study", "corpus_digest", "clue_ray_version"}


@contextmanager
def log_to(folder: Path, name: str = LOG_FILE) -> Iterator[None]:
    """Append what the package logs inside the block to a file of the folder."""
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


@contextmanager
def _tolerated() -> Iterator[None]:
    """Warn of a disk that refuses: event files are derived from the curve, and no run fails."""
    try:
        yield
    except OSError as error:
        logger.warning("The TensorBoard events of this run are incomplete (%s).", error)


class CurveEvents:
    """Event files of one run's learning curve; a context that closes them."""

    def __init__(self, folder: Path, description: RunDescription):
        """Start again in a folder: delete its event files.

        Args:
            description: The run's hyper-parameters, among others.
        """
        self.writer: Any = None  # none where the disk refuses
        self.shown = 0
        with _tolerated():
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            self.writer = SummaryWriter(str(folder))
            named = description.model_dump(exclude=NO_HYPERPARAMETERS)
            for summary in hparams(named, {"loss": 0.0}):
                self.writer.file_writer.add_summary(summary)

    def __enter__(self) -> "CurveEvents":
        return self

    def __exit__(self, *_: object) -> None:
        with _tolerated():
            if self.writer is not None:
                self.writer.close()

    def show(self, curve: list[dict[str, float]]) -> None:
        """Write the points of a curve that are new."""
        with _tolerated():
            for point in curve[self.shown :] if self.writer is not None else []:
                for column in point.keys() - POSITION:
                    self.writer.add_scalar(column, point[column], int(point["users_seen"]))
            self.shown = len(curve)
            if self.writer is not None:
                self.writer.flush()
