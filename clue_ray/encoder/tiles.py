"""Attention of many short sequences on a GPU: whole sequences in tiles, one program for each.

A flash kernel gives every sequence blocks of 128 rows of its own, and an item has about 17 tokens.
Here a program loads a tile of whole sequences (`batches.layout.tile`), computes all scores within
it and masks those between different sequences (`tile_kernels.py`). As no sequence crosses a tile,
the backward pass is one program per tile too: it needs neither atomic additions nor memory besides
the gradients.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from clue_ray.batches.layout import Groups, Layout, tile
from clue_ray.batches.transfer import copy_to

TILE = 64
"""Positions of a tile, and of the longest sequence that fits one."""
WIDEST_HEAD = 128
"""Widest head of which a tile and its gradients fit the shared memory of small GPUs, 99 KB."""


@cache
def has_triton() -> bool:
    """Return whether Triton, which compiles the kernels, is installed."""
    return find_spec("triton") is not None


def with_tiles(layout: Layout) -> Layout:
    """Add the tiles of short sequences to a layout on a GPU, for all blocks and passes to use."""
    if layout.tiles is not None or not layout.bounds.is_cuda or not has_triton():
        return layout
    short = short_groups(layout.groups)
    return layout._replace(tiles=make_tiles(short, layout.bounds.device)) if short else layout


def short_groups(groups: Groups) -> Groups:
    """Return the groups whose sequences fit a tile; they come first."""
    return [(count, length) for count, length in groups if length <= TILE]


def make_tiles(groups: Groups, device: torch.device) -> Tensor:
    """Return the tiles of groups as in `batches.layout.tile`, on a device."""
    return copy_to(torch.from_numpy(tile(groups, TILE)), device)


def attend_in_tiles(qkv: Tensor, tiles: Tensor, heads: int) -> Tensor:
    """Attend within the sequences of tiles, [positions, 3 * width] to [positions, width]."""
    attended: Tensor = _TiledAttention.apply(qkv.contiguous(), tiles, heads)
    return attended


class _TiledAttention(torch.autograd.Function):
    """The kernels as a differentiable function."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, tiles: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(qkv, tiles)
        ctx.heads = heads
        out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        from clue_ray.encoder.tile_kernels import attend_forward

        _launch(attend_forward, (qkv, out), tiles, heads)
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        qkv, tiles = ctx.saved_tensors
        gradient = torch.empty_like(qkv)
        from clue_ray.encoder.tile_kernels import attend_backward

        _launch(attend_backward, (qkv, upstream[0].contiguous(), gradient), tiles, ctx.heads)
        return gradient, None, None


def _launch(kernel: Any, tensors: tuple[Tensor, ...], tiles: Tensor, heads: int) -> None:
    """Launch a kernel for every tile and head; the first tensor is [positions, 3 * width]."""
    width = tensors[0].shape[1] // 3
    head = width // heads
    # Dimensions of a matrix product on the card are powers of two, 16 or more.
    padded = max(16, 1 << (head - 1).bit_length())
    kernel[(len(tiles), heads)](
        *tensors, tiles, head**-0.5, width, HEAD=head, PADDED=padded, ROWS=TILE,
        num_warps=count_warps(padded),
    )  # fmt: skip


def count_warps(padded: int) -> int:
    """Return how many groups of 32 threads share a program, by the columns that it loads."""
    return 4 if padded <= 64 else 8
