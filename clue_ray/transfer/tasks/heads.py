"""What reads frozen features: a small network that starts from the base rate and stops where
validation users say.

Takes features and targets of training users, gives scores of any users. One idea: its last layer
starts at zero, so features without a signal score what popularity scores, and no less.
"""

import copy
from collections.abc import Callable

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
"""Looks at the validation users without a better loss, after which training stops."""
LOOK_EVERY = 10
BATCH = 512
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1


Matrix = NDArray[np.float64]


class Head(nn.Module):
    """Scores of labels, classes or a value from features."""

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
        self.base, self.labels = nn.Parameter(base.clone()), labels
        self.base.requires_grad_(
            labels is None
        )  # of thousands of rare labels the counts are the better estimate

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Score, [users, outputs]."""
        x = self.last(features if self.hidden is None else self.hidden(features))
        return self.base + (x if self.labels is None else x @ self.labels.T)


class EarlyStopping:
    """Keeps the weights of a module at which a loss was lowest, and says when to stop looking for a
    lower one.
    """

    def __init__(self, module: nn.Module, patience: int):
        self.module, self.patience = module, patience
        self.loss, self.waited = float("inf"), 0
        self.weights: dict[str, torch.Tensor] = {}

    def look(self, measure: Callable[[], torch.Tensor]) -> bool:
        """Measure the loss, without dropout and gradients; True once `patience` looks in a row
        found none lower.
        """
        self.module.eval()
        with torch.no_grad():
            loss = float(measure())
        self.module.train()
        self.waited = 0 if loss < self.loss else self.waited + 1
        if loss < self.loss:
            self.loss, self.weights = loss, copy.deepcopy(self.module.state_dict())
        return self.waited == self.patience

    def restore(self) -> None:
        """Give the module its best weights back; those it has where none was ever measured."""
        self.module.load_state_dict(self.weights or self.module.state_dict())


def base_scores(examples: Examples) -> torch.Tensor:
    """Return what is best without features: log shares of labels or classes, or the mean, over
    training users.
    """
    targets = examples.targets[examples.rows("train")]
    if not examples.names:
        return torch.zeros(1)  # of standardised values
    ranked = targets.ndim == 2
    counts = targets.sum(0) if ranked else np.bincount(targets, minlength=len(examples.names))
    return torch.from_numpy(np.log((counts + 0.5) / (counts.sum() + 0.5 * len(counts)))).float()


def loss_of(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of labels (shared among a user's) or classes; squared error of values."""
    if targets.ndim == 2:
        shares = targets / targets.sum(1, keepdim=True)
        return -(shares * F.log_softmax(scores, dim=1)).sum(1).mean()
    return (
        F.mse_loss(scores[:, 0], targets)
        if targets.is_floating_point()
        else F.cross_entropy(scores, targets)
    )


def tensors(examples: Examples, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return users that have something to learn from, by index, and their targets; values are
    standardised.
    """
    targets = examples.targets
    if targets.ndim == 2:
        rows = rows[targets[rows].any(1)]
        return torch.from_numpy(rows), torch.from_numpy(targets[rows]).float()
    if examples.names:
        return torch.from_numpy(rows), torch.from_numpy(targets[rows])
    mean, spread = _value_scale(examples)
    return torch.from_numpy(rows), torch.from_numpy((targets[rows] - mean) / spread).float()


def _value_scale(examples: Examples) -> tuple[float, float]:
    """Return mean and standard deviation of the training users' values."""
    values = examples.targets[examples.rows("train")]
    return float(values.mean()), float(values.std())


def fit_head(features: Matrix, examples: Examples, *, hidden: bool, seed: int) -> Matrix:
    """Fit a head to the training users and return the test users' scores, [test users, outputs].

    It keeps the weights at which the validation users' loss was lowest, which may be those it began
    with.
    """
    train, validation = (tensors(examples, examples.rows(part)) for part in ("train", "validation"))
    x = _standardise(features, examples.rows("train"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = Head(x.shape[1], base_scores(examples), label_features(examples.names), hidden)
        _train(head, x, train, validation, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        scores = head.eval()(x[examples.rows("test")]).double()
    if examples.targets.ndim == 2:
        return scores.numpy()
    if examples.names:  # users are compared, and a user's logits may all be off by one number
        return scores.softmax(1).numpy()
    mean, spread = _value_scale(examples)
    return mean + spread * scores.numpy()


def _standardise(features: Matrix, train: NDArray[np.int64]) -> torch.Tensor:
    """Centre by the training users and scale all columns alike: directions that hardly vary stay
    small.
    """
    centred = features - features[train].mean(0)
    return torch.from_numpy(
        centred / max(float(np.sqrt((centred[train] ** 2).mean())), 1e-6)
    ).float()


def _train(
    head: Head,
    x: torch.Tensor,
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor],
    generator: torch.Generator,
) -> None:
    optimizer = torch.optim.AdamW(head.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    lowest = EarlyStopping(head, PATIENCE)
    for step in range(STEPS + 1):
        if step % LOOK_EVERY == 0 and lowest.look(
            lambda: loss_of(head(x[validation[0]]), validation[1])
        ):
            break
        some = torch.randperm(len(train[0]), generator=generator)[:BATCH]
        optimizer.zero_grad()
        loss_of(head(x[train[0][some]]), train[1][some]).backward()
        optimizer.step()
    lowest.restore()
