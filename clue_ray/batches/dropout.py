"""Random omissions in training: events, tokens, names of services and units of a layer.

Each choice is a hash of a key (drawn from seed and step) and of an address in the corpus. A stream
of random numbers would give a user other numbers on each number of workers and chunks; a hash gives
the same ones everywhere (decision D7), and resuming needs no generator state.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

MASKS = 256
"""Unit-dropout masks per layer and step.

A sequence uses one of them at all of its positions (Gal and Ghahramani 2016). So a mask depends on
the sequence and not on where it is stored, and a fixed number of masks is cheap to draw.
"""
HIDDEN_SHARE = 0.1
"""Share of the batches in which every item carries the shared guide token.

They teach that token to stand for any service, one unknown to the corpus included.
"""


class Dropout(NamedTuple):
    """What one global batch leaves out; by default nothing."""

    key: int = 0
    "seed of all choices below"
    event_dropout: float = 0.0
    token_dropout: float = 0.0
    hide_services: bool = False


NO_DROPOUT = Dropout()


def keyed_hash(addresses: NDArray[np.int64], key: int) -> NDArray[np.uint64]:
    """Hash addresses under a key to uniform uint64, by splitmix64 (Steele, Lea and Flood 2014)."""
    z = addresses.astype(np.uint64) + np.uint64(key * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))


def kept(hashes: NDArray[np.uint64], rate: float) -> NDArray[np.bool_]:
    """Return which uniform hashes are kept when a share of `rate` is dropped."""
    return hashes >= np.uint64(rate * 2.0**64)


def keep_events(
    addresses: NDArray[np.int64], lengths: NDArray[np.int64], dropout: Dropout
) -> NDArray[np.bool_]:
    """Return which events are kept, [events]; at least one per history.

    Args:
        addresses: indices of the events in the corpus, histories end to end, [events].
        lengths: events of each history, none of them 0, [histories].
    """
    hashes = keyed_hash(addresses, dropout.key)
    # The event with the highest hash would be the last to go, so it is the natural one to keep.
    highest = np.maximum.reduceat(hashes, np.cumsum(lengths) - lengths)
    return kept(hashes, dropout.event_dropout) | (hashes == np.repeat(highest, lengths))


def keep_tokens(
    addresses: NDArray[np.int64], guides: NDArray[np.int64], dropout: Dropout
) -> NDArray[np.bool_]:
    """Return which tokens are kept, [tokens]; the guide token of each item always is.

    Args:
        addresses: indices of the tokens in the corpus, items end to end, [tokens].
        guides: positions of the items' guide tokens in `addresses`, [items].
    """
    keep = kept(keyed_hash(addresses, dropout.key), dropout.token_dropout)
    keep[guides] = True
    return keep


def draw_masks(sites: int, width: int, rate: float, key: int) -> torch.Tensor:
    """Draw unit-dropout masks, [sites, MASKS, width], with entries 0 or 1 / (1 - rate).

    They are drawn on the CPU, so that the numbers do not depend on the device that trains.
    """
    generator = torch.Generator().manual_seed(key)
    return torch.empty(sites, MASKS, width).bernoulli_(1 - rate, generator=generator) / (1 - rate)
