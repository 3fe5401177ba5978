"""The transformer over packed sequences: pre-norm blocks, attention within each sequence.

Shape suffixes as in `model.py`. A branch is scaled by 1 / sqrt(blocks) (depth-muP).
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from clue_ray.batches.packing import Groups
from clue_ray.spec.recipe import BASE_WIDTH
from clue_ray.spec.specs import EncoderSpec

RESIDUAL_GAIN = 0.5
"""Gain of a branch's last matrix: branches start small relative to the stream they add to."""
FLASH_MULTIPLE = 8
"""Head widths that the variable-length kernel takes are multiples of this."""


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


class Sequences(NamedTuple):
    """How positions stored end to end form sequences, and which dropout applies to them."""

    groups: Groups
    bounds: Tensor
    "first position of each sequence, and the number of positions, [sequences + 1]"
    masks: Tensor | None
    "dropout masks, [sites, masks, width]; None without dropout"
    mask_rows: Tensor
    "mask of each position, [positions]; without masks, unused"

    def drop(self, x_ED: Tensor, site: int) -> Tensor:
        """Apply dropout, with the masks of one of the places that have it."""
        if self.masks is None:
            return x_ED
        return x_ED * self.masks[site].index_select(0, self.mask_rows)


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

    def forward(self, x_ED: Tensor, sequences: Sequences) -> Tensor:
        """Add attention within each sequence, then a feed-forward layer."""
        mixed_ED = self.attention_out(
            self._attend(self.query_key_value(self.attention_norm(x_ED)), sequences)
        )
        x_ED = x_ED + self.branch_scale * sequences.drop(mixed_ED, self.sites[0])
        fed_ED = self.ffn_down(F.relu(self.ffn_up(self.ffn_norm(x_ED))))
        return x_ED + self.branch_scale * sequences.drop(fed_ED, self.sites[1])

    def _attend(self, qkv: Tensor, sequences: Sequences) -> Tensor:
        """Attend within each sequence, [E, 3 * D] to [E, D]."""
        head_width = qkv.shape[1] // 3 // self.heads
        half = qkv.dtype in (torch.bfloat16, torch.float16)
        if qkv.is_cuda and half and head_width % FLASH_MULTIPLE == 0:
            return self._attend_at_once(qkv, sequences)
        return self._attend_by_length(qkv, sequences.groups)

    def _attend_at_once(self, qkv: Tensor, sequences: Sequences) -> Tensor:
        """Attend in one kernel for all lengths: a batch has too many lengths for one launch each.

        The kernel takes half precision on a GPU only.
        """
        q, k, v = qkv.view(len(qkv), 3, self.heads, -1).unbind(1)
        longest = sequences.groups[-1][1]
        attended: Any = varlen_attn(q, k, v, sequences.bounds, sequences.bounds, longest, longest)
        return attended.reshape(len(qkv), -1)

    def _attend_by_length(self, qkv: Tensor, groups: Groups) -> Tensor:
        """Attend once per length, on a dense [sequences, heads, length, head width] each."""
        parts = []
        # One `split`, not a slice per group: the gradient of each slice would be as large as qkv.
        for part, (count, length) in zip(qkv.split(_sizes(groups)), groups, strict=True):
            q, k, v = part.view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v)
            parts.append(attended.transpose(1, 2).reshape(count * length, -1))
        return torch.cat(parts)

    def roles(self) -> dict[Tensor, Role]:
        """Return the roles of this block's matrices."""
        rate = BASE_WIDTH / self.attention_out.in_features * self.branch_scale
        return {
            self.query_key_value.weight: matrix_role(self.query_key_value, rate),
            self.attention_out.weight: matrix_role(self.attention_out, rate, RESIDUAL_GAIN),
            self.ffn_up.weight: matrix_role(self.ffn_up, rate),
            self.ffn_down.weight: matrix_role(self.ffn_down, rate, RESIDUAL_GAIN),
        }


def lay_out(groups: Groups, sequence_masks: Tensor, masks: Tensor | None) -> Sequences:
    """Describe sequences to the blocks.

    Args:
        groups: of the sequences.
        sequence_masks: mask of each sequence, [sequences]; empty without masks.
        masks: as in `Sequences`.
    """
    device = sequence_masks.device
    counts, lengths = np.array(groups).T
    positions = np.repeat(lengths, counts)
    bounds = np.append(0, positions.cumsum()).astype(np.int32)
    if masks is not None:
        # With the size of its output known, a GPU need not report it to the host.
        sequence_masks = sequence_masks.repeat_interleave(
            torch.from_numpy(positions).to(device), output_size=int(bounds[-1])
        )
    return Sequences(groups, torch.from_numpy(bounds).to(device), masks, sequence_masks)


def make_blocks(encoder: EncoderSpec, blocks: int) -> nn.ModuleList:
    """Build the blocks of one transformer."""
    return nn.ModuleList(Block(encoder, number, blocks) for number in range(blocks))


def matrix_role(layer: nn.Linear, rate: float, gain: float = 1.0) -> Role:
    """Return the role of a linear layer's matrix."""
    return Role("matrix", rate, std=gain * layer.in_features**-0.5)


def _sizes(groups: Groups) -> list[int]:
    """Return the number of positions of each group."""
    return [count * length for count, length in groups]


def mean_over(x_ED: Tensor, groups: Groups) -> Tensor:
    """Average each sequence over its positions, [sequences, width]."""
    parts = zip(x_ED.split(_sizes(groups)), groups, strict=True)
    return torch.cat([part.view(count, length, -1).mean(1) for part, (count, length) in parts])
