"""The same encoder without pre-training: trained from scratch, with its head, on a task's training
users alone.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from clue_ray.batches.packing import Windows, pack
from clue_ray.encoder.model import Encoder
from clue_ray.training.schedule import make_optimizer
from clue_ray.transfer.encode import Histories, UserEncoder
from clue_ray.transfer.encoder_file import ExportedEncoder
from clue_ray.transfer.tasks.examples import Examples
from clue_ray.transfer.tasks.features import label_features
from clue_ray.transfer.tasks.heads import EarlyStopping, Head, base_scores, loss_of, tensors

BATCH = 32
LOOK_EVERY = 25
LOOKED_AT = 512
"""Validation users whose loss is looked at."""
PATIENCE = 4


def train_from_scratch(
    encoder: UserEncoder, histories: Histories, examples: Examples, *, steps: int, seed: int
) -> UserEncoder:
    """Train a new encoder of the same shape end to end, with its own learning rates; its frozen
    vectors are then read.

    It keeps the weights at which the validation users' loss was lowest, as what reads the vectors
    does.

    Args:
        histories: of the examples' users, in their order.
        steps: at most.
    """
    card = encoder.card
    run = card.run.model_copy(update={"train": card.run.train.model_copy(update={"seed": seed})})
    card = card.model_copy(update={"run": run})
    model = card.build().train()
    width = run.encoder.output_width
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = Head(width, base_scores(examples), label_features(examples.names), hidden=False)
    optimizers = [
        make_optimizer(model, run.train),
        torch.optim.AdamW(head.parameters(), 1e-2),
    ]
    (train, targets), held = (
        tensors(examples, examples.rows(part)) for part in ("train", "validation")
    )

    def loss_on(users: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        vectors = _encode_some(model, histories, users.numpy(), run.sequence_length)
        return loss_of(head(vectors * width**0.5), true)

    looked_at = [part[:LOOKED_AT] for part in held]
    lowest = EarlyStopping(nn.ModuleList([model, head]), PATIENCE)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps + 1):
        if (step % LOOK_EVERY == 0 or step == steps) and lowest.look(lambda: loss_on(*looked_at)):
            break
        some = torch.randperm(len(train), generator=generator)[:BATCH]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_on(train[some], targets[some]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.train.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
    lowest.restore()
    return UserEncoder(ExportedEncoder(card, encoder.exported.tokenizer, model.state_dict()))


def _encode_some(
    model: Encoder, histories: Histories, users: NDArray[np.int64], sequence_length: int
) -> torch.Tensor:
    """Encode some users as `UserEncoder.encode` does, with gradients, [users, output_width]."""
    counts = histories.counts[users]
    rows, services = np.nonzero(counts)
    starts = histories.offsets[users[rows] * len(histories.services) + services]
    windows = Windows(starts, np.minimum(counts[rows, services], sequence_length))
    vectors = model(pack(histories, windows))[0]
    sums = torch.zeros(len(users), vectors.shape[1]).index_add(0, torch.from_numpy(rows), vectors)
    return F.normalize(sums, dim=-1)
