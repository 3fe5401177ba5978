"""The user encoder: CLUE's model with a bag of tokens next to it (decision D1). Read this first.

Architecture, with weights shared over all services:

    tokens of a user's recent events in one service (their guide token names the service)
      -> transformer (transformer.py, CLUE's own model) -> summary -> linear layer of output_width
      -> bag of saturated token counts (wide.py) -> linear map to output_width
      summary and direction of the bag's vector -> feed-forward layer (the mixer)
    sum of the three -> scaled to unit length

`bag: false` leaves out the bag and the mixer, which is CLUE's own model; `transformer: false` keeps
the bag alone. Cosines of two embeddings, times a learned inverse temperature, are the logits.

Initialisation and rates (decision D6), with W the width, L the blocks of a transformer and "rate"
the multiplier of the run's learning rate:

    parameter                          start                  rate                   weight decay
    token embedding, table of the bag  normal, std 0.02       token_rate             no
    matrices inside a transformer      normal, fan_in^-1/2    32 / W / sqrt(L)       yes
      the last of each branch          half of that           32 / W / sqrt(L)       yes
    output matrix                      normal, fan_in^-1/2    32 / W                 yes
      next to a bag                    0                      32 / W                 yes
    mixer, first matrix                normal, fan_in^-1/2    32 / fan_in            yes
      second matrix                    0                      32 / fan_in            yes
    positions, times, biases           0                      1                      no
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
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clue_ray.batches.packing import Items, Packed, Sequences
from clue_ray.encoder.blocks import CONSTANT, VECTOR, Role
from clue_ray.encoder.transformer import Transformer
from clue_ray.encoder.wide import Mixer, TokenBag
from clue_ray.spec.compute import Vocabulary
from clue_ray.spec.specs import EncoderSpec

SIGMOID_BIAS = -10.0
"""SigLIP's start: almost every pair of users is a negative. A softmax cancels it."""
MIN_TEMPERATURE = 0.01
"""CLIP's bound: similarities are multiplied by at most 100."""


def join_views(users_UO: Tensor, packed: Packed) -> Tensor:
    """Return the vector of each view, in the requested order, [views, O].

    Args:
        users_UO: unit vectors of the packed sequences, in storage order.
    """
    if packed.views is None:
        return users_UO[packed.order]
    sums = F.embedding_bag(packed.order, users_UO, packed.views, mode="sum")
    return F.normalize(sums, dim=-1)


class Encoder(nn.Module):
    """The user encoder: a transformer and a bag of tokens, or one of them.

    `forward` takes packed sequences. It returns the unit embeddings of their views in the requested
    order, [views, output_width], and the inverse temperature and bias of the logits, [2], which are
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
        self.precision = precision
        self.output_width = encoder.output_width
        self.transformer = Transformer(encoder, vocabulary) if encoder.transformer else None
        self.bag = TokenBag(encoder, vocabulary) if encoder.bag else None
        self.mixer = Mixer(encoder) if encoder.transformer and encoder.bag else None
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))
        self.bias = nn.Parameter(torch.tensor([SIGMOID_BIAS]))
        self._initialise(seed)

    def roles(self) -> dict[Tensor, Role]:
        """Return the role of each parameter, in the order of `parameters()`."""
        roles: dict[Tensor, Role] = dict.fromkeys(self.parameters(), VECTOR)
        for part in (self.transformer, self.bag, self.mixer):
            if part is not None:
                roles |= part.roles()
        norms = [module for module in self.modules() if isinstance(module, nn.LayerNorm)]
        return roles | dict.fromkeys(
            [self.log_scale, self.bias, *(n.weight for n in norms)], CONSTANT
        )

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

    def forward(self, packed: Packed, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode packed sequences; the step's `masks` are drawn in training if left out."""
        if masks is None and self.training:
            drawn = self.draw_masks(packed.mask_key)
            masks = None if drawn is None else drawn.to(self.log_scale)
        users_UO = self.encode_sequences(
            self.encode_items(packed.items, masks), packed.sequences, masks
        )
        return join_views(users_UO, packed), self.logit

    def draw_masks(self, key: int) -> Tensor | None:
        """Draw a step's dropout masks as the transformer does; None where there is no dropout."""
        return self.transformer.draw_masks(key) if self.transformer is not None else None

    def encode_items(self, items: Items, masks: Tensor | None = None) -> Tensor | None:
        """Encode distinct items, [I, D]; None without a transformer, which alone reads them."""
        if self.transformer is None:
            return None
        with self._autocast():
            return self.transformer.encode_items(items, masks)

    def encode_sequences(
        self, items_ID: Tensor | None, sequences: Sequences, masks: Tensor | None = None
    ) -> Tensor:
        """Encode sequences of encoded items to unit vectors in storage order, [U, O]."""
        with self._autocast():
            summary_UD = None
            if self.transformer is not None and items_ID is not None:
                summary_UD = self.transformer.summarise(items_ID, sequences, masks)
            bag_UO = self.bag(sequences.bag) if self.bag is not None else None
            vectors_UO = self.combine(summary_UD, bag_UO)
        # Cosines of bf16 vectors would be off by 1e-3, a tenth of a nat at the lowest temperature.
        at_least_fp32 = torch.promote_types(vectors_UO.dtype, torch.float32)
        return F.normalize(vectors_UO.to(at_least_fp32), dim=-1)

    def _autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which matrix products have the run's precision."""
        if self.precision == "bf16":
            return torch.autocast(self.log_scale.device.type, torch.bfloat16)
        return nullcontext()

    @property
    def reads_time(self) -> bool:
        """Whether sequences must be packed with the times of their events."""
        return self.transformer is not None and self.transformer.event_time is not None

    @property
    def logit(self) -> Tensor:
        """Inverse temperature and bias of the logits, [2]."""
        return torch.stack([self.scale, self.bias.squeeze()])

    def combine(self, summary_UD: Tensor | None, bag_UO: Tensor | None) -> Tensor:
        """Combine the parts that this encoder has to vectors, [U, O].

        Args:
            summary_UD: of the transformer; None without one.
            bag_UO: of the bag; None without one.
        """
        vectors = [] if bag_UO is None else [bag_UO]
        if self.transformer is not None and summary_UD is not None:
            vectors.append(self.transformer.output(summary_UD))
        if self.mixer is not None and summary_UD is not None and bag_UO is not None:
            vectors.append(self.mixer(summary_UD, bag_UO))
        return torch.stack(vectors).sum(0)

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
