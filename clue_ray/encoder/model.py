"""CLUE's encoder (arXiv 2111.11294, figure 1; decision D1): item transformer, mean, service
transformer, mean.

Shape suffixes: T tokens of all distinct items, E events of all sequences, I distinct items, U
sequences, D width, H heads, O output width. Sequences lie end to end by length (`batches.Packed`),
so linear layers see every position once
and attention runs once a length, or in one kernel for all lengths on a GPU: no padding anywhere,
and no mask.
"""

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from clue_ray.batches.dropout import draw_masks
from clue_ray.batches.packing import Groups, Packed
from clue_ray.spec.compute import Vocabulary
from clue_ray.spec.specs import EncoderSpec

MIN_TEMPERATURE = 0.01
"""CLIP's clamp: similarities are scaled by at most 100."""
EMBEDDING_STD = 0.02
FLASH_MULTIPLE = 8
"""Widths of a head that the variable-length kernel takes; others attend once a length."""
RESIDUAL_GAIN = 0.5
SIGMOID_BIAS = -10.0
"""SigLIP's start: nearly every pair of users is no match. A softmax does not see it."""


class Sequences(NamedTuple):
    """How positions stored end to end form sequences, and what dropout does to them."""

    groups: Groups
    bounds: Tensor
    "where each sequence starts, and the end of the last, [sequences + 1]"
    masks: Tensor | None
    "dropout masks, [masks, width] for each place that has one, or none"
    mask_rows: Tensor
    "which mask each position takes, [positions]; without masks, unused"

    def drop(self, x_ED: Tensor, place: int) -> Tensor:
        """Apply dropout."""
        return (
            x_ED if self.masks is None else x_ED * self.masks[place].index_select(0, self.mask_rows)
        )


class Block(nn.Module):
    """A pre-norm transformer block over sequences stored end to end.

    Its two branches are scaled by 1 / sqrt(number of blocks), so that the sum over blocks keeps its
    size at any depth (depth-muP, Yang et al. 2023, arXiv 2310.02244).
    """

    def __init__(self, encoder: EncoderSpec, number: int, blocks: int):
        super().__init__()
        width, hidden = encoder.width, encoder.width * encoder.ffn_multiple
        self.heads = encoder.heads
        self.places = (2 * number, 2 * number + 1)
        self.branch_scale = blocks**-0.5
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn_up = nn.Linear(width, hidden)
        self.ffn_down = nn.Linear(hidden, width)

    def forward(self, x_ED: Tensor, sequences: Sequences) -> Tensor:
        """Return x with attention inside each sequence and a feed-forward layer added."""
        mixed_ED = self.attention_out(
            self.attend(self.query_key_value(self.attention_norm(x_ED)), sequences)
        )
        x_ED = x_ED + self.branch_scale * sequences.drop(mixed_ED, self.places[0])
        fed_ED = self.ffn_down(F.relu(self.ffn_up(self.ffn_norm(x_ED))))
        return x_ED + self.branch_scale * sequences.drop(fed_ED, self.places[1])

    def attend(self, qkv: Tensor, sequences: Sequences) -> Tensor:
        """Attend within each sequence; `split` keeps the backward pass linear in the number of
        groups.
        """
        head_width = qkv.shape[1] // 3 // self.heads
        if (
            qkv.is_cuda
            and qkv.dtype in (torch.bfloat16, torch.float16)
            and head_width % FLASH_MULTIPLE == 0
        ):
            q, k, v = qkv.view(len(qkv), 3, self.heads, -1).unbind(1)
            longest = sequences.groups[-1][1]
            attended: Any = varlen_attn(
                q, k, v, sequences.bounds, sequences.bounds, longest, longest
            )
            return attended.reshape(len(qkv), -1)
        parts = []
        for part, (count, length) in zip(
            qkv.split(_sizes(sequences.groups)), sequences.groups, strict=True
        ):
            q, k, v = part.view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            parts.append(
                F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count * length, -1)
            )
        return torch.cat(parts)


def _make_blocks(encoder: EncoderSpec, blocks: int) -> nn.ModuleList:
    """Build a transformer."""
    return nn.ModuleList(Block(encoder, number, blocks) for number in range(blocks))


