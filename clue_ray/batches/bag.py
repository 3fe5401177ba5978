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

    def to(self, device: torch.device) -> "Bag":
        """Copy the tensors to a device."""
        return Bag(*(part.to(device) for part in self))


def count_tokens(histories: Lists, event_items: NDArray[np.int64], items: Lists) -> Bag:
    """Count the tokens of histories.

    Args:
        histories: of any values; only their lengths count.
        event_items: index in `items` of each event, [events].
        items: tokens of the distinct items, guide token first.
    """
    guides = items.values[np.cumsum(items.lengths) - items.lengths]
    tokens = _text_tokens(items)
    size = int(max(guides.max(), tokens.indices.max(initial=0))) + 1
    bounds = np.append(0, np.cumsum(histories.lengths))
    events = sparse.csr_array(
        (np.ones(len(event_items), np.float32), event_items, bounds),
        shape=(len(histories.lengths), len(items.lengths)),
    )
    counts = (events @ tokens).tocsr()
    counts.sort_indices()
    lengths = np.diff(counts.indptr)
    weights = 1 + np.log(counts.data)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    norms = np.sqrt(np.bincount(rows, weights**2, minlength=len(lengths)))
    weights = weights / norms[rows]
    firsts = counts.indptr[:-1]
    return Bag(
        torch.from_numpy(
            np.insert(counts.indices.astype(np.int64), firsts, guides[event_items[bounds[:-1]]])
        ),
        torch.from_numpy(np.insert(weights, firsts, 1.0).astype(np.float32)),
        torch.from_numpy((firsts + np.arange(len(firsts))).astype(np.int64)),
    )


def _text_tokens(items: Lists) -> sparse.csr_array:
    """Count the tokens of each item without its guide token, [items, vocabulary]."""
    keep = np.ones(len(items.values), bool)
    keep[np.cumsum(items.lengths) - items.lengths] = False
    values = items.values[keep]
    bounds = np.append(0, np.cumsum(items.lengths - 1))
    width = int(items.values.max()) + 1
    matrix = sparse.csr_array(
        (np.ones(len(values), np.float32), values, bounds), shape=(len(items.lengths), width)
    )
    matrix.sum_duplicates()
    return matrix
