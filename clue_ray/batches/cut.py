"""Windows before and after a cut in time: a user's past and future, in all services.

Each user has a cut of their own, at the time of one of their events, drawn at random. The future is
the events from that time on, the past those before it, so events at equal times are never torn
apart. The windows of both lie next to the cut.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clue_ray.batches.packing import Windows
from clue_ray.corpus.store import Corpus


class Sides(NamedTuple):
    """The windows of both sides of the users' cuts; a side lacks the services without events."""

    windows: Windows
    "sorted by side (future, then past), user and service"
    views: NDArray[np.int64]
    "which view each window is a part of: user u's future is view u, the past users + u, [windows]"
    cuts: NDArray[np.float64]
    "time of each user's cut, [users]"


def cut_histories(
    corpus: Corpus, users: NDArray[np.int64], sequence_length: int, rng: np.random.Generator
) -> Sides:
    """Draw a cut per user, and take up to `sequence_length` events per service next to it.

    Args:
        users: indices of users who all have events at two different times.
    """
    rows = users[:, None] * len(corpus.services) + np.arange(len(corpus.services))
    starts, stops = corpus.offsets[rows], corpus.offsets[rows + 1]
    cuts = _draw_cuts(corpus, starts, stops, rng)
    bounds = _first_before(corpus.times, starts, stops, np.broadcast_to(cuts[:, None], rows.shape))
    future = np.minimum(bounds - starts, sequence_length)
    past = np.minimum(stops - bounds, sequence_length)
    lengths = np.stack([future, past])
    views = np.broadcast_to(np.arange(2 * len(users)).reshape(2, -1, 1), lengths.shape)
    there = lengths > 0
    windows = Windows(np.stack([bounds - future, bounds])[there], lengths[there])
    return Sides(windows, views[there], cuts)


def _draw_cuts(
    corpus: Corpus,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Draw the time of one event of each user, later than the user's first, [users]."""
    drawn = corpus.times[rng.integers(starts[:, 0], stops[:, -1])]
    # An absent service has no oldest event; the index is moved inside the array and not read.
    oldest = corpus.times[np.maximum(stops - 1, 0)]
    first = np.where(stops > starts, oldest, np.inf).min(1)
    # At the first time nothing would be before the cut, so it moves behind that time.
    return np.where(drawn > first, drawn, np.nextafter(first, np.inf))


def _first_before(
    times: NDArray[np.float64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    cuts: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Find the first event before a cut in each stretch of descending times, by bisection."""
    low, high = starts.copy(), stops.copy()
    while (open_ := low < high).any():
        middle = (low + high) // 2
        later = open_ & (times[np.minimum(middle, len(times) - 1)] >= cuts)
        low = np.where(later, middle + 1, low)
        high = np.where(open_ & ~later, middle, high)
    return low