class Encoder(nn.Module):
    """The user encoder; weights are shared over services.

    `forward` takes packed sequences and returns unit user embeddings, [sequences, output_width], in
    the order asked for, and the inverse temperature and bias of the logits, [2] (returned so that
    DDP sees their gradient).
    """

    def __init__(
        self,
        encoder: EncoderSpec,
        vocabulary: Vocabulary,
        temperature: float,
        seed: int,
        precision: str = "fp32",
    ):
        super().__init__()
        width = encoder.width
        self.precision = precision
        self.token_embedding = nn.Embedding(vocabulary.tokens, width)
        self.token_position = nn.Embedding(vocabulary.item_positions, width)
        self.event_position = nn.Embedding(vocabulary.sequence_length, width)
        self.dropout = encoder.dropout
        self.item_blocks = _make_blocks(encoder, encoder.item_layers)
        self.item_norm = nn.LayerNorm(width)
        self.service_blocks = _make_blocks(encoder, encoder.service_layers)
        self.service_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, encoder.output_width)
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))
        self.bias = nn.Parameter(torch.tensor([SIGMOID_BIAS]))
        self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw weights from `seed` alone.

        Positions start at zero: a common offset in every item is what users first collapse onto,
        and a run then stays at chance for hundreds of steps.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name == "token_embedding.weight":
                parameter.normal_(std=EMBEDDING_STD, generator=generator)
            elif name.endswith("weight") and "norm" not in name and "position" not in name:
                gain = (
                    RESIDUAL_GAIN
                    if name.endswith(("attention_out.weight", "ffn_down.weight"))
                    else 1.0
                )
                parameter.normal_(std=gain * parameter.shape[1] ** -0.5, generator=generator)
            elif name.endswith(".bias") or "position" in name:
                parameter.zero_()

    def forward(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Encode packed sequences."""
        bf16 = self.precision == "bf16"
        with torch.autocast(self.log_scale.device.type, torch.bfloat16) if bf16 else nullcontext():
            vectors_UO = self.encode_users(packed)
        at_least_fp32 = torch.promote_types(vectors_UO.dtype, torch.float32)
        users_UO = F.normalize(vectors_UO.to(at_least_fp32), dim=-1)
        return users_UO[packed.order], torch.stack([self.scale, self.bias.squeeze()])

    def encode_users(self, packed: Packed) -> Tensor:
        """Encode the sequences in storage order, [sequences, output_width], not yet of unit
        length.
        """
        masks = self.draw_masks(packed)
        sequences = lay_out(packed.user_groups, packed.user_masks, masks and masks[1])
        return self.encode_sequences(
            self.encode_items(packed, masks)[packed.event_items], packed.event_positions, sequences
        )

    def encode_sequences(
        self, items_ED: Tensor, event_positions: Tensor, sequences: Sequences
    ) -> Tensor:
        """Encode sequences of encoded items in storage order, [sequences, output_width], not yet of
        unit length.
        """
        x_ED = items_ED + self.event_position(event_positions)
        for block in self.service_blocks:
            x_ED = block(x_ED, sequences)
        return self.output(self.service_norm(_mean_over(x_ED, sequences.groups)))

    def encode_items(self, packed: Packed, masks: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Encode the distinct items, [items, width]."""
        x_TD = self.token_embedding(packed.tokens) + self.token_position(packed.token_positions)
        sequences = lay_out(packed.item_groups, packed.item_masks, masks and masks[0])
        for block in self.item_blocks:
            x_TD = block(x_TD, sequences)
        return self.item_norm(_mean_over(x_TD, packed.item_groups))

    def draw_masks(self, packed: Packed) -> tuple[Tensor, Tensor] | None:
        """Draw the step's dropout masks of the item and the service transformer; none outside
        training.
        """
        if not (self.training and self.dropout):
            return None
        places = (2 * len(self.item_blocks), 2 * len(self.service_blocks))
        width = self.token_embedding.embedding_dim
        masks = draw_masks(sum(places), width, self.dropout, packed.mask_key).to(self.log_scale)
        return masks[: places[0]], masks[places[0] :]

    @property
    def scale(self) -> Tensor:
        """The learned inverse temperature."""
        return self.log_scale.exp().squeeze()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Bring the temperature back to its bound after a step; clamped in `scale`, it would lose
        its gradient.
        """
        self.log_scale.clamp_(max=-math.log(MIN_TEMPERATURE))


def lay_out(groups: Groups, sequence_masks: Tensor, masks: Tensor | None) -> Sequences:
    """Describe sequences to the blocks."""
    counts, lengths = np.array(groups).T
    positions = np.repeat(lengths, counts)
    bounds = torch.from_numpy(np.append(0, positions.cumsum()).astype(np.int32)).to(
        sequence_masks.device
    )
    if masks is not None:
        sequence_masks = sequence_masks.repeat_interleave(
            torch.from_numpy(positions).to(sequence_masks.device)
        )
    return Sequences(groups, bounds, masks, sequence_masks)


def _sizes(groups: Groups) -> list[int]:
    """Return the positions each group takes up."""
    return [count * length for count, length in groups]


def _mean_over(x_ED: Tensor, groups: Groups) -> Tensor:
    """Average each sequence over its positions, [sequences, width]."""
    parts = zip(x_ED.split(_sizes(groups)), groups, strict=True)
    return torch.cat([part.view(count, length, -1).mean(1) for part, (count, length) in parts])
