"""The baseline without pre-training: an encoder trained from scratch on a task's training users."""

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
from clue_ray.transfer.tasks.heads import EarlyStopping, Head, base_scores, head_loss, to_tensors

BATCH = 32
CHECK_EVERY = 25
"""Steps between checks of the validation loss."""
MAX_VALIDATION_USERS = 512
"""Users of the validation loss, at most."""
PATIENCE = 4
HEAD_LEARNING_RATE = 1e-2


def train_from_scratch(
    encoder: UserEncoder, histories: Histories, examples: Examples, *, steps: int, seed: int
) -> UserEncoder:
    """Train a new encoder of the same shape, together with a linear head, on a task.

    The encoder has its own learning rates, and the weights with the lowest validation loss. Its
    vectors are then frozen features, as those of the other methods.

    Args:
        histories: histories of the examples' users, in the same order.
        steps: maximum number of steps.
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
        torch.optim.AdamW(head.parameters(), HEAD_LEARNING_RATE),
    ]
    train, targets = to_tensors(examples, examples.rows("train"))
    validation = [
        tensor[:MAX_VALIDATION_USERS]
        for tensor in to_tensors(examples, examples.rows("validation"))
    ]

    def compute_loss(users: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        vectors = _encode_users(model, histories, users.numpy(), run.sequence_length)
        # Components of unit vectors are about width^-0.5; the head expects about 1.
        return head_loss(head(vectors * width**0.5), true, multi=examples.multi)

    stopping = EarlyStopping(nn.ModuleList([model, head]), PATIENCE)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps + 1):
        check = step % CHECK_EVERY == 0 or step == steps
        if check and stopping.update(lambda: compute_loss(*validation)):
            break
        batch = torch.randperm(len(train), generator=generator)[:BATCH]
        for optimizer in optimizers:
            optimizer.zero_grad()
        compute_loss(train[batch], targets[batch]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.train.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
    stopping.restore()
    return UserEncoder(ExportedEncoder(card, encoder.exported.tokenizer, model.state_dict()))


def _encode_users(
    model: Encoder, histories: Histories, users: NDArray[np.int64], sequence_length: int
) -> torch.Tensor:
    """Encode users as `UserEncoder.encode` does, but with gradients, [users, output_width]."""
    counts = histories.counts[users]
    rows, services = np.nonzero(counts)
    starts = histories.offsets[users[rows] * len(histories.services) + services]
    windows = Windows(starts, np.minimum(counts[rows, services], sequence_length))
    cuts = histories.cuts[users[rows]] if model.reads_time else None
    vectors = model(pack(histories, windows, cuts=cuts))[0]
    sums = torch.zeros(len(users), vectors.shape[1]).index_add(0, torch.from_numpy(rows), vectors)
    return F.normalize(sums, dim=-1)
