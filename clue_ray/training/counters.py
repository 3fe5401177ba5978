"""What a run counts while it trains, and the columns of the runs table that follow from it."""

import math
import resource
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from clue_ray.corpus.store import Corpus
from clue_ray.runs import RunDescription
from clue_ray.spec.columns import COLUMNS
from clue_ray.spec.compute import Work, count_params, forward_flops, train_flops
from clue_ray.spec.specs import EvaluationSpec, RunSpec

SMOOTHING_USERS = 1024
"""Users over which the training loss is smoothed.

Users, not steps: curves of different batch sizes then compare.
"""


@dataclass
class Counters:
    """Totals of a run so far, saved and restored with the weights."""

    step: int = 0
    work: Work = field(default_factory=Work)
    "what the mathematics required"
    executed: Work = field(default_factory=Work)
    "what this worker computed in a forward and a backward pass"
    repeated: Work = field(default_factory=Work)
    "what of it passed forward a second time, by gradient caching"
    wall_seconds: float = 0.0
    loss_sum: float = 0.0
    "sum of training losses, with weights that fade by exp(-users / SMOOTHING_USERS)"
    loss_weight: float = 0.0
    "sum of those weights"
    masked_pairs: int = 0
    "ordered pairs of users with the same items, which were not negatives of each other"

    def add(
        self,
        work: Work,
        executed: Work,
        loss: float,
        masked_pairs: int,
        *,
        users: int,
        cached: bool = False,
    ) -> None:
        """Count one more step; a cached one passed forward twice, except for the similarities.

        Args:
            work: what the mathematics of the batch required.
            executed: what this worker computed.
            loss: of the batch.
            masked_pairs: as in `GlobalBatch`.
            users: of the batch.
            cached: whether gradients were cached.
        """
        self.step += 1
        self.work += work
        self.executed += executed
        if cached:
            self.repeated += executed._replace(similarities=0)
        self.masked_pairs += masked_pairs
        kept = math.exp(-users / SMOOTHING_USERS)
        self.loss_sum = kept * self.loss_sum + (1 - kept) * loss
        self.loss_weight = kept * self.loss_weight + (1 - kept)

    @property
    def train_loss(self) -> float:
        """Training loss smoothed over users; NaN before the first step."""
        return self.loss_sum / self.loss_weight if self.loss_weight else math.nan

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all workers per second of training and evaluation so far."""
        return self.work.tokens / max(self.wall_seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        works = ("work", "executed", "repeated")
        return {**vars(self), **{name: tuple(getattr(self, name)) for name in works}}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Counters":
        """Read what `to_dict` returned."""
        works = {name: Work(*saved.get(name, ())) for name in ("work", "executed", "repeated")}
        return cls(**{**saved, **works})

    def executed_flops(self, run: RunSpec) -> int:
        """Count the FLOPs that one worker executed; gradient caching adds a forward pass."""
        executed = train_flops(run.encoder, self.executed)
        return executed + forward_flops(run.encoder, self.repeated)

    def results(self, run: RunSpec, world_size: int) -> dict[str, Any]:
        """Return the columns of the runs table that follow from the counters."""
        return {
            "steps": self.step,
            "users_seen": self.step * run.train.global_batch_size,
            "train_tokens": self.work.tokens,
            "train_flops": float(train_flops(run.encoder, self.work)),
            "executed_flops": float(self.executed_flops(run)) * world_size,
            "train_loss": self.train_loss if math.isfinite(self.train_loss) else None,
            "wall_seconds": self.wall_seconds,
            "tokens_per_second": self.tokens_per_second,
        }


def describe_run(
    run: RunSpec, corpus: Corpus, evaluation: EvaluationSpec, study: str = ""
) -> RunDescription:
    """Return the columns of the runs table that are known before training."""
    params = count_params(run.encoder, corpus.vocabulary(run.sequence_length))
    shape = run.encoder.model_dump(include={"width", "item_layers", "service_layers", "heads"})
    return RunDescription(
        run_id=run.run_id(corpus.digest, evaluation.candidates),
        study=study,
        corpus_digest=corpus.digest,
        encoder_size=run.encoder.size,
        encoder_parts=run.encoder.parts,
        other_settings=_other_settings(run),
        **shape,
        non_embedding_params=params["non_embedding"],
        total_params=params["total"],
        corpus_users=len(corpus.train_users[: run.corpus_users]),
        corpus_tokens=corpus.count_training_tokens(run.corpus_users),
        sequence_length=run.sequence_length,
        global_batch_size=run.train.global_batch_size,
        learning_rate=run.train.learning_rate,
        seed=run.train.seed,
        loss_candidates=evaluation.candidates,
        num_workers=run.resources.workers,
        device="cuda" if run.resources.gpus_per_worker else "cpu",
        clue_ray_version=version("clue-ray"),
    )


def _other_settings(run: RunSpec) -> str:
    """Return the settings without a column of their own, where they are not the defaults."""
    known = {column.field for column in COLUMNS.values()} | {"encoder.transformer"}
    changed = [
        f"{part}.{name} {str(getattr(spec, name)).lower()}"
        for part, spec in (("encoder", run.encoder), ("train", run.train))
        for name, field in type(spec).model_fields.items()
        if f"{part}.{name}" not in known and getattr(spec, name) != field.default
    ]
    return ", ".join(changed)


def peak_memory(device: torch.device) -> int:
    """Return the largest number of bytes held so far.

    On a GPU torch counts them; on the CPU it is the process's peak, earlier runs in it included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts kilobytes, on macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
