"""Attention within sequences that are stored end to end, by the fastest path of the device.

- On the CPU, and in fp32 on a GPU: one dense call per length.
- On a GPU in half precision: sequences of at most `TILE` positions in tiles (`tiles.py`), as a
  flash kernel would pad each of them to its own block of 128 rows; longer ones, and heads that are
  too wide for a tile, in variable-length flash attention.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clue_ray.batches.layout import Groups, Layout, split_by_sequences
from clue_ray.encoder.tiles import WIDEST_HEAD as WIDEST_IN_TILES
from clue_ray.encoder.tiles import attend_in_tiles, has_triton, make_tiles, short_groups

FLASH_MULTIPLE = 8
"""Head widths that the variable-length kernel takes are multiples of this."""
WIDEST_HEAD = 256
"""Widest head that it takes."""
FLASH_ROWS = 128
"""Rows to which its backward pass pads each sequence."""
MOST_SEQUENCES = 65_535
"""Largest size of the grid dimension in which CUDA counts the sequences of one call."""


def attend(qkv: Tensor, layout: Layout, heads: int) -> Tensor:
    """Attend within each sequence, [positions, 3 * width] to [positions, width]."""
    half = qkv.dtype in (torch.bfloat16, torch.float16)
    head_width = qkv.shape[1] // 3 // heads
    if qkv.is_cuda and half and head_width % FLASH_MULTIPLE == 0 and head_width <= WIDEST_HEAD:
        return _attend_on_a_gpu(qkv, layout, heads)
    return attend_by_length(qkv, layout.groups, heads)


def _attend_on_a_gpu(qkv: Tensor, layout: Layout, heads: int) -> Tensor:
    """Attend in tiles within short sequences, which come first, and by flash within the others."""
    short = short_groups(layout.groups)
    if not short or not has_triton() or qkv.shape[1] // 3 // heads > WIDEST_IN_TILES:
        return attend_by_varlen(qkv, layout, heads)
    tiles = make_tiles(short, qkv.device) if layout.tiles is None else layout.tiles
    if len(short) == len(layout.groups):
        return attend_in_tiles(qkv, tiles, heads)
    sequences, positions = (sum(n) for n in zip(*((c, c * n) for c, n in short), strict=True))
    tiled, rest = qkv.split([positions, len(qkv) - positions])
    longer = layout.part(layout.groups[len(short) :], sequences, positions)
    return torch.cat([attend_in_tiles(tiled, tiles, heads), attend_by_varlen(rest, longer, heads)])


def attend_by_length(qkv: Tensor, groups: Groups, heads: int) -> Tensor:
    """Attend once per length, on a dense [sequences, heads, length, head width] each."""
    parts = []
    # One `split`, not a slice per group: the gradient of each slice would be as large as qkv.
    sizes = [count * length for count, length in groups]
    for part, (count, length) in zip(qkv.split(sizes), groups, strict=True):
        q, k, v = part.view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        parts.append(attended.transpose(1, 2).reshape(count * length, -1))
    return torch.cat(parts)


def attend_by_varlen(qkv: Tensor, layout: Layout, heads: int) -> Tensor:
    """Attend in variable-length flash attention, in as many calls as its limits require."""
    pieces = split_by_sequences(layout.groups, most_sequences(qkv.shape[1] // 3, heads))
    sizes = [sum(count * length for count, length in piece) for piece in pieces]
    attended, first, start = [], 0, 0
    for part, piece, size in zip(qkv.split(sizes), pieces, sizes, strict=True):
        bounds = layout.part(piece, first, start).bounds
        attended.append(_attend_once(part, bounds, piece[-1][1], heads))
        first, start = first + len(bounds) - 1, start + size
    return torch.cat(attended) if len(attended) > 1 else attended[0]


def most_sequences(width: int, heads: int) -> int:
    """Return how many sequences one call of variable-length attention may hold.

    CUDA's grid ends at 65,535. The backward pass of FlashAttention 2 keeps 128 rows per sequence
    and, before Dao-AILab/flash-attention#1500, computes their addresses in 32 bits.
    """
    rounded = -(-width // heads // 32) * 32
    return min(MOST_SEQUENCES, (2**31 - 1) // (FLASH_ROWS * heads * rounded))


def _attend_once(qkv: Tensor, bounds: Tensor, longest: int, heads: int) -> Tensor:
    # Imported on a GPU alone: it brings the compiler, two seconds in every process.
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = qkv.view(len(qkv), 3, heads, -1).unbind(1)
    attended: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest)
    return attended.reshape(len(qkv), -1)
