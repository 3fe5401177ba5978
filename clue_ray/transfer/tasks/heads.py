"""Heads: small networks on frozen features, trained with early stopping on validation users.

The last layer of a head starts at zero, so its initial scores are the base rates of the labels.
Features without a signal therefore score the same as popularity.
"""

import copy
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from clue_ray.transfer.tasks.examples import Examples
from clue_ray.transfer.tasks.features import label_features

HIDDEN = 64
DROPOUT = 0.2
STEPS = 400
PATIENCE = 8
"""Checks of the validation loss without an improvement after which training stops."""
CHECK_EVERY = 10
"""Steps between checks of the validation loss."""
BATCH = 512
SCORED_AT_ONCE = 65_536
"""Users scored at a time, so that scores of many labels need not fit a GPU."""
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1
CHALLENGE_WIDTHS, CHALLENGE_BLOCKS = (2048, 4096), 3
"""Width and hidden width of the challenge's head, and its residual blocks."""
CHALLENGE_EPOCHS, CHALLENGE_BATCH, CHALLENGE_RATE = 3, 128, 1e-3
HeadKind = Literal["mlp", "linear", "challenge"]
Matrix = NDArray[np.float64]


class Head(nn.Module):
    """Scores of labels or classes, or a value, from features.

    Args:
        features: number of columns.
        base: initial scores, [outputs].
        labels: features of the labels, [labels, columns]; None if each label has its own weights.
        hidden: whether there is a hidden layer.
    """

    def __init__(
        self, features: int, base: torch.Tensor, labels: torch.Tensor | None, hidden: bool
    ):
        super().__init__()
        outputs = len(base) if labels is None else labels.shape[1]
        before = HIDDEN if hidden else features
        self.hidden = (
            nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT))
            if hidden
            else None
        )
        self.last = nn.Linear(before, outputs, bias=False)
        nn.init.zeros_(self.last.weight)
        self.base = nn.Parameter(base.clone())
        self.labels: torch.Tensor | None
        self.register_buffer("labels", labels, persistent=False)  # moves with the module
        # For thousands of rare labels the counts are a better estimate than training.
        self.base.requires_grad_(labels is None)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return scores, [users, outputs]."""
        x = self.last(features if self.hidden is None else self.hidden(features))
        return self.base + (x if self.labels is None else x @ self.labels.T)


class ChallengeHead(nn.Module):
    """The network of the RecSys Challenge 2025 on its clients' vectors.

    A linear layer to 2,048 units, three pre-norm residual blocks with 4,096 hidden units and GELU,
    a norm and a linear layer.

    Args:
        features: number of columns.
        outputs: number of scores.
    """

    def __init__(self, features: int, outputs: int):
        super().__init__()
        width, hidden = CHALLENGE_WIDTHS
        self.first = nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
            )
            for _ in range(CHALLENGE_BLOCKS)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return scores, [users, outputs]."""
        x = self.first(features)
        for block in self.blocks:
            x = x + block(x)
        scores: torch.Tensor = self.last(x)
        return scores


class EarlyStopping:
    """Keeps the weights of a module with the lowest validation loss, and decides when to stop."""

    def __init__(self, module: nn.Module, patience: int):
        self.module, self.patience = module, patience
        self.loss, self.waited = float("inf"), 0
        self.weights: dict[str, torch.Tensor] = {}

    def update(self, compute_loss: Callable[[], torch.Tensor]) -> bool:
        """Compute the validation loss, in evaluation mode; return whether to stop training.

        Training stops after `patience` updates in a row without a lower loss.
        """
        self.module.eval()
        with torch.no_grad():
            loss = float(compute_loss())
        self.module.train()
        self.waited = 0 if loss < self.loss else self.waited + 1
        if loss < self.loss:
            self.loss, self.weights = loss, copy.deepcopy(self.module.state_dict())
        return self.waited == self.patience

    def restore(self) -> None:
        """Load the weights with the lowest loss; keep the current ones if no loss was finite."""
        self.module.load_state_dict(self.weights or self.module.state_dict())


def base_scores(examples: Examples) -> torch.Tensor:
    """Return the best scores without features, from training users, [outputs].

    They are the logarithms of the shares of labels or classes, the log odds of labels that are
    questions of their own, or the mean of standardised values.
    """
    targets = examples.targets[examples.rows("train")]
    if examples.multi:
        having = targets.sum(0) + 0.5
        return torch.from_numpy(np.log(having / (len(targets) + 1 - having))).float()
    if not examples.names:
        return torch.zeros(1)
    ranked = targets.ndim == 2
    counts = targets.sum(0) if ranked else np.bincount(targets, minlength=len(examples.names))
    return torch.from_numpy(np.log((counts + 0.5) / (counts.sum() + 0.5 * len(counts)))).float()


