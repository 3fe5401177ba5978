"""What an encoder can read of time: gaps to the event before and to the cut, hour and weekday.

The cut is the moment at which a user is looked at: the end of the log in evaluation, and for a
window of training the time of the event that follows it. A gap falls into one of GAPS buckets, each
twice as wide as the one before, from a second to 34 years. Each feature of an event is a row of one
table of embeddings. Host and device run the same code, so their rows are the same.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clue_ray.batches.lists import Lists
from clue_ray.corpus.store import Corpus
from clue_ray.spec.compute import GAPS, HOURS, WEEKDAYS

SECONDS_PER_HOUR, SECONDS_PER_DAY = 3600, 86_400
FIRST_WEEKDAY = 3
"""Of 1970-01-01, a Thursday; Monday is 0."""


class Clock(NamedTuple):
    """The times of sequences of events."""

    times: Lists
    "seconds since 1970 of the events of each sequence, most recent first"
    cuts: NDArray[np.float64]
    "time of the cut of each sequence, [sequences]"

    def take(self, rows: NDArray[np.int64]) -> "Clock":
        """Return the times of some sequences, in their order."""
        return Clock(self.times.take(rows), self.cuts[rows])

    def rows(self) -> Tensor:
        """Return the rows of the table that each event reads, [events, 4]."""
        times, lengths = map(torch.from_numpy, self.times)
        return clock_rows(times, lengths, torch.from_numpy(self.cuts))


def clock_rows(times: Tensor, lengths: Tensor, cuts: Tensor) -> Tensor:
    """Return the rows of each event: gap before, gap to the cut, hour and weekday, [events, 4].

    Args:
        times: seconds since 1970, sequences end to end, most recent event first, [events].
        lengths: events of each sequence, [sequences].
        cuts: time of the cut of each sequence, [sequences]; an event after it has a gap of 0.
    """
    before = _bucket(times - times.roll(-1))
    before[lengths.cumsum(0) - 1] = GAPS  # the oldest event has none before it
    to_cut = _bucket(cuts.repeat_interleave(lengths, output_size=len(times)) - times)
    seconds = times.floor().long()
    hour = seconds // SECONDS_PER_HOUR % HOURS
    weekday = (seconds // SECONDS_PER_DAY + FIRST_WEEKDAY) % WEEKDAYS
    firsts = torch.tensor([0, GAPS + 1, 2 * GAPS + 1, 2 * GAPS + 1 + HOURS], device=times.device)
    return torch.stack([before, to_cut, hour, weekday], dim=1) + firsts


def _bucket(gaps: Tensor) -> Tensor:
    """Return the bucket of each gap in seconds: 0 below 1, then k + 1 from 2^k on, up to the last.

    The edges are exact in float64, so a gap falls into the same bucket everywhere. The host
    computes them: a power on a GPU may be off in its last digit.
    """
    edges = 2.0 ** torch.arange(GAPS - 1, dtype=torch.float64)
    return torch.bucketize(gaps, edges.to(gaps.device), right=True)


def times_after(corpus: Corpus, starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the time of the event after each window in its service, the last of all if none.

    Args:
        starts: index of the most recent event of each window, [windows].
    """
    firsts = corpus.offsets[np.searchsorted(corpus.offsets, starts, side="right") - 1]
    after = corpus.times[np.maximum(starts - 1, 0)]
    return np.where(starts > firsts, after, corpus.last_time)
