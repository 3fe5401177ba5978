"""Attention within sequences: all paths give what each sequence alone gives."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.nn.attention import varlen

from clue_ray.batches.dropout import MASKS, draw_masks
from clue_ray.batches.layout import (
    Layout,
    group_lengths,
    lay_out,
    split_by_positions,
    split_by_sequences,
    tile,
)
from clue_ray.encoder import attention, tiles
from clue_ray.encoder.attention import attend, attend_by_varlen, most_sequences
from clue_ray.encoder.blocks import _segment_mean, compile_blocks, make_blocks, mask, mean_over
from clue_ray.spec.specs import EncoderSpec

LENGTHS = np.sort(np.random.default_rng(0).integers(1, 23, 90))


def plain_attention(qkv: torch.Tensor, lengths: np.ndarray, heads: int) -> torch.Tensor:
    """Attend to one sequence after the other."""
    parts = []
    for part in qkv.split(lengths.tolist()):
        q, k, v = part.view(len(part), 3, heads, -1).permute(1, 2, 0, 3)
        weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1)
        parts.append((weights @ v).transpose(0, 1).reshape(len(part), -1))
    return torch.cat(parts)


def inputs(width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(int(LENGTHS.sum()), 3 * width, generator=generator).to(dtype)


def test_attention_on_the_cpu_is_that_of_each_sequence_alone():
    qkv = inputs(12)
    found = attend(qkv, lay_out(group_lengths(LENGTHS)), 3)
    assert torch.allclose(found, plain_attention(qkv, LENGTHS, 3), atol=1e-12)


@pytest.mark.parametrize("most", [1, 7, 65_535])
def test_the_variable_length_call_is_split(monkeypatch, most):
    """The kernel needs a GPU; what it is given and what becomes of its result does not."""
    calls = []

    def kernel(q, k, v, bounds, same_bounds, longest, same_longest):
        assert bounds is same_bounds
        assert longest == same_longest == bounds.diff().max()
        assert bounds.dtype == torch.int32
        assert bounds[0] == 0
        assert bounds[-1] == len(q)
        calls.append(len(bounds) - 1)
        qkv = torch.stack([q, k, v], 1).flatten(1)
        return plain_attention(qkv, bounds.diff().numpy(), q.shape[1]).view(q.shape)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "most_sequences", lambda width, heads: most)
    qkv = inputs(12)
    found = attend_by_varlen(qkv, lay_out(group_lengths(LENGTHS)), 3)
    assert torch.allclose(found, plain_attention(qkv, LENGTHS, 3), atol=1e-12)
    assert sum(calls) == len(LENGTHS)
    assert max(calls) <= most


@pytest.mark.parametrize("tile_rows", [1, 9, 22])
def test_short_sequences_go_to_tiles_and_long_ones_to_flash(monkeypatch, tile_rows):
    kernels = []

    def kernel(name):
        def attend(qkv, given, heads):
            if name == "tiles":
                _, taken, length = given.numpy().T
                lengths = np.repeat(length, taken // length)
            else:
                assert given.bounds[0] == 0
                lengths = given.lengths.numpy()
            assert lengths.sum() == len(qkv)
            kernels.append((name, int(lengths.min()), int(lengths.max())))
            return plain_attention(qkv, lengths, heads)

        return attend

    monkeypatch.setattr(tiles, "TILE", tile_rows)
    monkeypatch.setattr(attention, "has_triton", lambda: True)
    monkeypatch.setattr(attention, "attend_in_tiles", kernel("tiles"))
    monkeypatch.setattr(attention, "attend_by_varlen", kernel("flash"))
    qkv = inputs(12)
    layout = lay_out(group_lengths(LENGTHS))
    found = attention._attend_on_a_gpu(qkv, layout, 3)
    assert torch.allclose(found, plain_attention(qkv, LENGTHS, 3), atol=1e-12)
    assert [(name, longest <= tile_rows) for name, _, longest in kernels] == [
        ("tiles", True),
        ("flash", False),
    ][: 1 if tile_rows == 22 else 2]
    monkeypatch.setattr(attention, "WIDEST_IN_TILES", 3)  # narrower than these heads
    kernels.clear()
    attention._attend_on_a_gpu(qkv, layout, 3)
    assert [name for name, *_ in kernels] == ["flash"]


def test_the_limits_of_a_call():
    assert most_sequences(768, 12) == 21_845
    assert most_sequences(1536, 16) == 10_922
    assert most_sequences(64, 2) == 65_535


def test_pieces_and_tiles_hold_every_sequence_once():
    groups = group_lengths(LENGTHS)
    for split, size in ((split_by_positions, lambda n: n), (split_by_sequences, lambda n: 1)):
        for most in (1, 5, 30, 10_000):
            pieces = split(groups, most)
            flat = [length for piece in pieces for count, length in piece for _ in range(count)]
            assert flat == LENGTHS.tolist()
            sizes = [sum(count * size(length) for count, length in piece) for piece in pieces]
            longest = [piece[-1][1] if sum(c for c, _ in piece) == 1 else 0 for piece in pieces]
            assert all(s <= most or s == n for s, n in zip(sizes, longest, strict=True))
    made = tile(groups, 64)
    rows = np.concatenate([np.arange(start, start + taken) for start, taken, _ in made])
    assert rows.tolist() == list(range(int(LENGTHS.sum())))
    assert (made[:, 1] <= 64).all()
    assert (made[:, 1] % made[:, 2] == 0).all()


def test_the_mean_of_a_segment_is_that_of_a_loop():
    layout = lay_out(group_lengths(LENGTHS))
    results = []
    for mean in (mean_over, _segment_mean):
        x = inputs(4).requires_grad_()
        found = mean(x, layout)
        (found * torch.arange(found.numel()).view_as(found)).sum().backward()
        results.append((found, x.grad))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_repeated_items_add_up_the_same_bits():
    """A look-up replaced an index: the gradient must not change on a CPU."""
    rng = torch.Generator().manual_seed(0)
    table = torch.randn(7, 5, generator=rng)
    index = torch.randint(7, (400,), generator=rng)
    weight = torch.randn(400, 5, generator=rng)
    gradients = []
    for read in (lambda t: F.embedding(index, t), lambda t: t[index]):
        leaf = table.clone().requires_grad_()
        (read(leaf) * weight).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


TILED = """
import torch
from tests.encoder.test_attention import LENGTHS, inputs, plain_attention
from clue_ray.batches.layout import group_lengths
from clue_ray.encoder.tiles import attend_in_tiles, make_tiles
lengths = LENGTHS[::2]
tiles = make_tiles(group_lengths(lengths), torch.device("cpu"))
for width, heads, dtype, allowed in (
    (32, 2, torch.float32, 1e-5), (24, 1, torch.float32, 1e-5), (128, 2, torch.float32, 1e-5),
    (128, 1, torch.float32, 1e-5), (128, 2, torch.float16, 2e-3), (128, 1, torch.float16, 2e-3),
):
    results = []
    qkv = inputs(width, dtype)[: lengths.sum()]
    for attend, x in (
        (lambda x: attend_in_tiles(x, tiles, heads), qkv),
        (lambda x: plain_attention(x, lengths, heads), qkv.double()),
    ):
        x = x.clone().requires_grad_()
        found = attend(x).double()
        (found * torch.arange(found.numel()).view_as(found).cos()).sum().backward()
        results.append((found, x.grad.double()))
    for one, other in zip(*results):
        assert (one - other).norm() <= allowed * other.norm(), (width, heads, dtype)