def head_loss(scores: torch.Tensor, targets: torch.Tensor, *, multi: bool = False) -> torch.Tensor:
    """Compute the cross-entropy of labels or classes, or the squared error of values.

    The labels of one user have equal probabilities.

    Args:
        multi: each label is a question of its own, with two answers.
    """
    if multi:
        return F.binary_cross_entropy_with_logits(scores, targets)
    if targets.ndim == 2:
        shares = targets / targets.sum(1, keepdim=True)
        return -(shares * F.log_softmax(scores, dim=1)).sum(1).mean()
    if targets.is_floating_point():
        return F.mse_loss(scores[:, 0], targets)
    return F.cross_entropy(scores, targets)


def to_tensors(examples: Examples, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of users with a target, and their targets, with values standardised.

    A user without a label among the candidates has no target.
    """
    targets = examples.targets
    if examples.multi:
        return torch.from_numpy(rows), torch.from_numpy(targets[rows]).float()
    if targets.ndim == 2:
        rows = rows[targets[rows].any(1)]
        return torch.from_numpy(rows), torch.from_numpy(targets[rows]).float()
    if examples.names:
        return torch.from_numpy(rows), torch.from_numpy(targets[rows])
    mean, spread = _value_scale(examples)
    return torch.from_numpy(rows), torch.from_numpy((targets[rows] - mean) / spread).float()


def _value_scale(examples: Examples) -> tuple[float, float]:
    """Return the mean and standard deviation of the training users' values."""
    values = examples.targets[examples.rows("train")]
    return float(values.mean()), float(values.std())


def fit_head(
    features: Matrix,
    examples: Examples,
    *,
    kind: HeadKind,
    seed: int,
    device: str | torch.device = "cpu",
) -> Matrix:
    """Fit a head on training users and return the scores of test users, [test users, outputs].

    The head has the weights with the lowest validation loss, which may be the initial ones. (The
    challenge itself takes the epoch that is best on the scored users.)

    Args:
        device: where it is fitted; its dropout differs between devices.
    """
    of_parts = (to_tensors(examples, examples.rows(part)) for part in ("train", "validation"))
    train, validation = ((users.to(device), true.to(device)) for users, true in of_parts)
    x = _standardise(features, examples.rows("train")).to(device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base, labels = base_scores(examples), label_features(examples.names)
        generator = torch.Generator().manual_seed(seed)
        if kind == "challenge":
            head: nn.Module = ChallengeHead(x.shape[1], len(base)).to(device)
            _train_epochs(head, x, train, validation, generator, multi=examples.multi)
        else:
            head = Head(x.shape[1], base, labels, hidden=kind == "mlp").to(device)
            _train(head, x, train, validation, generator, multi=examples.multi)
    head.eval()
    test = torch.from_numpy(examples.rows("test"))
    with torch.no_grad():
        scores = torch.cat([head(x[some]).cpu().double() for some in test.split(SCORED_AT_ONCE)])
    if examples.targets.ndim == 2:
        return scores.numpy()
    if examples.names:
        # AUC compares users, and the logits of one user are defined only up to a constant.
        return scores.softmax(1).numpy()
    mean, spread = _value_scale(examples)
    return mean + spread * scores.numpy()


def _standardise(features: Matrix, train: NDArray[np.int64]) -> torch.Tensor:
    """Centre by the training users, and scale all columns by the same number.

    Directions of little variance therefore stay small.
    """
    centred = features - features[train].mean(0)
    scale = max(float(np.sqrt((centred[train] ** 2).mean())), 1e-6)
    return torch.from_numpy(centred / scale).float()


def _train_epochs(
    head: nn.Module,
    x: torch.Tensor,
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor],
    generator: torch.Generator,
    *,
    multi: bool,
) -> None:
    """Train as the challenge does, and keep the best epoch on validation users."""
    optimizer = torch.optim.AdamW(head.parameters(), CHALLENGE_RATE)
    stopping = EarlyStopping(head, patience=CHALLENGE_EPOCHS + 1)
    for _ in range(CHALLENGE_EPOCHS):
        for batch in torch.randperm(len(train[0]), generator=generator).split(CHALLENGE_BATCH):
            _step(head, optimizer, x, train, batch, multi=multi)
        stopping.update(lambda: head_loss(head(x[validation[0]]), validation[1], multi=multi))
    stopping.restore()


def _train(
    head: Head,
    x: torch.Tensor,
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor],
    generator: torch.Generator,
    *,
    multi: bool,
) -> None:
    optimizer = torch.optim.AdamW(head.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    stopping = EarlyStopping(head, PATIENCE)

    def validation_loss() -> torch.Tensor:
        return head_loss(head(x[validation[0]]), validation[1], multi=multi)

    for step in range(STEPS + 1):
        if step % CHECK_EVERY == 0 and stopping.update(validation_loss):
            break
        batch = torch.randperm(len(train[0]), generator=generator)[:BATCH]
        _step(head, optimizer, x, train, batch, multi=multi)
    stopping.restore()


def _step(
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    train: tuple[torch.Tensor, torch.Tensor],
    batch: torch.Tensor,
    *,
    multi: bool,
) -> None:
    """Take a step of training on some of the training users."""
    optimizer.zero_grad()
    head_loss(head(x[train[0][batch]]), train[1][batch], multi=multi).backward()
    optimizer.step()
