"""Attention of many short sequences on a GPU: whole sequences in tiles, one program for each.

A flash kernel gives every sequence blocks of 128 rows of its own, and an item has about 17 tokens.
Here a program loads a tile of whole sequences (`batches.layout.tile`), computes all scores within
it and masks those between different sequences. As no sequence crosses a tile, the backward pass is
one program per tile too: it needs neither atomic additions nor memory besides the gradients.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from clue_ray.batches.layout import Layout, tile

TILE = 64
"""Positions of a tile, and of the longest sequence that fits one."""

if find_spec("triton") is not None:
    import triton
    import triton.language as tl

    @triton.jit
    def _load(qkv, rows, columns, inside, stride, offset):  # type: ignore[no-untyped-def]
        """Load a tile of queries, keys or values, [TILE, head width]."""
        places = rows[:, None].to(tl.int64) * stride + offset + columns[None, :]
        return tl.load(qkv + places, mask=inside, other=0.0)

    @triton.jit
    def _weights(q, k, row, taken, length, scale):  # type: ignore[no-untyped-def]
        """Return softmax weights within the sequences of a tile, fp32 [TILE, TILE]."""
        scores = tl.dot(q, tl.trans(k)) * scale
        owner = row // length
        same = (owner[:, None] == owner[None, :]) & (row[None, :] < taken)
        scores = tl.where(same, scores, -1e30)
        raised = tl.exp(scores - tl.max(scores, 1)[:, None])
        raised = tl.where(same, raised, 0.0)
        total = tl.sum(raised, 1)
        return raised / tl.where(total > 0, total, 1.0)[:, None]

    @triton.jit  # type: ignore[untyped-decorator]
    def _forward(  # type: ignore[no-untyped-def]
        qkv, out, tiles, scale, width, heads, HEAD: tl.constexpr, PADDED: tl.constexpr,
        ROWS: tl.constexpr,
    ):  # fmt: skip
        """Attend within one tile and head."""
        number, head = tl.program_id(0), tl.program_id(1)
        start, taken = tl.load(tiles + 3 * number), tl.load(tiles + 3 * number + 1)
        length = tl.load(tiles + 3 * number + 2)
        row, column = tl.arange(0, ROWS), tl.arange(0, PADDED)
        inside = (row[:, None] < taken) & (column[None, :] < HEAD)
        rows, offset = start + row, head * HEAD
        q = _load(qkv, rows, column, inside, 3 * width, offset)
        k = _load(qkv, rows, column, inside, 3 * width, offset + width)
        v = _load(qkv, rows, column, inside, 3 * width, offset + 2 * width)
        weights = _weights(q, k, row, taken, length, scale)
        attended = tl.dot(weights.to(v.dtype), v)
        places = rows[:, None].to(tl.int64) * width + offset + column[None, :]
        tl.store(out + places, attended.to(out.dtype.element_ty), mask=inside)

    @triton.jit  # type: ignore[untyped-decorator]
    def _backward(  # type: ignore[no-untyped-def]
        qkv, upstream, gradient, tiles, scale, width, heads, HEAD: tl.constexpr,
        PADDED: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        """Compute the gradients of queries, keys and values of one tile and head."""
        number, head = tl.program_id(0), tl.program_id(1)
        start, taken = tl.load(tiles + 3 * number), tl.load(tiles + 3 * number + 1)
        length = tl.load(tiles + 3 * number + 2)
        row, column = tl.arange(0, ROWS), tl.arange(0, PADDED)
        inside = (row[:, None] < taken) & (column[None, :] < HEAD)
        rows, offset = start + row, head * HEAD
        q = _load(qkv, rows, column, inside, 3 * width, offset)
        k = _load(qkv, rows, column, inside, 3 * width, offset + width)
        v = _load(qkv, rows, column, inside, 3 * width, offset + 2 * width)
        above = _load(upstream, rows, column, inside, width, offset).to(v.dtype)
        weights = _weights(q, k, row, taken, length, scale)
        by_weight = tl.dot(above, tl.trans(v))
        kept = tl.sum(weights * by_weight, 1)
        by_score = (weights * (by_weight - kept[:, None]) * scale).to(q.dtype)
        places = rows[:, None].to(tl.int64) * 3 * width + offset + column[None, :]
        kind = gradient.dtype.element_ty
        tl.store(gradient + places, tl.dot(by_score, k).to(kind), mask=inside)
        by_key = tl.dot(tl.trans(by_score), q)
        tl.store(gradient + places + width, by_key.to(kind), mask=inside)
        by_value = tl.dot(tl.trans(weights.to(above.dtype)), above)
        tl.store(gradient + places + 2 * width, by_value.to(kind), mask=inside)


@cache
def has_triton() -> bool:
    """Return whether Triton, which compiles the kernels, is installed."""
    return find_spec("triton") is not None


def attend_in_tiles(qkv: Tensor, layout: Layout, heads: int) -> Tensor:
    """Attend within sequences of at most `TILE` positions, [positions, 3 * width] to width."""
    attended: Tensor = _TiledAttention.apply(qkv.contiguous(), _tiles(layout), heads)
    return attended


def _tiles(layout: Layout) -> Tensor:
    """Return the tiles of a layout on its device."""
    found = tile(layout.groups, TILE)
    tiles = torch.from_numpy(found)
    if layout.bounds.is_cuda:
        return tiles.pin_memory().to(layout.bounds.device, non_blocking=True)
    return tiles


class _TiledAttention(torch.autograd.Function):
    """The kernels as a differentiable function."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, tiles: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(qkv, tiles)
        ctx.heads = heads
        out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        _launch(_forward, (qkv, out), tiles, heads)
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        qkv, tiles = ctx.saved_tensors
        gradient = torch.empty_like(qkv)
        _launch(_backward, (qkv, upstream[0].contiguous(), gradient), tiles, ctx.heads)
        return gradient, None, None


def _launch(kernel: Any, tensors: tuple[Tensor, ...], tiles: Tensor, heads: int) -> None:
    """Launch a kernel for every tile and head; the first tensor is [positions, 3 * width]."""
    width = tensors[0].shape[1] // 3
    head = width // heads
    # Dimensions of a matrix product on the card are powers of two, 16 or more.
    padded = max(16, 1 << (head - 1).bit_length())
    kernel[(len(tiles), heads)](
        *tensors, tiles, head**-0.5, width, heads, HEAD=head, PADDED=padded, ROWS=TILE,
        num_warps=4 if padded <= 64 else 8,
    )  # fmt: skip
