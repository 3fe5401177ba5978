"""CLUE's user encoder (arXiv 2111.11294, figure 1; decision D1). Read this file first.

Architecture, with weights shared over all services:

    tokens of an item (guide token of its service first)
      -> token embedding + token position -> item transformer -> mean over tokens -> norm
    items of a user's recent events in one service
      -> + event position -> service transformer -> mean over events -> norm
      -> linear layer of output_width -> scaled to unit length

A transformer has L pre-norm blocks: attention and a ReLU feed-forward layer, each a branch that is
added after scaling by 1 / sqrt(L). Cosines of two embeddings, times a learned inverse temperature,
are the logits of the loss.

Initialisation and rates (decision D6), with W the width and "rate" the multiplier of the run's
learning rate:

    parameter                          start                  rate                   weight decay
    token embedding                    normal, std 0.02       token_rate             no
    matrices inside a transformer      normal, fan_in^-1/2    32 / W / sqrt(L)       yes
      the last of each branch          half of that           32 / W / sqrt(L)       yes
    output matrix                      normal, fan_in^-1/2    32 / W                 yes
    token and event positions, biases  0                      1                      no
    gains of norms                     1                      1                      no
    log inverse temperature            -ln temperature        1                      no
    bias of the logits                 -10                    1                      no

Rates with 1 / W are maximal-update ones (Yang et al. 2022, arXiv 2203.03466): a matrix adds W terms
per output, so its steps must shrink as it widens. Those with 1 / sqrt(L), and the scaled branches,
do the same for depth (depth-muP, Yang et al. 2023, arXiv 2310.02244). The best learning rate is
then the same at any size. `Encoder.roles` is this table in code.

Shape suffixes: T tokens of all distinct items, E events of all sequences, I distinct items,
U sequences, D width, O output width. Sequences lie end to end, sorted by length (`batches.Packed`).
Linear layers therefore see each position once, and nothing is padded or masked.
"""

import math
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from clue_ray.batches.dropout import draw_masks
from clue_ray.batches.packing import Groups, Packed
from clue_ray.spec.compute import Vocabulary
from clue_ray.spec.recipe import BASE_WIDTH
from clue_ray.spec.specs import EncoderSpec

EMBEDDING_STD = 0.02
RESIDUAL_GAIN = 0.5
"""Gain of a branch's last matrix: branches start small relative to the stream they add to."""
SIGMOID_BIAS = -10.0
"""SigLIP's start: almost every pair of users is a negative. A softmax cancels it."""
MIN_TEMPERATURE = 0.01
"""CLIP's bound: similarities are multiplied by at most 100."""
FLASH_MULTIPLE = 8
"""Head widths that the variable-length kernel takes are multiples of this."""


class Role(NamedTuple):
    """How a parameter starts and how fast it moves: a row of the table above."""

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
            self.query_key_value.weight: _matrix(self.query_key_value, rate),
            self.attention_out.weight: _matrix(self.attention_out, rate, RESIDUAL_GAIN),
            self.ffn_up.weight: _matrix(self.ffn_up, rate),
            self.ffn_down.weight: _matrix(self.ffn_down, rate, RESIDUAL_GAIN),
        }


