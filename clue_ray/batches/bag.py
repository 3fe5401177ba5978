"""The bag of tokens of each history: which tokens it holds, and how often, saturated.

A mean over events forgets how often a token occurs and how many different ones there are. The
encoder's wide part reads both from here.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from clue_ray.batches.lists import Lists


class Bag(NamedTuple):
    """Distinct tokens of each sequence, sequences end to end."""

    tokens: torch.Tensor
    "token ids, the guide token of the sequence's service first, [entries]"
    weights: torch.Tensor
    "1 for a guide token; (1 + ln count) / length for others, unit vectors, [entries]"
    starts: torch.Tensor
    "first entry of each sequence, [sequences]"

    def split(self, counts: list[int]) -> list["Bag"]:
        """Split into the bags of consecutive sequences, `counts` of them each."""
        firsts = np.append(0, np.cumsum(counts))
        # The bounds cross to the host, so a batch is split where it is packed, not where it trains.
        ends = [*self.starts[torch.from_numpy(firsts[:-1])].tolist(), len(self.tokens)]
        return [
            Bag(self.tokens[start:stop], self.weights[start:stop], self.starts[a:b] - start)
            for start, stop, a, b in zip(ends, ends[1:], firsts, firsts[1:], strict=False)
        ]


NO_BAG = Bag(torch.empty(0, dtype=torch.long), torch.empty(0), torch.empty(0, dtype=torch.long))
"""For an encoder that does not read it."""


def count_tokens(histories: Lists, event_items: NDArray[np.int64], items: Lists) -> Bag:
    """Count the tokens of histories.

    Args:
        histories: of any values; only their lengths count.
        event_items: index in `items` of each event, histories end to end, [events].
        items: tokens of the distinct items, guide token first.
    """
    bounds = np.append(0, np.cumsum(histories.lengths))
    ones = np.ones(len(event_items))
    occurrences = sparse.csr_array(
        (ones, event_items, bounds), shape=(len(histories.lengths), len(items.lengths))
    )
    counts = sparse.csr_array(occurrences @ _text_tokens(items))
    counts.sort_indices()  # the order of additions, and with it the last digit, is then fixed
    firsts = counts.indptr[:-1].astype(np.int64)
    guides = items.values[_starts(items)][event_items[bounds[:-1]]]
    return Bag(
        torch.from_numpy(np.insert(counts.indices.astype(np.int64), firsts, guides)),
        torch.from_numpy(np.insert(_saturate(counts), firsts, 1.0).astype(np.float32)),
        torch.from_numpy(firsts + np.arange(len(firsts))),
    )


def _saturate(counts: sparse.csr_array) -> NDArray[np.float64]:
    """Return 1 + ln count of each entry, scaled so that each row is a unit vector."""
    weights: NDArray[np.float64] = 1 + np.log(counts.data)
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    norms = np.sqrt(np.bincount(rows, weights**2, minlength=counts.shape[0]))
    return weights / norms[rows]


def _text_tokens(items: Lists) -> sparse.csr_array:
    """Count the tokens of each item without its guide token, [items, tokens]."""
    text = np.ones(len(items.values), bool)
    text[_starts(items)] = False
    values = items.values[text]
    bounds = np.append(0, np.cumsum(items.lengths - 1))
    shape = (len(items.lengths), int(items.values.max()) + 1)
    matrix = sparse.csr_array((np.ones(len(values)), values, bounds), shape=shape)
    matrix.sum_duplicates()
    return matrix


def _starts(lists: Lists) -> NDArray[np.int64]:
    return np.cumsum(lists.lengths) - lists.lengths
