"""The wide part of the encoder: a bag of tokens, and what it adds together with the transformer.

A mean over events forgets how often a token occurs and how many different tokens there are. The bag
keeps both. Shape suffixes as in `model.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clue_ray.batches.bag import Bag
from clue_ray.encoder.blocks import Role, matrix_role
from clue_ray.encoder.transformer import EMBEDDING_STD
from clue_ray.spec.compute import Vocabulary
from clue_ray.spec.recipe import BASE_WIDTH
from clue_ray.spec.specs import EncoderSpec


class TokenBag(nn.Module):
    """A linear map of a history's saturated token counts.

    Counts saturate at the token, over the whole window: user = sum over its distinct tokens of
    (1 + ln count) x row of the token, divided by the norm of these weights, plus the row of the
    service's guide token, which is a bias per service.
    """

    def __init__(self, encoder: EncoderSpec, vocabulary: Vocabulary):
        super().__init__()
        self.table = nn.EmbeddingBag(vocabulary.tokens, encoder.output_width, mode="sum")

    def roles(self) -> dict[Tensor, Role]:
        """Return the role of the table."""
        return {self.table.weight: Role("token_table", std=EMBEDDING_STD)}

    def forward(self, bag: Bag) -> Tensor:
        """Encode the bags of sequences, [U, O]."""
        weights = bag.weights.to(self.table.weight.dtype)
        vectors: Tensor = self.table(bag.tokens, bag.starts, weights)
        return vectors


class Mixer(nn.Module):
    """A feed-forward layer over the transformer's summary and the bag's vector.

    It can saturate counts of topics, as the bag saturates counts of tokens; neither part can do so
    after its sum. It starts at zero: an untrained transformer would drown the bag in noise.
    """

    def __init__(self, encoder: EncoderSpec):
        super().__init__()
        hidden = encoder.width * encoder.ffn_multiple
        self.up = nn.Linear(encoder.width + encoder.output_width, hidden)
        self.down = nn.Linear(hidden, encoder.output_width)

    def roles(self) -> dict[Tensor, Role]:
        """Return the roles of the matrices."""
        return {
            self.up.weight: matrix_role(self.up, BASE_WIDTH / self.up.in_features),
            self.down.weight: matrix_role(self.down, BASE_WIDTH / self.down.in_features, 0.0),
        }

    def forward(self, summary_UD: Tensor, bag_UO: Tensor) -> Tensor:
        """Return what is added to the bag's vector, [U, O]."""
        # The entries of the summary have a root mean square of 1, so the bag's get the same.
        direction_UO = F.normalize(bag_UO, dim=-1) * bag_UO.shape[-1] ** 0.5
        both = torch.cat([summary_UD, direction_UO], dim=-1)
        added: Tensor = self.down(F.relu(self.up(both)))
        return added