class Encoder(nn.Module):
    """The user encoder.

    `forward` takes packed sequences. It returns their unit embeddings in the requested order,
    [sequences, output_width], and the inverse temperature and bias of the logits, [2], which are
    returned so that DDP sees their gradient.
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
        self._initialise(seed)

    def roles(self) -> dict[Tensor, Role]:
        """Return the role of each parameter, in the order of `parameters()`."""
        roles: dict[Tensor, Role] = dict.fromkeys(self.parameters(), VECTOR)
        for module in self.modules():
            if isinstance(module, Block):
                roles |= module.roles()
            elif isinstance(module, nn.LayerNorm):
                roles[module.weight] = CONSTANT
        rate = BASE_WIDTH / self.output.in_features
        roles[self.output.weight] = _matrix(self.output, rate)
        roles[self.token_embedding.weight] = Role("token_table", std=EMBEDDING_STD)
        roles[self.log_scale] = roles[self.bias] = CONSTANT
        return roles

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Draw the weights from `seed` alone, in the order of `parameters()`.

        Positions start at zero. A random one would be a common offset of all items, and users first
        collapse onto a common offset: such a run stays at chance for hundreds of steps.
        """
        generator = torch.Generator().manual_seed(seed)
        for parameter, role in self.roles().items():
            if role.std:
                parameter.normal_(std=role.std, generator=generator)
            elif role.std == 0:
                parameter.zero_()

    def forward(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Encode packed sequences."""
        bf16 = self.precision == "bf16"
        with torch.autocast(self.log_scale.device.type, torch.bfloat16) if bf16 else nullcontext():
            vectors_UO = self._encode_users(packed)
        # Cosines of bf16 vectors would be off by 1e-3, a tenth of a nat at the lowest temperature.
        at_least_fp32 = torch.promote_types(vectors_UO.dtype, torch.float32)
        users_UO = F.normalize(vectors_UO.to(at_least_fp32), dim=-1)
        return users_UO[packed.order], torch.stack([self.scale, self.bias.squeeze()])

    def _encode_users(self, packed: Packed) -> Tensor:
        """Encode the sequences in storage order, [U, O], before scaling to unit length."""
        item_masks, user_masks = self._draw_masks(packed)
        items_ID = self.encode_items(packed, item_masks)
        sequences = lay_out(packed.user_groups, packed.user_masks, user_masks)
        return self.encode_sequences(
            items_ID[packed.event_items], packed.event_positions, sequences
        )

    def encode_items(self, packed: Packed, masks: Tensor | None = None) -> Tensor:
        """Encode the distinct items, [I, D]."""
        x_TD = self.token_embedding(packed.tokens) + self.token_position(packed.token_positions)
        sequences = lay_out(packed.item_groups, packed.item_masks, masks)
        for block in self.item_blocks:
            x_TD = block(x_TD, sequences)
        return self.item_norm(_mean_over(x_TD, packed.item_groups))

    def encode_sequences(
        self, items_ED: Tensor, event_positions: Tensor, sequences: Sequences
    ) -> Tensor:
        """Encode sequences of encoded items, [U, O], before scaling to unit length.

        Args:
            items_ED: the encoded item of each event, in storage order.
            event_positions: recency of each event, [E].
            sequences: how the events form sequences.
        """
        x_ED = items_ED + self.event_position(event_positions)
        for block in self.service_blocks:
            x_ED = block(x_ED, sequences)
        return self.output(self.service_norm(_mean_over(x_ED, sequences.groups)))

    def _draw_masks(self, packed: Packed) -> tuple[Tensor | None, Tensor | None]:
        """Draw the step's dropout masks of the item and the service transformer.

        There are none outside training.
        """
        if not (self.training and self.dropout):
            return None, None
        sites = (2 * len(self.item_blocks), 2 * len(self.service_blocks))
        width = self.token_embedding.embedding_dim
        masks = draw_masks(sum(sites), width, self.dropout, packed.mask_key).to(self.log_scale)
        return masks[: sites[0]], masks[sites[0] :]

    @property
    def scale(self) -> Tensor:
        """The learned inverse temperature."""
        return self.log_scale.exp().squeeze()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Bring the temperature back to its bound after a step.

        A clamp inside `scale` would stop its gradient at the bound, and the temperature with it.
        """
        self.log_scale.clamp_(max=-math.log(MIN_TEMPERATURE))


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


def _make_blocks(encoder: EncoderSpec, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(Block(encoder, number, blocks) for number in range(blocks))


def _matrix(layer: nn.Linear, rate: float, gain: float = 1.0) -> Role:
    return Role("matrix", rate, std=gain * layer.in_features**-0.5)


def _sizes(groups: Groups) -> list[int]:
    """Return the number of positions of each group."""
    return [count * length for count, length in groups]


def _mean_over(x_ED: Tensor, groups: Groups) -> Tensor:
    """Average each sequence over its positions, [sequences, width]."""
    parts = zip(x_ED.split(_sizes(groups)), groups, strict=True)
    return torch.cat([part.view(count, length, -1).mean(1) for part, (count, length) in parts])
