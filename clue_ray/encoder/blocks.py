"""The transformer over packed sequences: pre-norm blocks, attention within each sequence.

Shape suffixes as in `model.py`. A branch is scaled by 1 / sqrt(blocks) (depth-muP).
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clue_ray.batches.layout import Layout
from clue_ray.encoder.attention import attend
from clue_ray.encoder.tiles import with_tiles
from clue_ray.spec.recipe import BASE_WIDTH
from clue_ray.spec.specs import EncoderSpec

RESIDUAL_GAIN = 0.5
"""Gain of a branch's last matrix: branches start small relative to the stream they add to."""


class Role(NamedTuple):
    """How a parameter starts and how fast it moves: a row of the table in `model.py`."""

    kind: Literal["token_table", "matrix", "vector"]
    "a token table moves by `token_rate`; only a matrix decays"
    rate: float = 1.0
    "multiplier of the learning rate"
    std: float | None = 0.0
    "of its normal start, 0 for zeros; None keeps the constant it was made with"


VECTOR = Role("vector")
CONSTANT = Role("vector", std=None)


class MaskedLayout(NamedTuple):
    """How positions form sequences, and which dropout applies to them."""

    layout: Layout
    masks: Tensor | None
    "dropout masks, [sites, masks, width]; None without dropout"
    mask_rows: Tensor
    "mask of each position, [positions]; without masks, of each sequence and unused"

    def mask_of(self, site: int) -> Tensor | None:
        """Return the masks of one of the places that have dropout, [masks, width]."""
        return None if self.masks is None else self.masks[site]


class Block(nn.Module):
    """A pre-norm transformer block over sequences stored end to end."""

    def __init__(self, encoder: EncoderSpec, number: int, blocks: int):
        super().__init__()
        width, hidden = encoder.width, encoder.width * encoder.ffn_multiple
        self.heads = encoder.heads
        self.sites = (2 * number, 2 * number + 1)
        self.branch_scale = blocks**-0.5
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn_up = nn.Linear(width, hidden)
        self.ffn_down = nn.Linear(hidden, width)

    def forward(self, x_ED: Tensor, sequences: MaskedLayout) -> Tensor:
        """Add attention within each sequence, then a feed-forward layer."""
        mixed = attend(self.project(x_ED), sequences.layout, self.heads)
        masks = [sequences.mask_of(site) for site in self.sites]
        return self.add(x_ED, mixed, masks[0], masks[1], sequences.mask_rows)

    def project(self, x_ED: Tensor) -> Tensor:
        """Return queries, keys and values, [E, 3 * D]."""
        qkv: Tensor = self.query_key_value(self.attention_norm(x_ED))
        return qkv

    def add(
        self,
        x_ED: Tensor,
        attended_ED: Tensor,
        attention_masks: Tensor | None,
        ffn_masks: Tensor | None,
        rows: Tensor,
    ) -> Tensor:
        """Add the two branches to the stream, given the result of attention.

        Args:
            x_ED: the stream.
            attended_ED: the result of attention.
            attention_masks: dropout masks of the first branch, [masks, width].
            ffn_masks: those of the second.
            rows: mask of each position, [E].
        """
        mixed_ED = self.attention_out(attended_ED)
        x_ED = x_ED + self.branch_scale * _drop(mixed_ED, attention_masks, rows)
        fed_ED = self.ffn_down(F.relu(self.ffn_up(self.ffn_norm(x_ED))))
        return x_ED + self.branch_scale * _drop(fed_ED, ffn_masks, rows)

    def roles(self) -> dict[Tensor, Role]:
        """Return the roles of this block's matrices."""
        rate = BASE_WIDTH / self.attention_out.in_features * self.branch_scale
        return {
            self.query_key_value.weight: matrix_role(self.query_key_value, rate),
            self.attention_out.weight: matrix_role(self.attention_out, rate, RESIDUAL_GAIN),
            self.ffn_up.weight: matrix_role(self.ffn_up, rate),
            self.ffn_down.weight: matrix_role(self.ffn_down, rate, RESIDUAL_GAIN),
        }


def _drop(x_ED: Tensor, masks: Tensor | None, rows: Tensor) -> Tensor:
    return x_ED if masks is None else x_ED * masks.to(x_ED.dtype).index_select(0, rows)


def as_stream(x_ED: Tensor) -> Tensor:
    """Return the stream of a transformer in the precision of its matrix products.

    In bf16, blocks then read and write half as many bytes; norms compute in fp32 all the same.
    """
    device = x_ED.device.type
    if device != "meta" and torch.is_autocast_enabled(device):  # which knows no meta tensors
        return x_ED.to(torch.get_autocast_dtype(device))
    return x_ED


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile what blocks do before and after attention, for any number of positions.

    Attention stays as it is: its list of lengths changes with every batch, and each would be
    compiled again.
    """
    # Blocks of all runs of a process share one cache of few entries; beyond it nothing is compiled.
    torch.compiler.reset()
    for block in model.modules():
        if isinstance(block, Block):
            for part in ("project", "add"):
                compiled = torch.compile(getattr(block, part), dynamic=True, backend=backend)
                setattr(block, part, compiled)


def mask(layout: Layout, masks: Tensor | None) -> MaskedLayout:
    """Choose the dropout mask of each position; `masks` as in `MaskedLayout`."""
    rows = layout.masks
    if masks is not None:
        # With the size of its output known, a GPU need not report it to the host.
        rows = rows.repeat_interleave(layout.lengths, output_size=layout.positions)
    return MaskedLayout(with_tiles(layout), masks, rows)


def make_blocks(encoder: EncoderSpec, blocks: int) -> nn.ModuleList:
    """Build the blocks of one transformer."""
    return nn.ModuleList(Block(encoder, number, blocks) for number in range(blocks))


def matrix_role(layer: nn.Linear, rate: float, gain: float = 1.0) -> Role:
    """Return the role of a linear layer's matrix."""
    return Role("matrix", rate, std=gain * layer.in_features**-0.5)


def mean_over(x_ED: Tensor, layout: Layout) -> Tensor:
    """Average each sequence over its positions, [sequences, width], in fp32 at least."""
    x_ED = x_ED.to(torch.promote_types(x_ED.dtype, torch.float32))  # bf16 would lose the small ones
    if x_ED.is_cuda:
        return _segment_mean(x_ED, layout)
    sizes = [count * length for count, length in layout.groups]
    parts = zip(x_ED.split(sizes), layout.groups, strict=True)
    return torch.cat([part.view(count, length, -1).mean(1) for part, (count, length) in parts])


def _segment_mean(x_ED: Tensor, layout: Layout) -> Tensor:
    """Average by one kernel for all lengths; a GPU would launch two per length otherwise."""
    # `unsafe` leaves out a check of the lengths that waits for the device.
    return torch.segment_reduce(x_ED, "mean", lengths=layout.lengths, axis=0, unsafe=True)