print("equal")
"""


@pytest.mark.skipif(not tiles.has_triton(), reason="Triton is not installed")
def test_tiles_equal_sequences_alone_in_tritons_interpreter():
    """In fp16 for half precision: the interpreter does not know the products of bf16."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", TILED]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.stdout.strip() == "equal", ended.stderr


@pytest.mark.skipif(not tiles.has_triton(), reason="Triton is not installed")
@pytest.mark.slow
@pytest.mark.parametrize(("capability", "shared"), [(86, 99), (90, 227)])
def test_the_kernels_compile_for_cards_that_are_not_there(capability, shared):
    """Compilation does not check that a program fits the card's shared memory, in KB."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from clue_ray.encoder import tile_kernels

    tensors = {
        "attend_forward": ("qkv", "out"),
        "attend_backward": ("qkv", "upstream", "gradient"),
    }
    for name, names in tensors.items():
        kinds = dict.fromkeys(names, "*bf16") | {"tiles": "*i32", "scale": "fp32", "width": "i32"}
        widest = tiles.WIDEST_HEAD
        constants = {"HEAD": widest, "PADDED": widest, "ROWS": tiles.TILE}
        source = ASTSource(
            getattr(tile_kernels, name), kinds | dict.fromkeys(constants, "constexpr"), constants
        )
        target, warps = GPUTarget("cuda", capability, 32), {"num_warps": tiles.count_warps(widest)}
        compiled = triton.compile(source, target=target, options=warps)
        assert compiled.metadata.shared <= shared * 1024


def test_tiles_are_made_once_for_all_blocks(monkeypatch):
    """A fake card: what lies there has shapes and no values."""
    made = []
    monkeypatch.setattr(tiles, "has_triton", lambda: True)
    monkeypatch.setattr(tiles, "make_tiles", lambda groups, device: made.append(groups) or device)
    groups = [(3, 5), (2, 64), (1, 65)]
    with FakeTensorMode():
        bounds = torch.zeros(7, dtype=torch.int32, device="cuda")
        layout = Layout(groups, bounds, torch.zeros(6, dtype=torch.long, device="cuda"))
    tiled = mask(layout, None).layout
    assert mask(tiled, None).layout is tiled
    assert tiled.tiles == bounds.device
    assert made == [groups[:2]]
    assert mask(lay_out(groups), None).layout.tiles is None


def test_compiled_blocks_equal_plain_ones():
    encoder = EncoderSpec(width=16, item_layers=2, service_layers=1, heads=2, dropout=0.2)
    layout = lay_out(group_lengths(LENGTHS), torch.arange(len(LENGTHS)) % MASKS)
    masks = draw_masks(4, 16, 0.2, key=3)
    results = []
    for compiles in (False, True):
        torch.manual_seed(0)
        blocks = make_blocks(encoder, 2)
        if compiles:
            compile_blocks(blocks, backend="aot_eager")
        x = inputs(16, torch.float32)[:, :16].requires_grad_()
        found = x
        for block in blocks:
            found = block(found, mask(layout, masks))
        found.square().sum().backward()
        results.append([found, x.grad, *(p.grad for p in blocks.parameters())])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
