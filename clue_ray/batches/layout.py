"""How sequences of different lengths lie end to end, and how to cut them into smaller batches.

Sequences are sorted by length, so that a run of equally long ones is a `Groups` entry: a plain view
of their positions as [sequences, length, ...] is what attention and means need. Without the sort
each sequence would be its own group, with its own kernel launch.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Groups = list[tuple[int, int]]
"""Runs of equally long sequences: (number of sequences, their length), in storage order."""


class Layout(NamedTuple):
    """Sequences stored end to end."""

    groups: Groups
    bounds: torch.Tensor
    "first position of each sequence, and the number of positions, int32 [sequences + 1]"
    masks: torch.Tensor
    "index of the dropout mask of each sequence, [sequences]"
    tiles: torch.Tensor | None = None
    "tiles of the sequences that attention takes in tiles, [tiles, 3]; None until they are made"

    @property
    def sequences(self) -> int:
        """Number of sequences."""
        return sum(count for count, _ in self.groups)

    @property
    def positions(self) -> int:
        """Number of positions of all sequences."""
        return sum(count * length for count, length in self.groups)

    @property
    def longest(self) -> int:
        """Positions of the longest sequence."""
        return self.groups[-1][1]

    @property
    def lengths(self) -> torch.Tensor:
        """Positions of each sequence, [sequences]."""
        return self.bounds.diff().long()

    def part(self, piece: Groups, first: int, start: int) -> "Layout":
        """Return the layout of consecutive sequences alone.

        Args:
            piece: their groups.
            first: index of the first of them.
            start: its first position.
        """
        stop = first + sum(count for count, _ in piece)
        return Layout(piece, self.bounds[first : stop + 1] - start, self.masks[first:stop])


def lay_out(groups: Groups, masks: torch.Tensor | None = None) -> Layout:
    """Lay out groups of sequences; without masks, for use without dropout."""
    counts, lengths = np.array(groups).T
    bounds = np.append(0, np.repeat(lengths, counts).cumsum()).astype(np.int32)
    if masks is None:
        masks = torch.zeros(int(counts.sum()), dtype=torch.long)
    return Layout(groups, torch.from_numpy(bounds), masks)


def group_lengths(lengths: NDArray[np.int64]) -> Groups:
    """Run-length encode sorted lengths."""
    distinct, counts = np.unique(lengths, return_counts=True)
    return list(zip(counts.tolist(), distinct.tolist(), strict=True))


def split_by_positions(groups: Groups, most: int) -> list[Groups]:
    """Split groups into pieces of at most `most` positions; a longer sequence is a piece alone."""
    return _split(groups, most, [length for _, length in groups])


def split_by_sequences(groups: Groups, most: int) -> list[Groups]:
    """Split groups into pieces of at most `most` sequences."""
    return _split(groups, most, [1] * len(groups))


def _split(groups: Groups, most: int, sizes: list[int]) -> list[Groups]:
    pieces: list[Groups] = [[]]
    room = most
    for (count, length), size in zip(groups, sizes, strict=True):
        while count:
            taken = min(count, max(0, room) // size) or (0 if pieces[-1] else 1)
            if taken:
                pieces[-1].append((taken, length))
            count, room = count - taken, room - taken * size
            if count:
                pieces, room = [*pieces, []] if pieces[-1] else pieces, most
    return [piece for piece in pieces if piece]


def tile(groups: Groups, rows: int) -> NDArray[np.int32]:
    """Pack whole sequences into tiles of at most `rows` positions, without moving them.

    A tile holds sequences of one length only, so that two of its positions belong to one sequence
    if their distances to the tile's start, divided by that length, are equal.

    Args:
        groups: of sequences of at most `rows` positions.
        rows: positions that a tile can hold.

    Returns:
        First position, number of positions and length of the sequences of each tile, [tiles, 3].
    """
    start, tiles = 0, []
    for count, length in groups:
        stop, stride = start + count * length, rows // length * length
        firsts = np.arange(start, stop, stride)
        taken = np.minimum(stride, stop - firsts)
        tiles.append(np.stack([firsts, taken, np.full_like(firsts, length)], axis=1))
        start = stop
    return np.concatenate(tiles).astype(np.int32)
