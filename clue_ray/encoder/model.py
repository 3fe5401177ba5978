"""CLUE's encoder (arXiv 2111.11294, figure 1; decision D1): item transformer, mean, service transformer, mean.

Shape suffixes: T tokens of all distinct items, E events of all sequences, I distinct items, U sequences, D width,
H heads, O output width. Sequences lie end to end by length (`batches.Packed`), so linear layers see every position once
and attention runs once a length: no padding anywhere, and no mask.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clue_ray.compute import Vocabulary
from clue_ray.encoder.batches import Groups, Packed
from clue_ray.spec import EncoderSpec

MIN_TEMPERATURE = 0.01
"""CLIP's clamp: similarities are scaled by at most 100."""
EMBEDDING_STD = 0.02
RESIDUAL_GAIN = 0.5


class Block(nn.Module):
    """A pre-norm transformer block over sequences stored end to end."""

    def __init__(self, encoder: EncoderSpec):
        super().__init__()
        width, hidden = encoder.width, encoder.width * encoder.ffn_multiple
        self.heads = encoder.heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn_up = nn.Linear(width, hidden)
        self.ffn_down = nn.Linear(hidden, width)

    def forward(self, x_ED: Tensor, groups: Groups) -> Tensor:
        """Return x with attention inside each sequence and a feed-forward layer added."""
        x_ED = x_ED + self.attention_out(self.attend(self.query_key_value(self.attention_norm(x_ED)), groups))
        return x_ED + self.ffn_down(F.relu(self.ffn_up(self.ffn_norm(x_ED))))

    def attend(self, qkv: Tensor, groups: Groups) -> Tensor:
        """Attend within each sequence; `split` keeps the backward pass linear in the number of groups."""
        parts = []
        for part, (count, length) in zip(qkv.split(sizes(groups)), groups, strict=True):
            q, k, v = part.view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            parts.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count * length, -1))
        return torch.cat(parts)


class Encoder(nn.Module):
    """The user encoder; weights are shared over services.

    `forward` takes packed sequences and returns unit user embeddings, [sequences, output_width], in the order asked
    for, and the inverse temperature, a scalar (returned so that DDP sees its gradient).
    """

    def __init__(self, encoder: EncoderSpec, vocabulary: Vocabulary, temperature: float, seed: int):
        super().__init__()
        width = encoder.width
        self.token_embedding = nn.Embedding(vocabulary.tokens, width)
        self.token_position = nn.Embedding(vocabulary.item_positions, width)
        self.event_position = nn.Embedding(vocabulary.sequence_length, width)
        self.item_blocks = nn.ModuleList(Block(encoder) for _ in range(encoder.item_layers))
        self.item_norm = nn.LayerNorm(width)
        self.service_blocks = nn.ModuleList(Block(encoder) for _ in range(encoder.service_layers))
        self.service_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, encoder.output_width)
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))
        self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw weights from `seed` alone.

        Positions start at zero: a common offset in every item is what users first collapse onto, and a run then stays
        at chance for hundreds of steps.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name == "token_embedding.weight":
                parameter.normal_(std=EMBEDDING_STD, generator=generator)
            elif name.endswith("weight") and "norm" not in name and "position" not in name:
                gain = RESIDUAL_GAIN if name.endswith(("attention_out.weight", "ffn_down.weight")) else 1.0
                parameter.normal_(std=gain * parameter.shape[1] ** -0.5, generator=generator)
            elif name.endswith("bias") or "position" in name:
                parameter.zero_()

    def forward(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Encode packed sequences."""
        items_ID = self.encode_items(packed)
        x_ED = items_ID[packed.event_items] + self.event_position(packed.event_positions)
        for block in self.service_blocks:
            x_ED = block(x_ED, packed.user_groups)
        users_UD = self.service_norm(mean_over(x_ED, packed.user_groups))
        vectors_UO = self.output(users_UD)
        at_least_fp32 = torch.promote_types(vectors_UO.dtype, torch.float32)
        users_UO = F.normalize(vectors_UO.to(at_least_fp32), dim=-1)
        return users_UO[packed.order], self.scale

    def encode_items(self, packed: Packed) -> Tensor:
        """Encode the distinct items, [items, width]."""
        x_TD = self.token_embedding(packed.tokens) + self.token_position(packed.token_positions)
        for block in self.item_blocks:
            x_TD = block(x_TD, packed.item_groups)
        return self.item_norm(mean_over(x_TD, packed.item_groups))

    @property
    def scale(self) -> Tensor:
        """The learned inverse temperature, clamped."""
        return self.log_scale.exp().clamp(max=1 / MIN_TEMPERATURE).squeeze()


def sizes(groups: Groups) -> list[int]:
    """Return the positions each group takes up."""
    return [count * length for count, length in groups]


def mean_over(x_ED: Tensor, groups: Groups) -> Tensor:
    """Average each sequence over its positions, [sequences, width]."""
    parts = zip(x_ED.split(sizes(groups)), groups, strict=True)
    return torch.cat([part.view(count, length, -1).mean(1) for part, (count, length) in parts])
