"""The kernels of `tiles.py`, in Triton: a program attends within one tile and head.

Imported where a kernel is launched, as importing Triton takes a second. In brackets: ROWS positions
of a tile, and PADDED columns, of which the first HEAD are those of the head.
"""

import triton
import triton.language as tl


@triton.jit
def _load(qkv, rows, columns, inside, stride, offset):  # type: ignore[no-untyped-def]
    """Load a tile of queries, keys or values, [ROWS, PADDED]."""
    places = rows[:, None].to(tl.int64) * stride + offset + columns[None, :]
    return tl.load(qkv + places, mask=inside, other=0.0)


@triton.jit
def _weights(q, k, row, taken, length, scale):  # type: ignore[no-untyped-def]
    """Return softmax weights within the sequences of a tile, fp32 [ROWS, ROWS]."""
    scores = tl.dot(q, tl.trans(k)) * scale
    owner = row // length
    same = (owner[:, None] == owner[None, :]) & (row[None, :] < taken)
    scores = tl.where(same, scores, -1e30)
    raised = tl.exp(scores - tl.max(scores, 1)[:, None])
    raised = tl.where(same, raised, 0.0)
    total = tl.sum(raised, 1)
    return raised / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def attend_forward(  # type: ignore[no-untyped-def]
    qkv, out, tiles, scale, width, HEAD: tl.constexpr, PADDED: tl.constexpr,
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
def attend_backward(  # type: ignore[no-untyped-def]
    qkv, upstream, gradient, tiles, scale, width, HEAD: tl.constexpr,
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
