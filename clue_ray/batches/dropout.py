"""What training leaves out at random: events of a history, tokens of an item, the names of
services, units of a layer.

Each choice is a hash of what it concerns (an address in the corpus) and of a key (seed and step),
never a draw from a
stream: any number of workers and chunks then makes the same choices for the same user (decision
D7).
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clue_ray.corpus.store import Corpus, ranges

MASKS = 256
"""Dropout masks a layer and step; a sequence takes one of them, for all its positions (Gal and
Ghahramani 2016)."""
HIDDEN_SHARE = 0.1
"""Share of the batches whose items all carry the shared guide token, so that it learns to stand for
any service."""


class Augmentation(NamedTuple):
    """What one global batch leaves out; the default leaves out nothing."""

    key: int = 0
    event_dropout: float = 0.0
    token_dropout: float = 0.0
    hide_services: bool = False


WHOLE = Augmentation()


class Lists(NamedTuple):
    """Lists stored end to end."""

    values: NDArray[np.int64]
    lengths: NDArray[np.int64]


def keyed_hash(addresses: NDArray[np.int64], key: int) -> NDArray[np.uint64]:
    """Hash addresses under a key to uint64, by splitmix64 (Steele, Lea and Flood 2014)."""
    z = addresses.astype(np.uint64) + np.uint64(key * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))


def kept(hashes: NDArray[np.uint64], dropout: float) -> NDArray[np.bool_]:
    """Tell which of uniform hashes stay when a share is left out."""
    return hashes >= np.uint64(dropout * 2.0**64)


def events_of(
    corpus: Corpus, starts: NDArray[np.int64], lengths: NDArray[np.int64], left_out: Augmentation
) -> Lists:
    """Return the items of stretches of the corpus' event array; the event of the highest hash
    always stays.
    """
    addresses = ranges(starts, lengths)
    items = corpus.events[addresses].astype(np.int64)
    if not left_out.event_dropout:
        return Lists(items, lengths)
    hashes = keyed_hash(addresses, left_out.key)
    bounds = np.cumsum(lengths) - lengths
    highest = np.repeat(np.maximum.reduceat(hashes, bounds), lengths)
    keep = kept(hashes, left_out.event_dropout) | (hashes == highest)
    return Lists(items[keep], np.add.reduceat(keep, bounds, dtype=np.int64))


def tokens_of(corpus: Corpus, items: NDArray[np.int64], left_out: Augmentation) -> Lists:
    """Return the tokens of items; the guide token, an item's first, always stays."""
    lengths = corpus.item_lengths[items]
    addresses = ranges(corpus.item_offsets[items], lengths)
    tokens = corpus.item_tokens[addresses].astype(np.int64)
    guides = np.cumsum(lengths) - lengths
    if left_out.hide_services:
        tokens[guides] = corpus.shared_guide
    if not left_out.token_dropout:
        return Lists(tokens, lengths)
    keep = kept(keyed_hash(addresses, left_out.key), left_out.token_dropout)
    keep[guides] = True
    return Lists(tokens[keep], np.add.reduceat(keep, guides, dtype=np.int64))


def draw_masks(sites: int, width: int, dropout: float, key: int) -> torch.Tensor:
    """Draw dropout masks, [sites, MASKS, width]: 0, or 1 / (1 - dropout)."""
    generator = torch.Generator().manual_seed(key)
    return torch.empty(sites, MASKS, width).bernoulli_(1 - dropout, generator=generator) / (
        1 - dropout
    )
