"""CLUE's own model (arXiv 2111.11294, figure 1): tokens to items, items to users.

    tokens of an item (guide token of its service first)
      -> token embedding + token position -> item transformer -> mean over tokens -> norm
    items of a user's recent events in one service
      -> + event position (+ time) -> service transformer -> mean over events -> norm: the summary
      -> linear layer of output_width

With `encoder.time`, an event also reads its gaps to the event before and to the cut, its hour and
its weekday (`batches/clock.py`). Weights are shared over all services. Shape suffixes are those of
`model.py`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from clue_ray.batches.dropout import draw_masks
from clue_ray.batches.packing import Items, Sequences
from clue_ray.encoder.blocks import (
    Block,
    Role,
    as_stream,
    make_blocks,
    mask,
    matrix_role,
    mean_over,
)
from clue_ray.spec.compute import CLOCK_ROWS, Vocabulary
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
        self.event_time = nn.EmbeddingBag(CLOCK_ROWS, width, mode="sum") if encoder.time else None
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

    def encode_items(self, items: Items, masks: Tensor | None = None) -> Tensor:
        """Encode distinct items, [I, D]; `masks` are the step's, from `draw_masks`."""
        x_TD = self.token_embedding(items.tokens) + self.token_position(items.positions)
        x_TD = as_stream(x_TD)
        masked = mask(items.layout, None if masks is None else masks[: self.item_sites])
        for block in self.item_blocks:
            x_TD = block(x_TD, masked)
        return self.item_norm(mean_over(x_TD, items.layout))

    def summarise(
        self, items_ID: Tensor, sequences: Sequences, masks: Tensor | None = None
    ) -> Tensor:
        """Summarise sequences of encoded items, [U, D].

        Args:
            items_ID: all items that the events of the sequences name.
            sequences: how events form sequences.
            masks: the step's, from `draw_masks`.
        """
        # The backward pass of a look-up adds up repeated items by segments; that of an index would
        # add them one after the other.
        items_ED = F.embedding(sequences.event_items, items_ID)
        x_ED = items_ED + self.event_position(sequences.event_positions)
        if self.event_time is not None:
            assert sequences.event_times is not None, "packed without times"
            x_ED = x_ED + self.event_time(sequences.event_times)
        x_ED = as_stream(x_ED)
        masked = mask(sequences.layout, None if masks is None else masks[self.item_sites :])
        for block in self.service_blocks:
            x_ED = block(x_ED, masked)
        return self.service_norm(mean_over(x_ED, sequences.layout))

    @property
    def item_sites(self) -> int:
        """Places of the item transformer that have dropout."""
        return 2 * len(self.item_blocks)

    def draw_masks(self, key: int) -> Tensor | None:
        """Draw the dropout masks of a step, on the CPU; None without dropout.

        They are [sites, masks, width], those of the item transformer first. A thread draws them
        ahead, so it must not matter whether the model is being evaluated at that moment.
        """
        if not self.dropout:
            return None
        sites = self.item_sites + 2 * len(self.service_blocks)
        return draw_masks(sites, self.token_embedding.embedding_dim, self.dropout, key)
