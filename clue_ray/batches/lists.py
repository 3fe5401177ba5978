"""Lists of different lengths, stored end to end."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clue_ray.corpus.ranges import ranges


class Lists(NamedTuple):
    """Lists of different lengths, stored end to end."""

    values: NDArray[Any]
    "[sum of lengths]"
    lengths: NDArray[np.int64]
    "[lists]"

    def take(self, rows: NDArray[np.int64]) -> "Lists":
        """Return the lists of some rows, in their order."""
        lengths = self.lengths[rows]
        starts = (np.cumsum(self.lengths) - self.lengths)[rows]
        return Lists(self.values[ranges(starts, lengths)], lengths)
