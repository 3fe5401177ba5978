"""CLUE's own model (arXiv 2111.11294, figure 1): tokens to items, items to users.

    tokens of an item (guide token of its service first)
      -> token embedding + token position -> item transformer -> mean over tokens -> norm
    items of a user's recent events in one service
      -> + event position -> service transformer -> mean over events -> norm: the summary
      -> linear layer of output_width

Weights are shared over all services. Shape suffixes as in `model.py`.
"""

from torch import Tensor, nn

from clue_ray.batches.dropout import draw_masks
from clue_ray.batches.packing import Packed
from clue_ray.encoder.blocks import (
    Block,
    Role,
    Sequences,
    lay_out,
    make_blocks,
    matrix_role,
    mean_over,
)
from clue_ray.spec.compute import Vocabulary
from clue_ray.spec.recipe import BASE_WIDTH
from clue_ray.spec.specs import EncoderSpec

EMBEDDING_STD = 0.02


class Transformer(nn.Module):
    """The deep part of the encoder."""

    def __init__(self, encoder: EncoderSpec, vocabulary: Vocabulary):
        super().__init__()
        width = encoder.width
        self.dropout = encoder.dropout
        self.beside_bag = encoder.bag
        self.token_embedding = nn.Embedding(vocabulary.tokens, width)
        self.token_position = nn.Embedding(vocabulary.item_positions, width)
        self.event_position = nn.Embedding(vocabulary.sequence_length, width)
        self.item_blocks = make_blocks(encoder, encoder.item_layers)
        self.item_norm = nn.LayerNorm(width)
        self.service_blocks = make_blocks(encoder, encoder.service_layers)
        self.service_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, encoder.output_width)

    def roles(self) -> dict[Tensor, Role]:
        """Return the roles of the matrices and of the token table."""
        # Next to a bag the output starts at zero: an untrained transformer would drown the bag.
        gain = 0.0 if self.beside_bag else 1.0
        rate = BASE_WIDTH / self.output.in_features
        roles = {
            self.token_embedding.weight: Role("token_table", std=EMBEDDING_STD),
            self.output.weight: matrix_role(self.output, rate, gain),
        }
        for module in self.modules():
            if isinstance(module, Block):
                roles |= module.roles()
        return roles

    def forward(self, packed: Packed) -> Tensor:
        """Summarise the sequences in storage order, [U, D]."""
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
        return self.item_norm(mean_over(x_TD, packed.item_groups))

    def encode_sequences(
        self, items_ED: Tensor, event_positions: Tensor, sequences: Sequences
    ) -> Tensor:
        """Summarise sequences of encoded items, [U, D].

        Args:
            items_ED: the encoded item of each event, in storage order.
            event_positions: recency of each event, [E].
            sequences: how the events form sequences.
        """
        x_ED = items_ED + self.event_position(event_positions)
        for block in self.service_blocks:
            x_ED = block(x_ED, sequences)
        return self.service_norm(mean_over(x_ED, sequences.groups))

    def _draw_masks(self, packed: Packed) -> tuple[Tensor | None, Tensor | None]:
        """Draw the step's dropout masks of the item and the service transformer.

        There are none outside training.
        """
        if not (self.training and self.dropout):
            return None, None
        sites = (2 * len(self.item_blocks), 2 * len(self.service_blocks))
        width = self.token_embedding.embedding_dim
        masks = draw_masks(sum(sites), width, self.dropout, packed.mask_key).to(
            self.token_embedding.weight
        )
        return masks[: sites[0]], masks[sites[0] :]
