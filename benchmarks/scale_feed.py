"""What `feed: ray_data` costs a step on one machine, beside packing in the worker's own thread.

On one machine packers and training share the cores, so this is the overhead of Ray Data alone; its
use is cores of other nodes. Both feeds train the same runs in turn, and their losses are compared.
"""

import gc
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.prepare import ray_session
from benchmarks.scale_measured import planted
from clue_ray.cluster.session import quieten_ray_data
from clue_ray.corpus.build import build_corpus
from clue_ray.corpus.planted import write_planted
from clue_ray.corpus.store import Corpus
from clue_ray.spec.specs import CorpusSpec, EvaluationSpec, RunSpec, TrainSpec
from clue_ray.training.context import LocalContext
from clue_ray.training.feed import Batch, Pack
from clue_ray.training.loop import train_with
from clue_ray.training.streams import Stream, make_stream

EVENTS = 200_000
ROUNDS = 3
"""Runs of each feed, in turn: what else the machine does then slows both."""
FIRST = 1
"""Steps before the clock starts: the packers have started then, and pack nearly all of the run."""
RUN = RunSpec(
    encoder={"size": "xs"}, train=TrainSpec(steps=60, global_batch_size=128), sequence_length=16
)


class Timed(LocalContext):
    """A process that takes its batches from a feed, and notes when it asked for each step."""

    def __init__(self, feed: str, corpus: Corpus, folder: Path):
        super().__init__()
        self.feed, self.corpus, self.folder = feed, corpus, folder
        self.asked: list[float] = []

    def source(self, pack: Pack) -> Pack:
        """Return the feed."""
        if self.feed == "ray_data":
            rows = make_stream(RUN, self.corpus.place, str(self.folder / "none"), 0, 1)
            pack = Stream(rows.iterator(), pack)

        def noted(step: int) -> Batch:
            self.asked.append(time.perf_counter())
            return pack(step)

        return noted

    @property
    def step_seconds(self) -> float:
        """Seconds per step from the first batch on."""
        return (self.asked[-1] - self.asked[FIRST]) / (len(self.asked) - 1 - FIRST)


def compare_feeds() -> list[tuple[str, ...]]:
    """Train with both feeds in one Ray session.

    Returns:
        Rows of a table: what was measured, with the local feed and with Ray Data.
    """
    torch.set_num_threads(1)
    quieten_ray_data()
    with tempfile.TemporaryDirectory(prefix="cr-", dir="/tmp") as folder, ray_session():
        corpus = _make_corpus(Path(folder))
        runs = [_train(feed, corpus, Path(folder)) for feed in ROUNDS * ("worker", "ray_data")]
        gc.collect()  # streams end while Ray is still there
    here, streamed = runs[::2], runs[1::2]
    seconds = [median(each for each, _ in some) for some in (here, streamed)]
    return [
        ("ms per step, median of the runs", *(f"{1e3 * each:.1f}" for each in seconds)),
        (
            "ms per step, all runs",
            *(_list([each for each, _ in some]) for some in (here, streamed)),
        ),
        ("overhead per step, ms", "", f"{1e3 * (seconds[1] - seconds[0]):.1f}"),
        ("loss and training loss", *(str(some[0][1]) for some in (here, streamed))),
        ("all losses equal to the last digit", "", str(len({losses for _, losses in runs}) == 1)),
    ]


def _make_corpus(folder: Path) -> Corpus:
    write_planted(planted(EVENTS), folder / "log")
    split = {"validation": 0.1, "test": 0.1}
    spec = CorpusSpec(events=str(folder / "log"), vocab_size=1024, split=split)
    return build_corpus(spec, folder / "corpus")


def _train(feed: str, corpus: Corpus, folder: Path) -> tuple[float, tuple[Any, ...]]:
    """Train RUN; return the seconds per step and the losses."""
    context = Timed(feed, corpus, folder)
    record, _ = train_with(RUN, corpus, EvaluationSpec(candidates=64, every=1), context)
    return context.step_seconds, (record.loss, record.train_loss)


def _list(seconds: list[float]) -> str:
    return ", ".join(f"{1e3 * each:.1f}" for each in seconds)
